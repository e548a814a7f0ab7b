// Kernels for a few rows of activations, which a decoding step is made of: FP32 rows, weights in FP32, bfloat16 or E4M3.
//
//     multiply        y_n[o] = sum_i W[o, i] x_n[i]       each row of W is read once, where it lies, for all rows x_n
//     combine_rows    y_n[c] = sum_r a_n[r] W[r, c]       the same with W transposed: a weighted sum of its rows
//
// Every sum is taken in an order that depends on its length alone. So the numbers of a token do not depend on how many
// tokens share the step, nor on the number of threads: to the last bit.
#pragma once
#include "fp8.hpp"
#include "row_functions.hpp"
#include <vector>

constexpr int ROWS = 4;      // of a weight at most, which share what is read of the activations
constexpr int TOKENS = 4;    // rows of activations at most, which share what is read of the weight
constexpr int COMBINED = 4;  // both of these, and as many vectors side by side, where rows are combined

constexpr int READ_AHEAD = 8192;  // bytes; without, a core waits for memory half of the time
// Into the second level of the cache (2): in the first it would push the activations out.
INLINE void read_ahead(const void* from) { __builtin_prefetch((const char*)from + READ_AHEAD, 0, 2); }

typedef float* const* Rows;  // rows of activations, wherever they lie

// Index of output lane i when segments of `size` lanes of two vectors are halved; `upper` names the half that is taken.
constexpr int half_lane(int i, int size, int upper) {
    int j = i % (LANES / 2), half = size / 2;
    return i / (LANES / 2) * LANES + j / half * size + j % half + upper * half;
}
INLINE Vec pick_halves(Vec a, Vec b, int size, int upper) {
    IntVec lane;
    for (int i = 0; i < LANES; i++) lane[i] = half_lane(i, size, upper);
#if defined(__clang__)
    Vec y;
    for (int i = 0; i < LANES; i++) y[i] = lane[i] < LANES ? a[lane[i]] : b[lane[i] - LANES];
    return y;
#else
    return __builtin_shuffle(a, b, lane);
#endif
}
// Add the upper half of every segment to its lower half; the segments of a, then those of b.
INLINE Vec fold(Vec a, Vec b, int size) { return pick_halves(a, b, size, 0) + pick_halves(a, b, size, 1); }

// The sums of four vectors, in lanes 0 to 3. One tree of additions, whichever of the four a vector is.
INLINE Vec sum_four(Vec a, Vec b, Vec c, Vec d) {
    Vec sum = fold(fold(a, b, LANES), fold(c, d, LANES), LANES / 2);
    if (LANES > 4) sum = fold(sum, sum, LANES / 4);
    if (LANES > 8) sum = fold(sum, sum, LANES / 8);
    return sum;
}

// Loaded once: GCC would do so for each product.
INLINE Vec keep_loaded(const float* from) {
    Vec number = load_vec(from);
#if defined(__AVX2__)
    asm("" : "+v"(number));
#endif
    return number;
}

// Sums over the lanes of the products of R rows of W with N rows x_n: in the order of the columns, one sum each. As many as
// do not wait for each other.
template <int R, int N> struct Sums {
    Vec of[R][N] = {};

    INLINE void add(const Vec (&w)[R], Rows x, int64_t i) {
        for (int n = 0; n < N; n++) {
            const Vec number = keep_loaded(x[n] + i);
            for (int r = 0; r < R; r++) of[r][n] = add_product(of[r][n], w[r], number);
        }
    }

    // Of numbers i to `width` of the rows that begin there.
    template <typename T> INLINE void add_rest(const T* const (&row)[R], int64_t i, int64_t width, Rows x) {
        Vec w[R];
        for (; i + LANES <= width; i += LANES) {
            for (int r = 0; r < R; r++) w[r] = load_vec(row[r] + i);
            add(w, x, i);
        }
        if (i == width) return;
        for (int r = 0; r < R; r++) w[r] = load_part(row[r] + i, width - i);
        for (int n = 0; n < N; n++) {
            Vec number = load_part(x[n] + i, width - i);
            for (int r = 0; r < R; r++) of[r][n] = add_product(of[r][n], w[r], number);
        }
    }
};

// A matrix, for one way to store it: add the products of R of its rows.
template <typename T> struct Numbers {
    const T* weight;
    int64_t width;

    template <int R, int N> INLINE void multiply_rows(int64_t first, Rows x, Sums<R, N>& sums) const {
        constexpr int LINE = 64 / sizeof(T);  // of the cache
        const T* row[R];
        for (int r = 0; r < R; r++) row[r] = weight + (first + r) * width;
        int64_t i = 0;
        for (; i + LINE <= width; i += LINE) {
            for (int r = 0; r < R; r++) read_ahead(row[r] + i);
            for (int v = 0; v < LINE; v += LANES) {
                Vec w[R];
                for (int r = 0; r < R; r++) w[r] = load_vec(row[r] + i + v);
                sums.add(w, x, i + v);
            }
        }
        sums.add_rest(row, i, width, x);
    }
};

