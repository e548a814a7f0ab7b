// The inner loops of product.hpp: one tile by one panel, compiled once for every pair of types.
#include "product.hpp"

#include <utility>
#include <vector>

// The sums of one tile: M rows by V vectors. A[i, p] is at a + i * across + p * along (p counts STEPs).
template <typename T, int M, int V> inline void sum_tile(long k, const T* a, long across, long along, const T* panel, Vec (&sum)[M][V]) {
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
                for (int v = 0; v < V; v++) sum[i][v] = add_product(sum[i][v], x, b[v]);
            }
        }
#if defined(__AVX2__)
#pragma GCC unroll 16
        for (int i = 0; i < M; i++)  // all are in registers here: what follows needs many, and GCC would spill within the loop
            for (int v = 0; v < V; v++) asm("" : "+v"(sum[i][v]));
#endif
    }
#if defined(__AVX512BF16__)
    else {
        for (long p = 0; p < k / 2; p++) {
            __m512bh b[V];
            for (int v = 0; v < V; v++) b[v] = (__m512bh)_mm512_loadu_si512(panel + 2 * p * PANEL + 2 * v * LANES);
#pragma GCC unroll 16
            for (int i = 0; i < M; i++) {
                __m512bh x = (__m512bh)_mm512_set1_epi32(*(const int32_t*)(a + i * across + p * along));
                for (int v = 0; v < V; v++) sum[i][v] = (Vec)_mm512_dpbf16_ps((__m512)sum[i][v], x, b[v]);
            }
        }
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
    next(std::integral_constant<int, ROWS_AT_ONCE>{});
    next(std::integral_constant<int, ROWS_AT_ONCE / 2>{});
    next(std::integral_constant<int, 3>{});
    next(std::integral_constant<int, 1>{});
}

template void multiply_rows(int, long, const float*, long, long, const float*, float*, long, int, bool);
#if HAVE_BF16
template void multiply_rows(int, long, const bf16*, long, long, const bf16*, float*, long, int, bool);
template void multiply_rows(int, long, const bf16*, long, long, const bf16*, bf16*, long, int, bool);
#else
template void multiply_rows(int, long, const float*, long, long, const float*, bf16*, long, int, bool);
#endif

const float* widen_rows(const bf16* a, long a_stride, long m, long k, long stride) {
    static thread_local std::vector<float> memory;
    if (long(memory.size()) < m * stride) memory.resize(m * stride);
    for (long i = 0; i < m; i++) copy_row<bf16>(a + i * a_stride, memory.data() + i * stride, int(k));
    return memory.data();
}

#if HAVE_AMX
namespace {
// 0 to 3 hold sums, 4 and 5 rows of A, 6 and 7 columns of B.
struct alignas(64) Registers {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
    explicit Registers(int m) {
        int upper = std::min(16, m), lower = m - upper, height[8] = {upper, upper, lower, lower, upper, lower, 16, 16};
        for (int i = 0; i < 8; i++) rows[i] = uint8_t(height[i]), bytes[i] = height[i] ? 64 : 0;
    }
};
struct AllRegisters {
    Registers at[33];
    AllRegisters() : AllRegisters(std::make_integer_sequence<int, 33>()) {}
    template <int... m> explicit AllRegisters(std::integer_sequence<int, m...>) : at{Registers(m)...} {}
} registers;

// M and V: how many registers of A and of B the tile takes.
template <int M, int V> void sum_by_amx(long k, const bf16* a, long across, long half, long along, const bf16* rest, const bf16* panel) {
    long k_step = 4 * PANEL;  // bytes from one pair of rows of the panel to the next
    auto add = [&](const bf16* a, long across, long half, const bf16* b) {
        _tile_loadd(6, b, k_step);
        if (V == 2) _tile_loadd(7, b + PANEL, k_step);
        _tile_loadd(4, a, 2 * across);
        _tile_dpbf16ps(0, 4, 6);
        if (V == 2) _tile_dpbf16ps(1, 4, 7);
        if (M == 2) {
            _tile_loadd(5, a + half, 2 * across);
            _tile_dpbf16ps(2, 5, 6);
            if (V == 2) _tile_dpbf16ps(3, 5, 7);
        }
    };
    long p = rest ? 32 : 0;
    for (; p < k; p += 32, a += along, panel += 32 * PANEL) add(a, across, half, panel);
    if (rest) add(rest, 32, 16 * 32, panel);
}
}  // namespace

void ask_for_tiles(int m) { _tile_loadconfig(&registers.at[m]); }

template <typename Out> void multiply_tiles(int m, long k, const bf16* a, long across, long half, long along, const bf16* rest, const bf16* panel,
                                            Out* c, long stride, int width, bool add) {
    bool straight = sizeof(Out) == 4 && width == PANEL;  // sums go to and from memory as they are
    alignas(64) float sums[32 * PANEL];
    float* to = straight ? (float*)c : sums;
    long row = straight ? stride : PANEL;
    if (straight && add) {
        _tile_loadd(0, to, 4 * row);
        _tile_loadd(1, to + 16, 4 * row);
        if (m > 16) {
            _tile_loadd(2, to + 16 * row, 4 * row);
            _tile_loadd(3, to + 16 * row + 16, 4 * row);
        }
    } else {
        _tile_zero(0);
        _tile_zero(1);
        if (m > 16) {
            _tile_zero(2);
            _tile_zero(3);
        }
    }
    auto sum = m > 16 ? (width > 16 ? sum_by_amx<2, 2> : sum_by_amx<2, 1>) : (width > 16 ? sum_by_amx<1, 2> : sum_by_amx<1, 1>);
    sum(k, a, across, half, along, rest, panel);
    _tile_stored(0, to, 4 * row);
    _tile_stored(1, to + 16, 4 * row);
    if (m > 16) {
        _tile_stored(2, to + 16 * row, 4 * row);
        _tile_stored(3, to + 16 * row + 16, 4 * row);
    }
    if (straight) return;
    auto copy = [&](auto adding) {
        for (int i = 0; i < m; i++)
            for (int j = 0; j < width; j += LANES)
                put<decltype(adding)::value>(c + i * stride + j, load_vec(sums + i * PANEL + j), std::min(LANES, width - j));
    };
    add ? copy(std::true_type{}) : copy(std::false_type{});
}

template void multiply_tiles(int, long, const bf16*, long, long, long, const bf16*, const bf16*, float*, long, int, bool);
template void multiply_tiles(int, long, const bf16*, long, long, long, const bf16*, const bf16*, bf16*, long, int, bool);
#endif
