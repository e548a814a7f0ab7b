// The two operands of a product, packed as product.hpp reads them: panels of B, tiles of A.
//
// On a processor that has no instruction for bf16 packed numbers are floats. In the inner loop a bf16 would be widened for every
// tile or panel that it meets, by the units that multiply.
#pragma once
#include "fp8.hpp"
#include <type_traits>

#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
#define HAVE_AMX 1
#else
#define HAVE_AMX 0
#endif
#if HAVE_AMX || defined(__AVX512BF16__)
#define HAVE_BF16 1
#else
#define HAVE_BF16 0
#endif

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int ROWS_AT_ONCE = 14;  // of 32 registers
#else
constexpr int ROWS_AT_ONCE = 6;  // of 16
#endif

template <typename T> constexpr bool BY_AMX = HAVE_AMX && sizeof(T) == 2;
template <typename T> constexpr int TILE = BY_AMX<T> ? 32 : ROWS_AT_ONCE;
template <typename T> using Packed = std::conditional_t<HAVE_BF16, T, float>;  // what stands in packed memory
template <typename T> constexpr int STEP = sizeof(Packed<T>) == 2 ? 2 : 1;     // values of k that stand together
template <typename T> constexpr int GRAIN = BY_AMX<T> ? 32 : STEP<T>;          // of k, in packed memory
constexpr int PANEL = 2 * LANES;
constexpr long DEPTH = 256;  // k of one pass: a panel of it is the size of the first-level cache

inline long round_up(long n, long to) { return (n + to - 1) / to * to; }

// Packed memory lies among other memory of type T and is counted by it.
template <typename T> constexpr long ROOM = sizeof(Packed<T>) / sizeof(T);  // of a packed number
template <typename T> inline Packed<T>* packed(T* memory) { return (Packed<T>*)memory; }
template <typename T> inline const Packed<T>* packed(const T* memory) { return (const Packed<T>*)memory; }
template <typename T> inline long panels_size(long k, long n) { return ROOM<T> * round_up(k, GRAIN<T>) * round_up(n, PANEL); }
template <typename T> inline long tile_size(long k) { return BY_AMX<T> ? round_up(k, GRAIN<T>) * TILE<T> : ROOM<T> * (k + 2) * TILE<T>; }

// Where in packed panels column n begins, for panels of k rows.
template <typename T> inline long panel_at(long n, long k) { return ROOM<T> * n * round_up(k, GRAIN<T>); }

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