// E4M3 codes; their scales are in x already, for all rows of a block, and so is CODE_UNIT.
struct Codes {
    const uint8_t* weight;
    int64_t width;

    template <int R, int N> INLINE void multiply_rows(int64_t first, Rows x, Sums<R, N>& sums) const {
        const uint8_t* row = weight + first * width;
        int64_t i = 0;
        for (; i + CODES_AT_ONCE <= width; i += CODES_AT_ONCE) {
            Vec number[R][CODES_AT_ONCE / LANES];
            for (int r = 0; r < R; r++) {
                read_ahead(row + r * width + i);
                widen_codes(row + r * width + i, number[r]);
            }
            for (int v = 0; v < CODES_AT_ONCE / LANES; v++) {
                Vec w[R];
                for (int r = 0; r < R; r++) w[r] = number[r][v];
                sums.add(w, x, i + v * LANES);
            }
        }
        if (i == width) return;
        float number[R][CODES_AT_ONCE];
        const float* rest[R];
        for (int r = 0; r < R; r++) {
            for (int64_t k = i; k < width; k++) number[r][k - i] = widen_code(row[r * width + k]);
            rest[r] = number[r];
        }
        float* x_rest[N];
        for (int n = 0; n < N; n++) x_rest[n] = x[n] + i;
        sums.add_rest(rest, 0, width - i, x_rest);
    }
};

template <int R, int N, typename Stored> INLINE void multiply_tile(const Stored& weight, int64_t row, Rows x, Rows y, bool add) {
    Sums<R, N> sums;
    weight.template multiply_rows<R, N>(row, x, sums);
    for (int n = 0; n < N; n++) {
        Vec sum[ROWS] = {};
        for (int r = 0; r < R; r++) sum[r] = sums.of[r][n];
        Vec total = sum_four(sum[0], sum[1], sum[2], sum[3]);
        for (int r = 0; r < R; r++) y[n][row + r] = add ? y[n][row + r] + total[r] : total[r];
    }
}

template <int N, typename Stored> void multiply_rows(const Stored& weight, Range rows, Rows x, Rows y, bool add) {
    constexpr int R = LANES == 16 || N <= 2 ? ROWS : ROWS / 2;  // their sums fit into the registers
    int64_t row = rows.begin;
    for (; row + R <= rows.end; row += R) multiply_tile<R, N>(weight, row, x, y, add);
    for (; row < rows.end; row++) multiply_tile<1, N>(weight, row, x, y, add);
}

template <typename Stored> void multiply_up_to_four(const Stored& weight, Range rows, Rows x, Rows y, int64_t tokens, bool add) {
    switch (tokens) {
        case 1:
            return multiply_rows<1>(weight, rows, x, y, add);
        case 2:
            return multiply_rows<2>(weight, rows, x, y, add);
        case 3:
            return multiply_rows<3>(weight, rows, x, y, add);
        case 4:
            return multiply_rows<4>(weight, rows, x, y, add);
    }
}

template <typename Stored> void multiply_all(Stored weight, Range rows, Rows x, Rows y, int64_t tokens, bool add) {
    if (tokens <= TOKENS) return multiply_up_to_four(weight, rows, x, y, tokens, add);
    for (int64_t row = rows.begin; row < rows.end; row += ROWS)  // a few rows meet all tokens while they are at hand
        for (int64_t n = 0; n < tokens; n += TOKENS)
            multiply_up_to_four(weight, {row, std::min(row + ROWS, rows.end)}, x + n, y + n, std::min<int64_t>(TOKENS, tokens - n), add);
}

// y_n[o] = W[o] . x_n for the rows o of a range, or with ADD that much more.
template <bool ADD, typename T> void multiply(const void* numbers, Range rows, int64_t width, Rows x, Rows y, int64_t tokens) {
    multiply_all(Numbers<T>{(const T*)numbers, width}, rows, x, y, tokens, ADD);
}

// A weight where it lies: numbers of the model's type T, or with block scales E4M3 codes.
struct Weight {
    const void* data;
    const float* scale;

    // Of matrices [rows, width] behind each other, the one with this index.
    template <typename T> Weight at(int64_t index, int64_t rows, int64_t width) const {
        if (!scale) return {(const T*)data + index * rows * width, nullptr};
        return {(const uint8_t*)data + index * rows * width, scale + index * count_blocks(rows) * count_blocks(width)};
    }
};

