// RMSNorm, forward and backward, a row at a time.
#include "product.hpp"

namespace {
constexpr long CHUNK = 64;  // rows whose part of a weight's gradient is added up together, whatever the threads

// y = round(x rstd) w,  rstd = 1 / sqrt(mean(x^2) + eps); rounded before the weight, as released
template <typename In, typename Out, typename W>
void norm_forward(const In* x, long stride, const W* w, Out* y, float* rstd, long rows, long n, float eps, long threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long r = 0; r < rows; r++) {
        const In* from = x + r * stride;
        Out* to = y + r * n;
        Vec squares = {};
        float rest = 0;
        long i = 0;
        for (; i + LANES <= n; i += LANES) {
            Vec v = load_vec(from + i);
            squares += v * v;
        }
        for (; i < n; i++) rest += to_float(from[i]) * to_float(from[i]);
        float scale = 1.f / sqrtf((rest + sum_lanes(squares)) / n + eps);
        rstd[r] = scale;
        for (i = 0; i + LANES <= n; i += LANES) {
            store_result(to + i, load_vec(from + i) * scale);
            store_result(to + i, load_vec(to + i) * load_vec(w + i));
        }
        for (; i < n; i++) {
            store(to + i, to_float(from[i]) * scale);
            store(to + i, to_float(to[i]) * to_float(w[i]));
        }
    }
}

// g = dy w    xhat = x rstd    dx = rstd (g - xhat mean(g xhat))    dw = sum over rows of dy xhat
template <typename In, typename Out, typename W>
void norm_backward(const In* x, long stride, const W* w, const float* rstd, const Out* dy, In* dx, W* dw, long rows, long n, long threads) {
    long chunks = (rows + CHUNK - 1) / CHUNK;
    Scratch memory(4 * chunks * n);
    float* parts = memory.as<float>();
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (long c = 0; c < chunks; c++) {
            float* part = parts + c * n;
            memset(part, 0, 4 * n);
            for (long r = c * CHUNK; r < std::min(rows, (c + 1) * CHUNK); r++) {
                const In* from = x + r * stride;
                const Out* d = dy + r * n;
                In* to = dx + r * n;
                float scale = rstd[r], along = 0;
                Vec sum = {};
                long i = 0;
                for (; i + LANES <= n; i += LANES) {
                    Vec product = load_vec(from + i) * scale * load_vec(d + i);
                    store_vec(part + i, load_vec(part + i) + product);
                    sum += product * load_vec(w + i);
                }
                for (; i < n; i++) {
                    float product = to_float(from[i]) * scale * to_float(d[i]);
                    part[i] += product;
                    along += product * to_float(w[i]);
                }
                float mean = (along + sum_lanes(sum)) / n;
                for (i = 0; i + LANES <= n; i += LANES)
                    store_result(to + i, (load_vec(d + i) * load_vec(w + i) - load_vec(from + i) * scale * mean) * scale);
                for (; i < n; i++) store(to + i, (to_float(d[i]) * to_float(w[i]) - to_float(from[i]) * scale * mean) * scale);
            }
        }
#pragma omp for schedule(static)
        for (long i = 0; i < n; i++) {
            float sum = 0;
            for (long c = 0; c < chunks; c++) sum += parts[c * n + i];
            store(dw + i, sum);
        }
    }
}

template <typename Visit> void with_types(int64_t in, int64_t out, int64_t weight, Visit visit) {
    auto inner = [&](auto x, auto y) { weight ? visit(x, y, bf16{}) : visit(x, y, 0.f); };
    auto outer = [&](auto x) { out ? inner(x, bf16{}) : inner(x, 0.f); };
    in ? outer(bf16{}) : outer(0.f);
}
}  // namespace

// in, out, weight: whether each is bf16. stride: between the rows of x.
EXPORT void rms_norm_forward(int64_t in, int64_t out, int64_t weight, const void* x, int64_t stride, const void* w, void* y, void* rstd, int64_t rows,
                             int64_t width, double eps, int64_t threads) {
    with_types(in, out, weight, [&](auto i, auto o, auto v) {
        norm_forward((const decltype(i)*)x, stride, (const decltype(v)*)w, (decltype(o)*)y, (float*)rstd, rows, width, float(eps), threads);
    });
}

EXPORT void rms_norm_backward(int64_t in, int64_t out, int64_t weight, const void* x, int64_t stride, const void* w, const void* rstd, const void* dy,
                              void* dx, void* dw, int64_t rows, int64_t width, int64_t threads) {
    with_types(in, out, weight, [&](auto i, auto o, auto v) {
        norm_backward((const decltype(i)*)x, stride, (const decltype(v)*)w, (const float*)rstd, (const decltype(o)*)dy, (decltype(i)*)dx,
                      (decltype(v)*)dw, rows, width, threads);
    });
}
