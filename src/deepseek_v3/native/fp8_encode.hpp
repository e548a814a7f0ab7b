// Numbers to small formats, to nearest, ties to even, saturating; and the scales of their tiles.
//
// Encoding cuts 23 - M bits off an FP32's mantissa. Rounding may carry into the exponent, as it should. Below the smallest
// normal number 2^LEAST the codes are multiples of 2^(LEAST - M), which is the last place of the numbers from 2^23 times that
// on: adding such a number rounds to it.
#pragma once
#include "fp8.hpp"

inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}
inline float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

struct E4M3 {
    typedef uint8_t Code;
    static constexpr int M = 3, BITS = 8, LEAST = -6;
    static constexpr float LARGEST = 448;
    static constexpr uint32_t NO_NUMBER = NAN_CODE;
};
struct E5M6 {  // the IEEE layout, held in 16 bits
    typedef uint16_t Code;
    static constexpr int M = 6, BITS = 12, LEAST = -14;
    static constexpr float LARGEST = 65024;
    static constexpr uint32_t NO_NUMBER = 0x7E0;
};

// NaN, whose code would be greater than all others, gets the largest that there is.
template <typename F> INLINE WordVec encode_vec(Vec x) {
    constexpr int CUT = 23 - F::M;
    const Vec step = splat(float_of(uint32_t(127 + F::LEAST - F::M + 23) << 23)), largest = splat(F::LARGEST);
    Vec size = (Vec)((WordVec)x & 0x7FFFFFFF);
    size = size > largest ? largest : size;
    const WordVec magnitude = (WordVec)size, rounded = magnitude + ((1u << (CUT - 1)) - 1) + ((magnitude >> CUT) & 1);
    const WordVec normal = (rounded >> CUT) - (uint32_t(127 + F::LEAST - 1) << F::M), subnormal = (WordVec)(size + step) - (WordVec)step;
    const WordVec number = (IntVec)magnitude < int32_t(127 + F::LEAST) << 23 ? subnormal : normal;
    return (number < F::NO_NUMBER ? number : WordVec{} + F::NO_NUMBER) | (((WordVec)x >> (32 - F::BITS)) & (1u << (F::BITS - 1)));
}

INLINE void store_codes(uint16_t* to, const WordVec (&code)[4]) {
    for (int v = 0; v < 4; v++) *(HalfVec*)(to + v * LANES) = __builtin_convertvector(code[v], HalfVec);
}
INLINE void store_codes(uint8_t* to, const WordVec (&code)[4]) {
#if defined(__AVX512F__)
    for (int v = 0; v < 4; v++) _mm_storeu_si128((__m128i*)(to + v * LANES), _mm512_cvtepi32_epi8((__m512i)code[v]));
#elif defined(__AVX2__)
    // Packing takes the halves of its operands in turns: fours of bytes come in the order 0 2 4 6 1 3 5 7.
    const __m256i low = _mm256_packus_epi32((__m256i)code[0], (__m256i)code[1]), high = _mm256_packus_epi32((__m256i)code[2], (__m256i)code[3]);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256((__m256i*)to, _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), order));
#else
    for (int v = 0; v < 4; v++)
        for (int i = 0; i < LANES; i++) to[v * LANES + i] = uint8_t(code[v][i]);
#endif
}

// A divisor for all numbers, or one for each.
INLINE Vec divisors(float one, int64_t) { return splat(one); }
INLINE Vec divisors(const float* each, int64_t i) { return load_vec(each + i); }
inline float divisor_of(float one, int64_t) { return one; }
inline float divisor_of(const float* each, int64_t i) { return each[i]; }

template <typename F, typename In, typename By> inline void encode_run(const In* x, By by, typename F::Code* code, int64_t n) {
    constexpr int64_t AT_ONCE = 4 * LANES;
    WordVec part[4];
    int64_t i = 0;
    for (; i + AT_ONCE <= n; i += AT_ONCE) {
        for (int v = 0; v < 4; v++) part[v] = encode_vec<F>(load_vec(x + i + v * LANES) / divisors(by, i + v * LANES));
        store_codes(code + i, part);
    }
    if (i == n) return;
    float rest[AT_ONCE] = {};
    typename F::Code of_rest[AT_ONCE];
    for (int64_t j = i; j < n; j++) rest[j - i] = to_float(x[j]) / divisor_of(by, j);
    for (int v = 0; v < 4; v++) part[v] = encode_vec<F>(load_vec(rest + v * LANES));
    store_codes(of_rest, part);
    memcpy(code + i, of_rest, sizeof(typename F::Code) * (n - i));
}

inline float widen(uint8_t code) { return flip_sign(magnitudes.of[code & ~SIGN], code & SIGN); }
inline float widen(uint16_t code) {
    const uint32_t magnitude = code & 0x7FF;
    const float number = magnitude < 64 ? float(magnitude) * 0x1p-20f : float_of((magnitude << 17) + ((127 - 15) << 23));
    return flip_sign(magnitude > 0x7C0 ? NAN : number, code & 0x800);
}

// The scale that brings a tile's largest magnitude to the largest number of a format. NaN and infinity stay what they are.
struct Scaling {
    float floor;  // what a smaller maximum counts as
    bool power_of_two;

    template <typename F> float of(float amax) const {
        const float scale = (amax < floor ? floor : amax) / F::LARGEST;
        const uint32_t bits = bits_of(scale), exponent = 0x7F800000;
        return power_of_two && (bits & exponent) != exponent ? float_of((bits + 0x7FFFFF) & exponent) : scale;
    }
};

inline uint32_t magnitude_of(float x) { return bits_of(x) & 0x7FFFFFFF; }  // as integers, the bits of NaN are larger than all others
