// Matrix products, the way all kernels of this folder multiply.
//
//     C[m, n] = sum_k A[m, k] B[k, n]
//
// B is packed into panels of PANEL columns, k after k, so that the inner loop reads it in a row. A tile of TILE rows by
// one panel stays in registers while k runs: 28 (12) sums of LANES numbers, 2 vectors of B, and A broadcast from memory. In
// bf16 two neighbouring k stand together, as an instruction of newer processors takes them: it adds both products to an
// FP32 sum; on older ones bf16 is widened before the loop (panels.hpp). A is read where it lies if its rows run along k; where
// they run along m it is packed into tiles, too.
//
// A processor with AMX has registers of 16 rows by 64 bytes, and one instruction for 16 x 16 sums over 32 values of k.
// There a tile in bf16 is 32 rows: two registers of A, two of B, four of sums. Panels are the same, filled up with zeros
// to a whole number of 32 k.
#pragma once
#include "panels.hpp"

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
// a + i * across + p * along, p counting STEPs of k; a multiple of them is k. T is a packed type.
template <typename T, typename Out>
void multiply_rows(int m, long k, const T* a, long across, long along, const T* panel, Out* c, long stride, int width, bool add);

// Rows of k numbers as floats, `stride` apart, in memory that this thread keeps till it asks again.
const float* widen_rows(const bf16* a, long a_stride, long m, long k, long stride);

#if HAVE_AMX
// Registers for tiles of m <= 32 rows. Whoever multiplies asks for them anew: other libraries in this thread have theirs.
void ask_for_tiles(int m);

// The same by AMX, k a multiple of 32. The rows of A are `across` apart, its 17th is at a + half, 32 k further is a + along.
// The last 32 k come from `rest`, if there is one.
template <typename Out> void multiply_tiles(int m, long k, const bf16* a, long across, long half, long along, const bf16* rest, const bf16* panel,
                                            Out* c, long stride, int width, bool add);
#endif

// C[m, n] = or += A B with B in panels, A's rows along k, which is a multiple of STEP. A bf16 result is summed over all of k before it is rounded.
// `held`: how many rows of B the panels hold, if more than k.
template <typename T, typename Out>
void multiply(long m, long n, long k, const T* a, long a_stride, const T* panels, Out* c, long c_stride, bool add = false, long held = 0) {
    held = std::max(held, k);
#if HAVE_AMX
    if constexpr (BY_AMX<T>) {
        long whole = k / 32 * 32, odd = k - whole;
        alignas(64) T rest[32 * 32] = {};
        int height = 0;
        for (long i = 0; i < m; i += 32) {
            int next = int(std::min<long>(32, m - i));
            if (next != height) ask_for_tiles(height = next);
            for (int r = 0; odd && r < height; r++) memcpy(rest + 32 * r, a + (i + r) * a_stride + whole, sizeof(T) * odd);
            for (long j = 0; j < n; j += PANEL)
                multiply_tiles(height, round_up(k, 32), a + i * a_stride, a_stride, 16 * a_stride, 32, odd ? rest : nullptr,
                               panels + panel_at<T>(j, held), c + i * c_stride + j, c_stride, int(std::min<long>(PANEL, n - j)), add);
        }
        return;
    }
#endif
    long depth = sizeof(Out) == 4 ? DEPTH : k;
    for (long p = 0; p < k; p += depth) {
        const long deep = std::min(depth, k - p);
        const Packed<T>* rows;
        long stride = a_stride;
        if constexpr (ROOM<T> == 1) rows = a + p;
        else rows = widen_rows(a + p, a_stride, m, deep, stride = round_up(deep, LANES) + LANES);
        for (long j = 0; j < n; j += PANEL)
            for (long i = 0; i < m; i += TILE<T>)
                multiply_rows(int(std::min<long>(TILE<T>, m - i)), deep, rows + i * stride, stride, STEP<T>,
                              packed(panels + panel_at<T>(j, held)) + p * PANEL, c + i * c_stride + j, c_stride, int(std::min<long>(PANEL, n - j)),
                              add || p > 0);
    }
}

// sum[m0.., n] = or += sum_k a[k][m0..] B[k, n]: one tile's rows of A^T B, B in panels.
template <typename T>
void multiply_transposed_tile(MatrixRows<T> a, long k, long m0, long m, const T* panels, long n, T* tile, float* sum, bool add) {
    pack_tile(a, k, m0, m, packed(tile));
    int height = int(std::min<long>(TILE<T>, m - m0));
#if HAVE_AMX
    if constexpr (BY_AMX<T>) ask_for_tiles(height);
#endif
    for (long j = 0; j < n; j += PANEL) {
        const Packed<T>* panel = packed(panels + panel_at<T>(j, k));
        int width = int(std::min<long>(PANEL, n - j));
#if HAVE_AMX
        if constexpr (BY_AMX<T>) {
            multiply_tiles(height, round_up(k, 32), tile, 32, 16 * 32, height > 16 ? 2 * 16 * 32 : 16 * 32, (const T*)nullptr, panel, sum + j, n,
                           width, add);
            continue;
        }
#endif
        multiply_rows(height, round_up(k, GRAIN<T>), packed((const T*)tile), STEP<T>, STEP<T> * TILE<T>, panel, sum + j, n, width, add);
    }
}
