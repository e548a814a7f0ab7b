// Kernels for a few rows of activations, which a decoding step is made of: FP32 rows, weights in FP32 or bfloat16.
//
//     multiply        y_n[o] = sum_i W[o, i] x_n[i]       each row of W is read once, where it lies, for all rows x_n
//     combine_rows    y_n[c] = sum_r a_n[r] W[r, c]       the same with W transposed: a weighted sum of its rows
//
// Every sum is taken in an order that depends on its length alone. So the numbers of a token do not depend on how many
// tokens share the step, nor on the number of threads: to the last bit.
#pragma once
#include "numbers.hpp"

constexpr int ROWS = 4;    // of a weight, read side by side
constexpr int TOKENS = 4;  // rows of activations that share what is read: ROWS * TOKENS sums fit into the registers

constexpr int READ_AHEAD = 8192;  // bytes; without, a core waits for memory half of the time

typedef float* const* Rows;  // rows of activations, wherever they lie

// The first `count` of LANES numbers; the others are 0.
template <typename T> inline Vec load_part(const T* from, int64_t count) {
    T lane[LANES] = {};
    memcpy(lane, from, count * sizeof(T));
    return load_vec(lane);
}
#if defined(__AVX512F__)
inline Vec load_part(const float* from, int64_t count) {
    return (Vec)_mm512_maskz_loadu_ps((__mmask16)((1 << count) - 1), from);
}
#endif
inline void store_part(float* to, Vec x, int64_t count) { memcpy(to, &x, count * sizeof(float)); }

// Index of output lane i when segments of `size` lanes of two vectors are halved; `upper` names the half that is taken.
constexpr int half_lane(int i, int size, int upper) {
    int j = i % (LANES / 2), half = size / 2;
    return i / (LANES / 2) * LANES + j / half * size + j % half + upper * half;
}
inline Vec pick_halves(Vec a, Vec b, int size, int upper) {
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
inline Vec fold(Vec a, Vec b, int size) { return pick_halves(a, b, size, 0) + pick_halves(a, b, size, 1); }

// The sums of four vectors, in lanes 0 to 3. One tree of additions, whichever of the four a vector is.
inline Vec sum_four(Vec a, Vec b, Vec c, Vec d) {
    Vec sum = fold(fold(a, b, LANES), fold(c, d, LANES), LANES / 2);
    if (LANES > 4) sum = fold(sum, sum, LANES / 4);
    if (LANES > 8) sum = fold(sum, sum, LANES / 8);
    return sum;
}

template <int R, int N, bool ADD, bool AHEAD, typename T>
inline void multiply_tile(const T* weight, int64_t width, Rows x, Rows y, int64_t row) {
    Vec sum[R][N];
#pragma GCC unroll 16
    for (int n = 0; n < N; n++)
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) sum[r][n] = Vec{};
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) {
        Vec w[R];
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            w[r] = load_vec(weight + r * width + i);
            if (AHEAD) __builtin_prefetch((const char*)(weight + r * width + i) + READ_AHEAD);
        }
#pragma GCC unroll 16
        for (int n = 0; n < N; n++) {
            Vec v = load_vec(x[n] + i);
#pragma GCC unroll 16
            for (int r = 0; r < R; r++) sum[r][n] += w[r] * v;
        }
    }
    if (i < width) {
#pragma GCC unroll 16
        for (int n = 0; n < N; n++) {
            Vec v = load_part(x[n] + i, width - i);
#pragma GCC unroll 16
            for (int r = 0; r < R; r++) sum[r][n] += load_part(weight + r * width + i, width - i) * v;
        }
    }
#pragma GCC unroll 16
    for (int n = 0; n < N; n++) {
        Vec four = sum_four(sum[0][n], sum[1 % R][n], sum[2 % R][n], sum[3 % R][n]);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) y[n][row + r] = ADD ? y[n][row + r] + four[r] : four[r];
    }
}

template <int R, bool ADD, typename T>
inline void multiply_tokens(const T* weight, int64_t width, Rows x, Rows y, int64_t tokens, int64_t row) {
    if (tokens == 1) return multiply_tile<R, 1, ADD, true>(weight, width, x, y, row);
    if (tokens == 2) return multiply_tile<R, 2, ADD, true>(weight, width, x, y, row);
    if (tokens == 3) return multiply_tile<R, 3, ADD, true>(weight, width, x, y, row);
    multiply_tile<R, 4, ADD, true>(weight, width, x, y, row);
    int64_t n = TOKENS;
    for (; n + TOKENS <= tokens; n += TOKENS) multiply_tile<R, TOKENS, ADD, false>(weight, width, x + n, y + n, row);
    if (tokens - n == 3) multiply_tile<R, 3, ADD, false>(weight, width, x + n, y + n, row);
    if (tokens - n == 2) multiply_tile<R, 2, ADD, false>(weight, width, x + n, y + n, row);
    if (tokens - n == 1) multiply_tile<R, 1, ADD, false>(weight, width, x + n, y + n, row);
}

struct Range {
    int64_t begin, end;
};

// y_n[o] = W[o] . x_n for the rows o of a range, or with ADD that much more.
template <bool ADD, typename T>
void multiply(const void* matrix, Range rows, int64_t width, Rows x, Rows y, int64_t tokens) {
    const T* weight = (const T*)matrix;
    int64_t row = rows.begin;
    for (; row + ROWS <= rows.end; row += ROWS)
        multiply_tokens<ROWS, ADD>(weight + row * width, width, x, y, tokens, row);
    for (; row < rows.end; row++) multiply_tokens<1, ADD>(weight + row * width, width, x, y, tokens, row);
}

