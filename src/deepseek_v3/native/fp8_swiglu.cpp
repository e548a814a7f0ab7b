// The middle of a SwiGLU network in FP8: h = silu(g) u, quantized for the next product; g and u are kept in FP8, and in the
// backward pass h is made of them again.
//
//     forward    g, u bf16 -> codes of h, g and u in tiles of 1 x 128
//     backward   codes of g and u, dh bf16 -> h w, dg, du in FP32           w: of a routed expert's rows
//
// h is never stored in the forward pass: it goes from registers to codes.
#include "fp8_encode.hpp"

namespace {

inline Vec sigmoid(Vec x) { return 1.f / (1.f + exp_vec(-x)); }
inline float sigmoid(float x) { return 1.f / (1.f + std::exp(-x)); }

// Up to 128 numbers of one row to codes, and their scale.
inline void encode_tile(const float* x, int64_t n, Scaling scaling, uint8_t* code, float* scale) {
    uint32_t top = 0;
    for (int64_t i = 0; i < n; i++) top = std::max(top, magnitude_of(x[i]));
    const float divisor = scaling.of<E4M3>(float_of(top));
    encode_run<E4M3>(x, divisor, code, n);
    *scale = divisor;
}

inline void widen_tile(const bf16* x, int64_t n, float* to) {
    for (int64_t i = 0; i < n; i++) to[i] = to_float(x[i]);
}
inline void decode_tile(const uint8_t* code, float scale, int64_t n, float* to) {
    for (int64_t i = 0; i < n; i++) to[i] = widen(code[i]) * scale;
}

inline void gate_tile(const float* g, const float* u, int64_t n, float* h) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        const Vec x = load_vec(g + i);
        store_vec(h + i, x * sigmoid(x) * load_vec(u + i));
    }
    for (; i < n; i++) h[i] = g[i] * sigmoid(g[i]) * u[i];
}

// As above for the gradient d of h, times w for dg, du and h; returns <d, h>.
inline float gate_tile_back(const float* g, const float* u, const float* d, float w, int64_t n, float* h, float* dg, float* du) {
    Vec total = {};
    float rest = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        const Vec x = load_vec(g + i), y = load_vec(u + i), dh = load_vec(d + i) * w, s = sigmoid(x), hidden = x * s * y;
        total += load_vec(d + i) * hidden;
        store_vec(h + i, hidden * w);
        store_vec(dg + i, dh * y * (s * (1.f + x * (1.f - s))));
        store_vec(du + i, dh * x * s);
    }
    for (; i < n; i++) {
        const float x = g[i], y = u[i], dh = d[i] * w, s = sigmoid(x), hidden = x * s * y;
        rest += d[i] * hidden;
        h[i] = hidden * w;
        dg[i] = dh * y * (s * (1.f + x * (1.f - s)));
        du[i] = dh * x * s;
    }
    return rest + sum_lanes(total);
}

}  // namespace

// g, u [rows, width] bf16. Scales of h from max|h| of at least h_floor, up to powers of two if so wanted.
EXPORT void fp8_swiglu_forward(const bf16* g, const bf16* u, uint8_t* h_code, float* h_scale, uint8_t* g_code, float* g_scale, uint8_t* u_code,
                               float* u_scale, int64_t rows, int64_t width, double floor, int64_t power_of_two, int64_t threads) {
    const int64_t blocks = count_blocks(width);
    const Scaling of_hidden{float(floor), power_of_two != 0}, of_kept{float(floor), false};
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; row++)
        for (int64_t b = 0; b < blocks; b++) {
            alignas(64) float gate[BLOCK_SIZE], up[BLOCK_SIZE], hidden[BLOCK_SIZE];
            const int64_t at = row * width + b * BLOCK_SIZE, n = std::min(BLOCK_SIZE, width - b * BLOCK_SIZE), tile = row * blocks + b;
            widen_tile(g + at, n, gate);
            widen_tile(u + at, n, up);
            gate_tile(gate, up, n, hidden);
            encode_tile(hidden, n, of_hidden, h_code + at, h_scale + tile);
            encode_tile(gate, n, of_kept, g_code + at, g_scale + tile);
            encode_tile(up, n, of_kept, u_code + at, u_scale + tile);
        }
}

// dh [rows, width] bf16; w and dw [rows], null for a dense network: dw = <dh, h>. h, dg, du [rows, width] FP32, all times w.
EXPORT void fp8_swiglu_backward(const uint8_t* g_code, const float* g_scale, const uint8_t* u_code, const float* u_scale, const bf16* dh,
                                const float* w, float* h, float* dg, float* du, float* dw, int64_t rows, int64_t width, int64_t threads) {
    const int64_t blocks = count_blocks(width);
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        float sum = 0;
        for (int64_t b = 0; b < blocks; b++) {
            alignas(64) float gate[BLOCK_SIZE], up[BLOCK_SIZE], d[BLOCK_SIZE];
            const int64_t at = row * width + b * BLOCK_SIZE, n = std::min(BLOCK_SIZE, width - b * BLOCK_SIZE), tile = row * blocks + b;
            decode_tile(g_code + at, g_scale[tile], n, gate);
            decode_tile(u_code + at, u_scale[tile], n, up);
            widen_tile(dh + at, n, d);
            sum += gate_tile_back(gate, up, d, w ? w[row] : 1.f, n, h + at, dg + at, du + at);
        }
        if (dw) dw[row] = sum;
    }
}
