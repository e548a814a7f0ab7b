// Norm, gate and softmax of a row of activations in FP32, LANES numbers at a time.
//
// Every sum is taken in an order that depends on its length alone.
#pragma once
#include "numbers.hpp"

struct Range {
    int64_t begin, end;
};

// The first `count` of LANES numbers; the others are 0.
template <typename T> inline Vec load_part(const T* from, int64_t count) {
    T lane[LANES] = {};
    memcpy(lane, from, count * sizeof(T));
    return load_vec(lane);
}
#if defined(__AVX512F__)
inline Vec load_part(const float* from, int64_t count) { return (Vec)_mm512_maskz_loadu_ps((__mmask16)((1 << count) - 1), from); }
#endif
inline void store_part(float* to, Vec x, int64_t count) { memcpy(to, &x, count * sizeof(float)); }

// Read, change and write `width` numbers, LANES at a time; f sees zeros behind the end.
template <typename F> inline void for_each_vec(int64_t width, F f) {
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) f(i, (int64_t)LANES);
    if (i < width) f(i, width - i);
}
template <typename T> inline Vec load_up_to(const T* from, int64_t count) { return count == LANES ? load_vec(from) : load_part(from, count); }
inline void store_up_to(float* to, Vec x, int64_t count) {
    if (count == LANES) store_vec(to, x);
    else store_part(to, x, count);
}

// y = x / sqrt(mean(x^2) + eps) * weight
template <typename T> inline void normalise_row(const float* x, const void* scale, double eps, float* y, int64_t width) {
    const T* weight = (const T*)scale;
    Vec square = {};
    for_each_vec(width, [&](int64_t i, int64_t count) {
        Vec v = load_up_to(x + i, count);
        square += v * v;
    });
    Vec rstd = splat(1 / std::sqrt(sum_lanes(square) / width + (float)eps));
    for_each_vec(width,
                 [&](int64_t i, int64_t count) { store_up_to(y + i, load_up_to(x + i, count) * rstd * load_up_to(weight + i, count), count); });
}

// gate = silu(gate) * up * weight, on a range
inline void apply_gate(float* gate, const float* up, float weight, Range range) {
    for_each_vec(range.end - range.begin, [&](int64_t i, int64_t count) {
        float* at = gate + range.begin + i;
        Vec g = load_up_to(at, count);
        store_up_to(at, g / (splat(1) + exp_vec(-g)) * load_up_to(up + range.begin + i, count) * splat(weight), count);
    });
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
    Vec inverse = splat(1 / sum_lanes(total));
    for_each_vec(seen, [&](int64_t i, int64_t count) { store_up_to(score + i, load_up_to(score + i, count) * inverse, count); });
    std::fill(score + seen, score + slots, 0.0f);
}