// Rows of a matrix, N of them. An odd number of lines apart: at a distance of 4 KB they would share one set of the cache.
struct Buffer {
    static constexpr int64_t LINE = 16;  // floats
    Scratch memory;
    std::vector<float*> rows;
    Buffer(int64_t count, int64_t width) : memory(sizeof(float) * LINE * count * lines(width)), rows(count) {
        for (int64_t n = 0; n < count; n++) rows[n] = memory.as<float>() + n * LINE * lines(width);
    }
    static int64_t lines(int64_t width) { return (width + LINE - 1) / LINE | 1; }
    operator Rows() const { return rows.data(); }
};

inline void scale_up(const float* x, float scale, int64_t count, float* to) {
    for (int64_t i = 0; i < count; i++) to[i] = x[i] * scale;
}

// The same for a weight of either kind. Each 128 rows of codes have scales of their own, and meet x times these: `scaled`
// has room for it.
template <bool ADD, typename T> void multiply(Weight weight, Range rows, int64_t width, Rows x, Rows y, int64_t tokens, Rows scaled) {
    if (!weight.scale) return multiply<ADD, T>(weight.data, rows, width, x, y, tokens);
    for (int64_t row = rows.begin, end; row < rows.end; row = end) {
        end = std::min(rows.end, (row / BLOCK_SIZE + 1) * BLOCK_SIZE);
        const float* scale = weight.scale + row / BLOCK_SIZE * count_blocks(width);
        for (int64_t n = 0; n < tokens; n++)
            for (int64_t i = 0; i < width; i += BLOCK_SIZE)
                scale_up(x[n] + i, scale[i / BLOCK_SIZE] * CODE_UNIT, std::min(BLOCK_SIZE, width - i), scaled[n] + i);
        multiply_all(Codes{(const uint8_t*)weight.data, width}, {row, end}, scaled, y, tokens, ADD);
    }
}

// Rows first to first + n of a matrix in codes, as numbers behind each other.
inline void decode_rows(Weight weight, int64_t width, int64_t first, int64_t n, float* to) {
    for (int64_t row = first; row < first + n; row++, to += width) {
        const float* scale = weight.scale + row / BLOCK_SIZE * count_blocks(width);
        const uint8_t* code = (const uint8_t*)weight.data + row * width;
        int64_t i = 0;
        for (; i + CODES_AT_ONCE <= width; i += CODES_AT_ONCE) {
            Vec number[CODES_AT_ONCE / LANES];
            widen_codes(code + i, number);
            for (int v = 0; v < CODES_AT_ONCE / LANES; v++) store_vec(to + i + v * LANES, number[v] * (scale[i / BLOCK_SIZE] * CODE_UNIT));
        }
        for (; i < width; i++) to[i] = widen_code(code[i]) * (scale[i / BLOCK_SIZE] * CODE_UNIT);
    }
}

template <int V, int N, typename T>
inline void combine_tile(const T* from, int64_t rows, int64_t stride, Rows weight, int64_t first, Rows y, int64_t c, int64_t count) {
    Vec sum[V][N] = {};
    const int64_t lanes = std::min<int64_t>(count, LANES);
    if (first > 0)
        for (int n = 0; n < N; n++)
            for (int v = 0; v < V; v++) sum[v][n] = load_part(y[n] + c + v * LANES, lanes);
    for (int64_t r = 0; r < rows; r++) {
        Vec w[V];
        const T* row = from + r * stride + c;
        for (int v = 0; v < V; v++) w[v] = count < LANES ? load_part(row, count) : load_vec(row + v * LANES);
        for (int n = 0; n < N; n++)
            for (int v = 0; v < V; v++) sum[v][n] = add_product(sum[v][n], w[v], splat(weight[n][first + r]));
    }
    for (int n = 0; n < N; n++)
        for (int v = 0; v < V; v++) store_part(y[n] + c + v * LANES, sum[v][n], lanes);
}

template <int N, typename T>
inline void combine_columns(const T* from, int64_t rows, int64_t stride, int64_t width, Rows weight, int64_t first, Rows y) {
    int64_t c = 0;
    for (; c + 4 * LANES <= width; c += 4 * LANES) combine_tile<4, N>(from, rows, stride, weight, first, y, c, 4 * LANES);
    for (; c < width; c += LANES) combine_tile<1, N>(from, rows, stride, weight, first, y, c, width - c);
}

// y_n = sum_r weight_n[first + r] * the first `width` numbers of row r; the rows are `stride` apart. Behind the first call
// for a sum come those for the rows that follow, wherever they lie: the sum goes on, in the same order.
template <typename T>
void combine_rows(const T* from, int64_t rows, int64_t stride, int64_t width, Rows weight, int64_t first, Rows y, int64_t tokens) {
    int64_t n = 0;
    for (; n + COMBINED <= tokens; n += COMBINED) combine_columns<COMBINED>(from, rows, stride, width, weight + n, first, y + n);
    for (; n < tokens; n++) combine_columns<1>(from, rows, stride, width, weight + n, first, y + n);
}
