// Matrix products, the way all kernels of this folder multiply.
//
//     C[m, n] = sum_k A[m, k] B[k, n]
//
// B is packed into panels of PANEL columns, k after k, so that the inner loop reads it in a row. A tile of TILE rows by
// one panel stays in registers while k runs: 28 sums of LANES numbers, 2 vectors of B, and A broadcast from memory. In
// bf16 two neighbouring k stand together, as the processor's instruction takes them: it adds both products to an FP32
// sum. A is read where it lies if its rows run along k; where they run along m it is packed into tiles, too.
#pragma once
#include "numbers.hpp"

constexpr int TILE = 14, PANEL = 2 * LANES;
constexpr long DEPTH = 256;  // k of one pass: a panel of it is the size of the first-level cache

#if defined(__AVX512BF16__)
constexpr bool HAVE_BF16 = true;
#else
constexpr bool HAVE_BF16 = false;
#endif

inline long round_up(long n, long to) { return (n + to - 1) / to * to; }
inline long panels_size(long k, long n) { return round_up(k, 2) * round_up(n, PANEL); }
template <typename T> constexpr int STEP = sizeof(T) == 2 ? 2 : 1;  // values of k that stand together

// Where in packed panels column n begins, for panels of k rows.
template <typename T> inline long panel_at(long n, long k) { return n * round_up(k, STEP<T>); }

template <typename From> inline void copy_row(const From* from, float* to, int n) {
    int i = 0;
    for (; i + LANES <= n; i += LANES) store_vec(to + i, load_vec(from + i));
    for (; i < n; i++) to[i] = to_float(from[i]);
}
inline uint32_t pair_of(float low, float high) {
    bf16 a, b;
    store(&a, low), store(&b, high);
    return uint32_t(a.bits) | uint32_t(b.bits) << 16;
}
inline WordVec round_vec(Vec x) {  // bf16 bits in the lower halves
    WordVec word = (WordVec)x;
    word = (word + 0x7FFF + ((word >> 16) & 1)) >> 16;
    return (x != x) ? (WordVec{} + 0x7FC0) : word;
}

// Interleave two rows of n numbers as bf16 pairs; a null second row is zeros.
template <typename From> inline void pair_rows(const From* even, const From* odd, uint32_t* to, int n) {
    int i = 0;
    for (; i + LANES <= n; i += LANES) {
        WordVec low, high = {};
        if constexpr (sizeof(From) == 2) {
            low = __builtin_convertvector(*(const HalfVec*)(even + i), WordVec);
            if (odd) high = __builtin_convertvector(*(const HalfVec*)(odd + i), WordVec);
        } else {
            low = round_vec(load_vec(even + i));
            if (odd) high = round_vec(load_vec(odd + i));
        }
        *(WordVec*)(to + i) = low | (high << 16);
    }
    for (; i < n; i++) to[i] = pair_of(to_float(even[i]), odd ? to_float(odd[i]) : 0.f);
}

// Rows of a matrix, perhaps picked by an index.
template <typename T> struct Rows {
    const T* data;
    long stride;
    const int64_t* index = nullptr;
    const T* operator[](long i) const { return data + (index ? index[i] : i) * stride; }
};

// One panel of B[k, n] = rows[k][n], from column n0 on.
template <typename T, typename From> void pack_panel(Rows<From> rows, long k, long n0, long n, T* to) {
    int width = int(std::min<long>(PANEL, n - n0));
    if (width < PANEL) memset(to, 0, sizeof(T) * PANEL * round_up(k, STEP<T>));
    for (long p = 0; p < k; p += STEP<T>) {
        if constexpr (sizeof(T) == 4) copy_row(rows[p] + n0, to + p * PANEL, width);
        else pair_rows(rows[p] + n0, p + 1 < k ? rows[p + 1] + n0 : nullptr, (uint32_t*)(to + p * PANEL), width);
    }
}

#if defined(__AVX512F__)
// Transpose 16 vectors of 16 words, in place.
inline void transpose(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + 2 + j]);
            r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + 2 + j]);
        }
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 4; j++) {
            t[i + j] = _mm512_shuffle_i32x4(r[i + j], r[i + 4 + j], 0x88);
            t[i + 4 + j] = _mm512_shuffle_i32x4(r[i + j], r[i + 4 + j], 0xDD);
        }
    for (int j = 0; j < 8; j++) {
        r[j] = _mm512_shuffle_i32x4(t[j], t[8 + j], 0x88);
        r[8 + j] = _mm512_shuffle_i32x4(t[j], t[8 + j], 0xDD);
    }
}
#endif

