// The head and the cross-entropy behind it in one: the logits of all tokens are never in memory together.
//
//     l = W h     nats = log sum_v e^(l_v) - l[label]     dl = softmax(l) - [label]     dh = dl W     dW = dl^T h
//
// A chunk of tokens at a time; the gradients are those of the sum of nats, to be scaled by whoever asks for another.
// Letters: N tokens, D width, V vocabulary. T activations, S weights.
#include "product.hpp"

namespace {
template <typename T> constexpr long BLOCK = 4 * TILE<T>;  // tokens whose logits a thread makes at a time
constexpr long CHUNK_BYTES = 8l << 20;                     // of logits, which the last cache should hold
constexpr long MOST = 1024, FEWEST = 112;                  // tokens of a chunk

// nats and, in place of the logits, their gradient.
template <typename T> float entropy_row(T* l, long label, long n, bool gradient) {
    float most = largest_of(l, n), rest = 0;
    Vec sum = {};
    long i = 0;
    for (; i + LANES <= n; i += LANES) sum += exp_vec(load_vec(l + i) - most);
    for (; i < n; i++) rest += expf(to_float(l[i]) - most);
    float log = most + logf(rest + sum_lanes(sum)), chosen = to_float(l[label]);
    if (gradient) {
        for (i = 0; i + LANES <= n; i += LANES) store_result(l + i, exp_vec(load_vec(l + i) - log));
        for (; i < n; i++) store(l + i, expf(to_float(l[i]) - log));
        store(l + label, expf(chosen - log) - 1.f);
    }
    return log - chosen;
}

template <typename T, typename S> void head_loss(const T* h, const S* w, const int64_t* labels, int64_t ignored, float* nats, T* dh, S* dw, long rows,
                                                 long vocab, long width, long threads) {
    long chunk = std::clamp(CHUNK_BYTES / long(sizeof(T) * vocab) / TILE<T> * TILE<T>, FEWEST, MOST / TILE<T> * TILE<T>),
         tiles = (vocab + TILE<T> - 1) / TILE<T>;
    bool gradient = dw != nullptr;
    Scratch panel_memory(sizeof(T) * (panels_size<T>(width, vocab) + gradient * (panels_size<T>(vocab, width) + panels_size<T>(chunk, width))));
    Scratch logit_memory(sizeof(T) * chunk * vocab), sum_memory(gradient && sizeof(S) == 2 ? 4 * vocab * width : 0);
    T *up = panel_memory.as<T>(), *down = up + panels_size<T>(width, vocab), *h_panels = down + panels_size<T>(vocab, width),
      *logits = logit_memory.as<T>();
    float* sum = sizeof(S) == 4 ? (float*)dw : sum_memory.as<float>();
#pragma omp parallel num_threads(threads)
    {
        Scratch tile_memory(sizeof(T) * tile_size<T>(chunk));
        T* tile = tile_memory.as<T>();
#pragma omp for
        for (long j = 0; j < vocab; j += PANEL) pack_panel_transposed<T>(MatrixRows<S>{w, width}, width, j, vocab, up + panel_at<T>(j, width));
        if (gradient) {
#pragma omp for
            for (long j = 0; j < width; j += PANEL) pack_panel<T>(MatrixRows<S>{w, width}, vocab, j, width, down + panel_at<T>(j, vocab));
        }
        for (long first = 0; first < rows; first += chunk) {
            long n = std::min(chunk, rows - first);
#pragma omp for schedule(dynamic)
            for (long i = first; i < first + n; i += BLOCK<T>) {
                long m = std::min(BLOCK<T>, first + n - i);
                T* l = logits + (i - first) * vocab;
                multiply(m, vocab, width, h + i * width, width, up, l, vocab);
                for (long r = 0; r < m; r++, l += vocab) {
                    bool counts = labels[i + r] != ignored;
                    nats[i + r] = counts ? entropy_row(l, labels[i + r], vocab, gradient) : 0.f;
                    if (!counts && gradient) memset(l, 0, sizeof(T) * vocab);
                }
                if (gradient) multiply(m, width, vocab, logits + (i - first) * vocab, vocab, down, dh + i * width, width);
            }
            if (!gradient) continue;
#pragma omp for
            for (long j = 0; j < width; j += PANEL) pack_panel<T>(MatrixRows<T>{h + first * width, width}, n, j, width, h_panels + panel_at<T>(j, n));
#pragma omp for
            for (long t = 0; t < tiles; t++)
                multiply_transposed_tile(MatrixRows<T>{logits, vocab}, n, t * TILE<T>, vocab, h_panels, width, tile, sum + t * TILE<T> * width,
                                         first > 0);
        }
        if (gradient && sizeof(S) == 2) {
#pragma omp for
            for (long v = 0; v < vocab; v++) scale_row(sum + v * width, 1.f, width, dw + v * width);
        }
    }
}
}  // namespace

// kinds as in linear.cpp; dh and dw are null where no gradient is wanted
EXPORT void head_loss(int64_t kind, const void* h, const void* w, const int64_t* labels, int64_t ignored, float* nats, void* dh, void* dw,
                      int64_t rows, int64_t vocab, int64_t width, int64_t threads) {
    if (kind == 0) head_loss((const float*)h, (const float*)w, labels, ignored, nats, (float*)dh, (float*)dw, rows, vocab, width, threads);
    if (kind == 1) head_loss((const bf16*)h, (const float*)w, labels, ignored, nats, (bf16*)dh, (float*)dw, rows, vocab, width, threads);
    if (kind == 2) head_loss((const bf16*)h, (const bf16*)w, labels, ignored, nats, (bf16*)dh, (bf16*)dw, rows, vocab, width, threads);
}