// Numbers of any type as floats that type T has.
template <typename T, typename From> inline Vec load_as(const From* from) {
    if constexpr (sizeof(T) < sizeof(From)) return (Vec)(round_vec(load_vec(from)) << 16);
    else return load_vec(from);
}
template <typename T, typename From> inline float float_as(From x) {
    if constexpr (sizeof(T) == sizeof(From)) return to_float(x);
    T y;
    store(&y, to_float(x));
    return to_float(y);
}
template <typename T, typename From> inline void copy_row(const From* from, float* to, int n) {
    int i = 0;
    for (; i + LANES <= n; i += LANES) store_vec(to + i, load_as<T>(from + i));
    for (; i < n; i++) to[i] = float_as<T>(from[i]);
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
template <typename T> struct MatrixRows {
    const T* data;
    long stride;
    const int64_t* index = nullptr;
    const T* operator[](long i) const { return data + (index ? index[i] : i) * stride; }
};

// Zeros where the `room` rows of a panel have no numbers.
template <typename T> void clear_edges(long k, int width, long room, Packed<T>* to) {
    long whole = width < PANEL ? 0 : k / STEP<T> * STEP<T>;
    memset(to + whole * PANEL, 0, sizeof(Packed<T>) * PANEL * (room - whole));
}

// One panel of B[k, n] = rows[k][n], from column n0 on. `room`: rows to fill, if not as many as a panel of k rows has.
template <typename T, typename From> void pack_panel(MatrixRows<From> rows, long k, long n0, long n, T* panel, long room = 0) {
    int width = int(std::min<long>(PANEL, n - n0));
    Packed<T>* to = packed(panel);
    clear_edges<T>(k, width, room ? room : round_up(k, GRAIN<T>), to);
    for (long p = 0; p < k; p += STEP<T>) {
        if constexpr (sizeof(*to) == 4) copy_row<T>(rows[p] + n0, to + p * PANEL, width);
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
template <typename T, typename From> void pack_panel_transposed(MatrixRows<From> columns, long k, long n0, long n, T* panel) {
    int width = int(std::min<long>(PANEL, n - n0));
    Packed<T>* to = packed(panel);
    clear_edges<T>(k, width, round_up(k, GRAIN<T>), to);
    long p = 0;
#if defined(__AVX512F__)
    constexpr int BLOCK = 16 * STEP<T>;  // of k: 16 words
    for (; width == PANEL && p + BLOCK <= k; p += BLOCK)
        for (int half = 0; half < 2; half++) {
            __m512i word[16];
            for (int i = 0; i < 16; i++) {
                const From* from = columns[n0 + 16 * half + i] + p;
                if constexpr (sizeof(*to) == 4) word[i] = (__m512i)load_as<T>(from);
                else if constexpr (sizeof(T) == sizeof(From)) word[i] = _mm512_loadu_si512(from);
                else {
                    WordVec low = round_vec(load_vec(from)), high = round_vec(load_vec(from + 16));
                    HalfVec halves[2] = {__builtin_convertvector(low, HalfVec), __builtin_convertvector(high, HalfVec)};
                    memcpy(&word[i], halves, 64);
                }
            }
            transpose(word);
            for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + (p + i * STEP<T>)*PANEL + 16 * STEP<T> * half, word[i]);
        }
#endif
    for (; p < k; p += STEP<T>)
        for (int i = 0; i < width; i++) {
            const From* from = columns[n0 + i] + p;
            if constexpr (sizeof(*to) == 4) to[p * PANEL + i] = float_as<T>(*from);
            else ((uint32_t*)(to + p * PANEL))[i] = pair_of(to_float(*from), p + 1 < k ? to_float(from[1]) : 0.f);
        }
}

// Packs panels of W^T, for weights [out, in] in any format; E4M3 codes are decoded first. A thread has one for itself.
template <typename T, typename S> class WeightPacker {
    static constexpr bool CODES = sizeof(S) == 1;
    Tables<T> tables;
    Scratch lines;

  public:
    explicit WeightPacker(long widest) : tables(CODES ? widest : 0), lines(CODES ? sizeof(T) * PANEL * widest : 0) {}

    void pack(Matrix<S> weight, long in, long n0, long out, T* to) {
        if constexpr (CODES) {
            long n = std::min<long>(PANEL, out - n0);
            decode_rows(weight, in, n0, n, tables, lines.as<T>());
            pack_panel_transposed<T>(MatrixRows<T>{lines.as<T>(), in}, in, 0, n, to);
        } else pack_panel_transposed<T>(MatrixRows<S>{weight.data, in}, in, n0, out, to);
    }
};

// Tile of A[m, k] = rows[k][m]: the transpose of rows that run along m, for a gradient dy^T x. Without AMX a tile may be
// written up to LANES - TILE words beyond its end.
template <typename T> void pack_tile(MatrixRows<T> rows, long k, long m0, long m, Packed<T>* to) {
    int height = int(std::min<long>(TILE<T>, m - m0));
#if HAVE_AMX
    if constexpr (BY_AMX<T>) {  // blocks of 32 k, of two times 16 rows by 32 k
        for (long p = 0; p < k; p += 32)
            for (int half = 0; half < height; half += 16, to += 16 * 32) {
                __m512i word[16];
                alignas(64) uint32_t part[16] = {};
                for (int i = 0; i < 16; i++) {
                    long even = p + 2 * i;
                    if (even >= k) word[i] = _mm512_setzero_si512();
                    else {
                        const T *low = rows[even] + m0 + half, *high = even + 1 < k ? rows[even + 1] + m0 + half : nullptr;
                        pair_rows(low, high, part, std::min(16, height - half));
                        word[i] = _mm512_load_si512(part);
                    }
                }
                transpose(word);
                for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + i * 32, word[i]);
            }
        return;
    }
#endif
    bool whole = LANES >= TILE<T> && m0 + LANES <= m;  // a vector is longer than a tile, and the next row overwrites the rest
    for (long p = 0; p < k; p += STEP<T>) {
        const T *even = rows[p] + m0, *odd = p + 1 < k ? rows[p + 1] + m0 : nullptr;
        Packed<T>* at = to + p * TILE<T>;
        if constexpr (sizeof(*at) == 4) copy_row<T>(even, at, whole ? LANES : height);
        else pair_rows(even, odd, (uint32_t*)at, whole ? LANES : height);
    }
}