// One panel of B[k, n] = columns[n][k]: the transpose of a weight [out, in], for y = x W^T.
template <typename T, typename From> void pack_panel_transposed(Rows<From> columns, long k, long n0, long n, T* to) {
    int width = int(std::min<long>(PANEL, n - n0));
    if (width < PANEL) memset(to, 0, sizeof(T) * PANEL * round_up(k, STEP<T>));
    long p = 0;
#if defined(__AVX512F__)
    constexpr int BLOCK = 16 * STEP<T>;  // of k: 16 words
    for (; width == PANEL && p + BLOCK <= k; p += BLOCK)
        for (int half = 0; half < 2; half++) {
            __m512i word[16];
            for (int i = 0; i < 16; i++) {
                const From* from = columns[n0 + 16 * half + i] + p;
                if constexpr (sizeof(T) == sizeof(From)) word[i] = _mm512_loadu_si512(from);
                else if constexpr (sizeof(T) == 4) word[i] = (__m512i)load_vec(from);
                else {
                    WordVec low = round_vec(load_vec(from)), high = round_vec(load_vec(from + 16));
                    HalfVec halves[2] = {__builtin_convertvector(low, HalfVec), __builtin_convertvector(high, HalfVec)};
                    memcpy(&word[i], halves, 64);
                }
            }
            transpose(word);
            for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + (p + i * STEP<T>) * PANEL + 16 * STEP<T> * half, word[i]);
        }
#endif
    for (; p < k; p += STEP<T>)
        for (int i = 0; i < width; i++) {
            const From* from = columns[n0 + i] + p;
            if constexpr (sizeof(T) == 4) to[p * PANEL + i] = to_float(*from);
            else ((uint32_t*)(to + p * PANEL))[i] = pair_of(to_float(*from), p + 1 < k ? to_float(from[1]) : 0.f);
        }
}

// Tile of A[m, k] = rows[k][m]: the transpose of rows that run along m, for a gradient dy^T x. A tile may be written up to
// LANES - TILE words beyond its end.
template <typename T> void pack_tile(Rows<T> rows, long k, long m0, long m, T* to) {
    int height = int(std::min<long>(TILE, m - m0));
    bool whole = LANES >= TILE && m0 + LANES <= m;  // a vector is longer than a tile, and the next row overwrites the rest
    for (long p = 0; p < k; p += STEP<T>) {
        const T *even = rows[p] + m0, *odd = p + 1 < k ? rows[p + 1] + m0 : nullptr;
        T* at = to + p * TILE;
        if constexpr (sizeof(T) == 4) {
            if (whole) store_vec(at, load_vec(even));
            else memcpy(at, even, sizeof(T) * height);
        } else pair_rows(even, odd, (uint32_t*)at, whole ? LANES : height);
    }
}

#if defined(__AVX512BF16__)
inline void store_result(bf16* to, Vec x) {  // the processor's own rounding: as store_vec, but results below 2^-126 are 0
    __m256bh rounded = _mm512_cvtneps_pbh((__m512)x);
    memcpy(to, &rounded, 32);
}
#else
inline void store_result(bf16* to, Vec x) { store_vec(to, x); }
#endif
inline void store_result(float* to, Vec x) { store_vec(to, x); }

// to = scale x
template <typename T> void scale_row(const float* x, float scale, long n, T* to) {
    long i = 0;
    for (; i + LANES <= n; i += LANES) store_result(to + i, load_vec(x + i) * scale);
    for (; i < n; i++) store(to + i, x[i] * scale);
}

// A tile of m <= TILE rows by one panel into C, of which `width` columns exist; `add` to what is there. A[i, p] is at
// a + i * across + p * along, p counting STEPs of k.
template <typename T, typename Out>
void multiply_rows(int m, long k, const T* a, long across, long along, const T* panel, Out* c, long stride, int width, bool add);

// C[m, n] = or += A B with B in panels, A's rows along k. A bf16 result is summed over all of k before it is rounded.
// `packed`: how many rows of B the panels hold, if more than k.
template <typename T, typename Out>
void multiply(long m, long n, long k, const T* a, long a_stride, const T* panels, Out* c, long c_stride, bool add = false,
              long packed = 0) {
    long depth = sizeof(Out) == 4 ? DEPTH : k;
    packed = std::max(packed, k);
    for (long p = 0; p < k; p += depth)
        for (long j = 0; j < n; j += PANEL)
            for (long i = 0; i < m; i += TILE)
                multiply_rows(int(std::min<long>(TILE, m - i)), std::min(depth, k - p), a + i * a_stride + p,
                                      a_stride, STEP<T>, panels + panel_at<T>(j, packed) + p * PANEL, c + i * c_stride + j,
                                      c_stride, int(std::min<long>(PANEL, n - j)), add || p > 0);
}

// sum[m0.., n] = or += sum_k a[k][m0..] B[k, n]: one tile's rows of A^T B, B in panels.
template <typename T>
void multiply_transposed_tile(Rows<T> a, long k, long m0, long m, const T* panels, long n, T* tile, float* sum, bool add) {
    pack_tile(a, k, m0, m, tile);
    for (long j = 0; j < n; j += PANEL)
        multiply_rows(int(std::min<long>(TILE, m - m0)), k, tile, STEP<T>, STEP<T> * TILE, panels + panel_at<T>(j, k), sum + j, n,
                      int(std::min<long>(PANEL, n - j)), add);
}