template <int V, int N, typename T>
inline void combine_tile(const T* from, int64_t rows, int64_t stride, Rows weight, Rows y, int64_t c, int64_t count) {
    Vec sum[V][N] = {};
    for (int64_t r = 0; r < rows; r++) {
        Vec w[V];
        for (int v = 0; v < V; v++)
            w[v] = count < LANES ? load_part(from + r * stride + c, count) : load_vec(from + r * stride + c + v * LANES);
        for (int n = 0; n < N; n++)
            for (int v = 0; v < V; v++) sum[v][n] += w[v] * splat(weight[n][r]);
    }
    for (int n = 0; n < N; n++)
        for (int v = 0; v < V; v++) store_part(y[n] + c + v * LANES, sum[v][n], std::min<int64_t>(count, LANES));
}

template <int N, typename T>
inline void combine_columns(const T* from, int64_t rows, int64_t stride, int64_t width, Rows weight, Rows y) {
    int64_t c = 0;
    for (; c + 4 * LANES <= width; c += 4 * LANES) combine_tile<4, N>(from, rows, stride, weight, y, c, 4 * LANES);
    for (; c < width; c += LANES) combine_tile<1, N>(from, rows, stride, weight, y, c, width - c);
}

// y_n = sum_r weight_n[r] * the first `width` numbers of row r; the rows are `stride` apart.
template <typename T>
void combine_rows(const T* from, int64_t rows, int64_t stride, int64_t width, Rows weight, Rows y, int64_t tokens) {
    int64_t n = 0;
    for (; n + TOKENS <= tokens; n += TOKENS)
        combine_columns<TOKENS>(from, rows, stride, width, weight + n, y + n);
    for (; n < tokens; n++) combine_columns<1>(from, rows, stride, width, weight + n, y + n);
}

// Read, change and write `width` numbers, LANES at a time; f sees zeros behind the end.
template <typename F> inline void for_each_vec(int64_t width, F f) {
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) f(i, (int64_t)LANES);
    if (i < width) f(i, width - i);
}
template <typename T> inline Vec load_up_to(const T* from, int64_t count) {
    return count == LANES ? load_vec(from) : load_part(from, count);
}
inline void store_up_to(float* to, Vec x, int64_t count) {
    if (count == LANES)
        store_vec(to, x);
    else
        store_part(to, x, count);
}
inline float add_lanes(Vec x) { return sum_four(x, x, x, x)[0]; }

// e^x as 2^n e^r with |r| <= ln(2) / 2 and e^r by its series; beyond +-87 it stays at the ends of the FP32 range.
inline Vec exp_vec(Vec x) {
    x = x < splat(-87) ? splat(-87) : x;
    x = x > splat(87) ? splat(87) : x;
    const Vec round = splat(12582912);  // 1.5 * 2^23: a float this large has no fraction
    Vec n = x * splat(1.44269504f) + round - round;
    Vec r = x - n * splat(0.693359375f) + n * splat(2.12194440e-4f);  // ln 2 in two parts, of which n * first is exact
    Vec y = splat(1.0f / 5040) * r + splat(1.0f / 720);
    for (float factor : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) y = y * r + splat(factor);
    IntVec power = (__builtin_convertvector(n, IntVec) + 127) << 23;
    return y * (Vec)power;
}

// y = x / sqrt(mean(x^2) + eps) * weight
template <typename T>
inline void normalise_row(const float* x, const void* scale, double eps, float* y, int64_t width) {
    const T* weight = (const T*)scale;
    Vec square = {};
    for_each_vec(width, [&](int64_t i, int64_t count) {
        Vec v = load_up_to(x + i, count);
        square += v * v;
    });
    Vec rstd = splat(1 / std::sqrt(add_lanes(square) / width + (float)eps));
    for_each_vec(width, [&](int64_t i, int64_t count) {
        store_up_to(y + i, load_up_to(x + i, count) * rstd * load_up_to(weight + i, count), count);
    });
}

// gate = silu(gate) * up * weight, on a range
inline void apply_gate(float* gate, const float* up, float weight, Range range) {
    for_each_vec(range.end - range.begin, [&](int64_t i, int64_t count) {
        float* at = gate + range.begin + i;
        Vec g = load_up_to(at, count);
        store_up_to(at, g / (splat(1) + exp_vec(-g)) * load_up_to(up + range.begin + i, count) * splat(weight), count);
    });
}

inline float largest_of(const float* x, int64_t count) {
    Vec lanes = splat(x[0]);
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        Vec v = load_vec(x + i);
        lanes = v > lanes ? v : lanes;
    }
    float largest = lanes[0];
    for (int j = 1; j < LANES; j++) largest = std::max(largest, lanes[j]);
    for (; i < count; i++) largest = std::max(largest, x[i]);
    return largest;
}

// score = softmax(scale * score) over the first `seen` slots, 0 beyond
inline void softmax_row(float* score, int64_t seen, int64_t slots, float scale) {
    float largest = largest_of(score, seen);
    Vec total = {};
    for_each_vec(seen, [&](int64_t i, int64_t count) {
        Vec y = exp_vec((load_up_to(score + i, count) - splat(largest)) * splat(scale));
        store_up_to(score + i, y, count);
        total += load_up_to(score + i, count);  // without what lies behind the end
    });
    Vec inverse = splat(1 / add_lanes(total));
    for_each_vec(seen, [&](int64_t i, int64_t count) {
        store_up_to(score + i, load_up_to(score + i, count) * inverse, count);
    });
    std::fill(score + seen, score + slots, 0.0f);
}
