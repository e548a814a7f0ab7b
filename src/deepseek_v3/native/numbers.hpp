// What every kernel file needs: the export mark, number types, and vectors as wide as the processor's.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <omp.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

#define INLINE inline __attribute__((always_inline))  // a call would spill the sums that are in registers

// A vector of LANES numbers, readable at any address; GCC and Clang compile its + and * to the processor's own.
typedef float Vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t IntVec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t HalfVec __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef uint32_t WordVec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

// bfloat16 is the upper half of a float; rounding is to nearest, ties to even, and NaN stays NaN.
struct bf16 {
    uint16_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) {
    uint32_t word = uint32_t(x.bits) << 16;
    float y;
    memcpy(&y, &word, 4);
    return y;
}
inline void store(float* to, float x) { *to = x; }
inline void store(bf16* to, float x) {
    uint32_t word;
    memcpy(&word, &x, 4);
    to->bits = x != x ? 0x7FC0 : uint16_t((word + 0x7FFF + ((word >> 16) & 1)) >> 16);
}

inline Vec splat(float x) { return x - Vec{}; }  // x - 0 is x for every x, so this is a broadcast and no sum
inline Vec load_vec(const float* from) { return *(const Vec*)from; }
inline Vec load_vec(const bf16* from) {
#if defined(__AVX512F__)  // of what is below GCC makes five instructions
    return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16);
#elif defined(__AVX2__)
    return (Vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from)), 16);
#else
    return (Vec)(__builtin_convertvector(*(const HalfVec*)from, WordVec) << 16);
#endif
}
inline void store_vec(float* to, Vec x) { *(Vec*)to = x; }
inline void store_vec(bf16* to, Vec x) {
    WordVec word = (WordVec)x;
    word = (word + 0x7FFF + ((word >> 16) & 1)) >> 16;
    word = (x != x) ? (WordVec{} + 0x7FC0) : word;
    *(HalfVec*)to = __builtin_convertvector(word, HalfVec);
}
// x y + sum, rounded once. Of x * y + sum GCC makes two operations here and one there, as it finds faster for a processor;
// then equal numbers on two ways through a kernel would give unequal sums.
inline Vec add_product(Vec sum, Vec x, Vec y) {
#if defined(__AVX512F__)
    return (Vec)_mm512_fmadd_ps((__m512)x, (__m512)y, (__m512)sum);
#elif defined(__AVX2__) && defined(__FMA__)
    return (Vec)_mm256_fmadd_ps((__m256)x, (__m256)y, (__m256)sum);
#else
    return x * y + sum;
#endif
}
inline float sum_lanes(Vec x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)x);
#else
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += x[i];
    return sum;
#endif
}

// The largest of n numbers. (Beside a NaN it may be either: what is made of it next is NaN all the same.)
template <typename T> inline float largest_of(const T* x, int64_t n) {
    Vec top = splat(to_float(x[0]));
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        Vec next = load_vec(x + i);
        top = next > top ? next : top;
    }
    float largest = top[0];
    for (int j = 1; j < LANES; j++) largest = std::max(largest, top[j]);
    for (; i < n; i++) largest = std::max(largest, to_float(x[i]));
    return largest;
}

// e^x to about two units in the last place: x = n ln 2 + r, a polynomial for e^r, and n into the exponent.
inline Vec exp_vec(Vec x) {
#if defined(__AVX512F__)
    // Beyond these it is 0 and infinity anyway. Of a NaN the processor's comparison returns the second operand: NaN.
    x = (Vec)_mm512_min_ps(_mm512_set1_ps(89.f), _mm512_max_ps(_mm512_set1_ps(-104.f), (__m512)x));
    Vec n = (Vec)_mm512_roundscale_ps((__m512)(x * 1.44269504f), 8);  // to the nearest whole number
#else
    x = x < -87.f ? splat(-87.f) : x;
    x = x > 88.f ? splat(88.f) : x;
    Vec shifted = x * 1.44269504f + 12582912.f;  // adding 1.5 * 2^23 rounds to a whole number, in the lowest bits
    Vec n = shifted - 12582912.f;
#endif
    Vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Vec p = splat(1.f / 720);
    p = p * r + 1.f / 120;
    p = p * r + 1.f / 24;
    p = p * r + 1.f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.f;
    p = p * r + 1.f;
#if defined(__AVX512F__)
    return (Vec)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    return p * (Vec)(((IntVec)shifted - 0x4B400000 + 127) << 23);
#endif
}

// Memory that lives as long as a kernel's block.
struct Scratch {
    char* data;
    explicit Scratch(size_t bytes) : data((char*)aligned_alloc(64, (bytes + 127) / 64 * 64)) {}
    Scratch(const Scratch&) = delete;
    ~Scratch() { free(data); }
    template <typename T> T* as() const { return (T*)data; }
};
