// A linear layer and its two gradients.
//
//     y[m, o] = sum_i x[m, i] W[o, i]        dx[m, i] = sum_o dy[m, o] W[o, i]        dW[o, i] = sum_m dy[m, o] x[m, i]
//
// Activations and their gradients are of type T, which is also the type of the products; weights and their gradients of
// type S, rounded to T while they are packed.
#include "product.hpp"

namespace {
template <typename T> constexpr long BLOCK = 8 * TILE<T>;  // rows of A that are multiplied by all of B before the next ones

template <typename T, typename S>
void multiply_by_weight(const T* x, Matrix<S> weight, T* y, long rows, long out, long in, bool transposed, int threads) {
    // transposed: y = x W^T, W [out, in]; else y = x W, W [in, out], which E4M3 codes do not know
    Scratch memory(sizeof(T) * panels_size<T>(in, out));
    T* panels = memory.as<T>();
#pragma omp parallel num_threads(threads)
    {
        WeightPacker<T, S> packer(in);
#pragma omp for
        for (long j = 0; j < out; j += PANEL) {
            T* to = panels + panel_at<T>(j, in);
            if (transposed) packer.pack(weight, in, j, out, to);
            else if constexpr (sizeof(S) > 1) pack_panel<T>(MatrixRows<S>{weight.data, out}, in, j, out, to);
        }
        // Each thread has tiles of its own, as many as the others, and takes them a block at a time.
        long tiles = (rows + TILE<T> - 1) / TILE<T>, thread = omp_get_thread_num(), all = omp_get_num_threads();
        long start = tiles * thread / all * TILE<T>, stop = std::min(rows, tiles * (thread + 1) / all * TILE<T>);
        for (long i = start; i < stop; i += BLOCK<T>) multiply(std::min(BLOCK<T>, stop - i), out, in, x + i * in, in, panels, y + i * out, out);
    }
}

template <typename T, typename S> void weight_gradient(const T* dy, const T* x, S* dw, long rows, long out, long in, int threads) {
    constexpr long deep = 8 * DEPTH / sizeof(T);  // rows at a time: their panels fill half of the second-level cache
    long tiles = (out + TILE<T> - 1) / TILE<T>;
    Scratch panel_memory(sizeof(T) * panels_size<T>(deep, in));
    Scratch sum_memory(sizeof(S) == 4 ? 0 : 4 * out * in);
    T* panels = panel_memory.as<T>();
    float* sum = sizeof(S) == 4 ? (float*)dw : sum_memory.as<float>();
#pragma omp parallel num_threads(threads)
    {
        Scratch tile_memory(sizeof(T) * tile_size<T>(deep));
        T* tile = tile_memory.as<T>();
        for (long p = 0; p < rows; p += deep) {
            long k = std::min(deep, rows - p);
#pragma omp for
            for (long j = 0; j < in; j += PANEL) pack_panel<T>(MatrixRows<T>{x + p * in, in}, k, j, in, panels + panel_at<T>(j, k));
#pragma omp for
            for (long t = 0; t < tiles; t++) {
                long i = t * TILE<T>;
                multiply_transposed_tile(MatrixRows<T>{dy + p * out, out}, k, i, out, panels, in, tile, sum + i * in, p > 0);
            }
        }
        if (sizeof(S) == 2) {
#pragma omp for
            for (long o = 0; o < out; o++) scale_row(sum + o * in, 1.f, in, dw + o * in);
        }
    }
}
}  // namespace

// kinds: 0 all FP32, 1 bf16 activations with FP32 weights, 2 all bf16, 3 FP32 with E4M3 weights, 4 bf16 with E4M3 weights
// (for y = x W^T, and with their scales)
EXPORT void linear(int64_t kind, const void* x, const void* w, const float* scale, void* y, int64_t rows, int64_t out, int64_t in, int64_t transposed,
                   int64_t threads) {
    auto run = [&](auto t, auto s) {
        using T = decltype(t);
        using S = decltype(s);
        multiply_by_weight((const T*)x, Matrix<S>{(const S*)w, scale}, (T*)y, rows, out, in, transposed, threads);
    };
    if (kind == 0) run(float(), float());
    if (kind == 1) run(bf16(), float());
    if (kind == 2) run(bf16(), bf16());
    if (kind == 3) run(float(), e4m3());
    if (kind == 4) run(bf16(), e4m3());
}

EXPORT void linear_weight_gradient(int64_t kind, const void* dy, const void* x, void* dw, int64_t rows, int64_t out, int64_t in, int64_t threads) {
    if (kind == 0) weight_gradient((const float*)dy, (const float*)x, (float*)dw, rows, out, in, threads);
    if (kind == 1) weight_gradient((const bf16*)dy, (const bf16*)x, (float*)dw, rows, out, in, threads);
    if (kind == 2) weight_gradient((const bf16*)dy, (const bf16*)x, (bf16*)dw, rows, out, in, threads);
}
