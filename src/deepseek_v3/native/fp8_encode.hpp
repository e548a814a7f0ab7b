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

template <typename F> inline typename F::Code encode(float x) {
    constexpr int CUT = 23 - F::M;
    const float step = float_of(uint32_t(127 + F::LEAST - F::M + 23) << 23);
    x = x > F::LARGEST ? F::LARGEST : x < -F::LARGEST ? -F::LARGEST : x;  // NaN stays
    const uint32_t bits = bits_of(x), magnitude = bits & 0x7FFFFFFF;
    const uint32_t rounded = magnitude + ((1u << (CUT - 1)) - 1) + ((magnitude >> CUT) & 1);
    const uint32_t normal = (rounded >> CUT) - (uint32_t(127 + F::LEAST - 1) << F::M);
    const uint32_t subnormal = bits_of(std::fabs(x) + step) - bits_of(step);
    const uint32_t number = magnitude < uint32_t(127 + F::LEAST) << 23 ? subnormal : normal;
    return typename F::Code((bits >> (32 - F::BITS) & 1u << (F::BITS - 1)) | (x != x ? F::NO_NUMBER : number));
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
