// The inner loops of product.hpp: one tile by one panel, compiled once for every pair of types.
#include "product.hpp"

#include <type_traits>

// The sums of one tile: M rows by V vectors. A[i, p] is at a + i * across + p * along (p counts STEPs).
template <typename T, int M, int V>
inline void sum_tile(long k, const T* a, long across, long along, const T* panel, Vec (&sum)[M][V]) {
#pragma GCC unroll 16
    for (int i = 0; i < M; i++)
        for (int v = 0; v < V; v++) sum[i][v] = Vec{};
    if constexpr (sizeof(T) == 4) {
        for (long p = 0; p < k; p++) {
            Vec b[V];
            for (int v = 0; v < V; v++) b[v] = load_vec(panel + p * PANEL + v * LANES);
#pragma GCC unroll 16
            for (int i = 0; i < M; i++) {
                Vec x = splat(a[i * across + p * along]);
                for (int v = 0; v < V; v++) sum[i][v] += x * b[v];
            }
        }
    }
#if defined(__AVX512BF16__)
    else {
        auto add = [&](const T* b0, auto pair) {
            __m512bh b[V];
            for (int v = 0; v < V; v++) b[v] = (__m512bh)_mm512_loadu_si512(b0 + 2 * v * LANES);
#pragma GCC unroll 16
            for (int i = 0; i < M; i++) {
                __m512bh x = (__m512bh)_mm512_set1_epi32(pair(a + i * across));
                for (int v = 0; v < V; v++) sum[i][v] = (Vec)_mm512_dpbf16_ps((__m512)sum[i][v], x, b[v]);
            }
        };
        long pairs = k / 2;
        for (long p = 0; p < pairs; p++)
            add(panel + 2 * p * PANEL, [&](const T* at) { return *(const int32_t*)(at + p * along); });
        if (k % 2) add(panel + 2 * pairs * PANEL, [&](const T* at) { return int32_t(at[pairs * along].bits); });
    }
#endif
}

// Store or add a vector, of which `width` numbers exist.
template <bool add, typename Out> __attribute__((always_inline)) inline void put(Out* to, Vec x, int width = LANES) {
    if (width == LANES) {
        store_result(to, add ? load_vec(to) + x : x);
        return;
    }
    Out part[LANES];
    store_result(part, x);
    for (int j = 0; j < width; j++) store(to + j, add ? to_float(to[j]) + x[j] : to_float(part[j]));
}

// One tile by one panel into C, of which `width` columns exist; `add` to what is there.
template <typename T, typename Out, int M, bool add>
void multiply_tile(long k, const T* a, long across, long along, const T* panel, Out* c, long stride, int width) {
    if (width <= LANES) {
        Vec sum[M][1];
        sum_tile<T, M, 1>(k, a, across, along, panel, sum);
#pragma GCC unroll 16
        for (int i = 0; i < M; i++) put<add>(c + i * stride, sum[i][0], width);
        return;
    }
    Vec sum[M][2];
    sum_tile<T, M, 2>(k, a, across, along, panel, sum);
    if (width == PANEL) {
#pragma GCC unroll 16
        for (int i = 0; i < M; i++) {
            put<add>(c + i * stride, sum[i][0]);
            put<add>(c + i * stride + LANES, sum[i][1]);
        }
        return;
    }
#pragma GCC unroll 16
    for (int i = 0; i < M; i++) {
        put<add>(c + i * stride, sum[i][0]);
        put<add>(c + i * stride + LANES, sum[i][1], width - LANES);
    }
}

template <typename T, typename Out>
void multiply_rows(int m, long k, const T* a, long across, long along, const T* panel, Out* c, long stride, int width, bool add) {
    auto next = [&](auto rows) {
        constexpr int M = decltype(rows)::value;
        for (; m >= M; m -= M, a += M * across, c += M * stride)
            (add ? multiply_tile<T, Out, M, true> : multiply_tile<T, Out, M, false>)(k, a, across, along, panel, c, stride, width);
    };
    next(std::integral_constant<int, TILE>{});
    next(std::integral_constant<int, 7>{});
    next(std::integral_constant<int, 3>{});
    next(std::integral_constant<int, 1>{});
}

template void multiply_rows(int, long, const float*, long, long, const float*, float*, long, int, bool);
template void multiply_rows(int, long, const bf16*, long, long, const bf16*, float*, long, int, bool);
template void multiply_rows(int, long, const bf16*, long, long, const bf16*, bf16*, long, int, bool);
