// SwiGLU experts on rows sorted by expert, forward and backward, a block of rows at a time from start to end.
//
//     g = Wg x    u = Wu x    h = silu(g) u    y = Wd h           out_n = sum_a w_na y_na
//
// A dense network is one expert that every token goes to with weight 1. Letters as in ops/grouped.py: N tokens,
// D width, F hidden width, M rows sorted by expert, A experts per token; T activations, S weights.
#include "experts.hpp"

namespace {
template <typename S> struct Weights {  // expert e's part begins e * stride further on, its scales as many matrices
    const S *gate, *up, *down;
    long up_stride, down_stride;
    const float *gate_scale = nullptr, *up_scale = nullptr, *down_scale = nullptr;  // of E4M3 codes
    long up_scale_stride = 0, down_scale_stride = 0;

    Matrix<S> gate_of(long e) const { return {gate + e * up_stride, gate_scale + e * up_scale_stride}; }
    Matrix<S> up_of(long e) const { return {up + e * up_stride, up_scale + e * up_scale_stride}; }
    Matrix<S> down_of(long e) const { return {down + e * down_stride, down_scale + e * down_scale_stride}; }
};

template <typename T> void gather(const T* x, const int64_t* token, long start, long n, long width, T* to) {
    for (long i = 0; i < n; i++) memcpy(to + i * width, x + token[start + i] * width, sizeof(T) * width);
}

inline Vec sigmoid(Vec x) { return 1.f / (1.f + exp_vec(-x)); }

// h = silu(g) u of one row.
template <typename T> void gate_row(const T* g, const T* u, T* h, long n) {
    long i = 0;
    for (; i + LANES <= n; i += LANES) {
        Vec x = load_vec(g + i);
        store_result(h + i, x * sigmoid(x) * load_vec(u + i));
    }
    for (; i < n; i++) store(h + i, to_float(g[i]) / (1.f + expf(-to_float(g[i]))) * to_float(u[i]));
}

// Backward of one row, for dh of weight 1: h times w for the gradient of Wd, dg and du; returns <dh, h>.
template <typename T> float gate_row_back(const T* g, const T* u, const float* dh, float w, T* h, T* dg, T* du, long n) {
    Vec sum = {};
    float rest = 0;
    long i = 0;
    for (; i + LANES <= n; i += LANES) {
        Vec x = load_vec(g + i), y = load_vec(u + i), d = load_vec(dh + i), s = sigmoid(x), silu = x * s;
        sum += d * silu * y;
        store_result(h + i, silu * y * w);
        store_result(du + i, d * silu * w);
        store_result(dg + i, d * y * w * (s + silu * (1.f - s)));
    }
    for (; i < n; i++) {
        float x = to_float(g[i]), y = to_float(u[i]), s = 1.f / (1.f + expf(-x)), silu = x * s;
        rest += dh[i] * silu * y;
        store(h + i, silu * y * w);
        store(du + i, dh[i] * silu * w);
        store(dg + i, dh[i] * y * w * (s + silu * (1.f - s)));
    }
    return rest + sum_lanes(sum);
}

// out_n = sum_a w_na y[row_na], w = 1 if absent.
template <typename T> void sum_rows(const T* y, const int64_t* row, const float* w, T* out, const Sizes& z) {
#pragma omp for schedule(static)
    for (long n = 0; n < z.tokens; n++) {
        long i = 0;
        for (; i + LANES <= z.width; i += LANES) {
            Vec sum = {};
            for (long a = n * z.per_token; a < (n + 1) * z.per_token; a++) {
                Vec part = load_vec(y + row[a] * z.width + i);
                sum += w ? part * w[a] : part;
            }
            store_result(out + n * z.width + i, sum);
        }
        for (; i < z.width; i++) {
            float sum = 0;
            for (long a = n * z.per_token; a < (n + 1) * z.per_token; a++) sum += to_float(y[row[a] * z.width + i]) * (w ? w[a] : 1.f);
            store(out + n * z.width + i, sum);
        }
    }
}

template <typename T, typename S> void forward(const T* x, const float* w, Weights<S> weight, const int64_t* counts, const int64_t* token,
                                               const int64_t* row, T* gate_up, T* out, Sizes z) {
    long D = z.width, F = z.hidden, rows = z.tokens * z.per_token, up_size = panels_size<T>(D, F);
    long ups = (F + PANEL - 1) / PANEL, downs = (D + PANEL - 1) / PANEL;
    Sharing<T> sharing(counts, z, 2 * ups + downs, 2 * up_size + panels_size<T>(F, D));
    Scratch row_memory(row ? sizeof(T) * rows * D : 0);
    T* y = row ? row_memory.as<T>() : out;
#pragma omp parallel num_threads(z.threads)
    {
        Scratch memory(sizeof(T) * BLOCK<T> * (D + F));
        T *xs = memory.as<T>(), *hs = xs + BLOCK<T> * D;
        WeightPacker<T, S> packer(std::max(D, F));
        auto pack = [&](long e, long j, T* to) {
            if (j < ups) packer.pack(weight.gate_of(e), D, j * PANEL, F, to + panel_at<T>(j * PANEL, D));
            else if ((j -= ups) < ups) packer.pack(weight.up_of(e), D, j * PANEL, F, to + up_size + panel_at<T>(j * PANEL, D));
            else {
                j = (j - ups) * PANEL;
                packer.pack(weight.down_of(e), F, j, D, to + 2 * up_size + panel_at<T>(j, F));
            }
        };
        sharing.run(pack, [&](const Run& run, const T* to) {
            long start = run.start, m = run.stop - start;
            T* gu = gate_up + start * 2 * F;
            const T* from = x + start * D;
            if (token) gather(x, token, start, m, D, xs), from = xs;
            multiply(m, F, D, from, D, to, gu, 2 * F);
            multiply(m, F, D, from, D, to + up_size, gu + F, 2 * F);
            for (long i = 0; i < m; i++) gate_row(gu + i * 2 * F, gu + i * 2 * F + F, hs + i * F, F);
            multiply(m, D, F, hs, F, to + 2 * up_size, y + start * D, D);
        });
        if (row) sum_rows(y, row, w, out, z);
    }
}

// dW[o, i] = sum over a run's rows of a[row][o] b[row][i], for o of one task; in FP32, rounded at the end.
template <typename T, typename S>
void outer_product(MatrixRows<T> a, MatrixRows<T> b, long rows, long o0, long o1, long out, long in, S* dw, T* panels, T* tile, float* sum) {
    long deep = 2 * DEPTH;
    float* to = sizeof(S) == 4 ? (float*)dw + o0 * in : sum;
    for (long p = 0; p < rows; p += deep) {
        long k = std::min(deep, rows - p);
        auto from = [p](MatrixRows<T> m) {
            return m.index ? MatrixRows<T>{m.data, m.stride, m.index + p} : MatrixRows<T>{m.data + p * m.stride, m.stride};
        };
        for (long j = 0; j < in; j += PANEL) pack_panel<T>(from(b), k, j, in, panels + panel_at<T>(j, k));
        for (long i = o0; i < o1; i += TILE<T>) multiply_transposed_tile(from(a), k, i, out, panels, in, tile, to + (i - o0) * in, p > 0);
    }
    if (rows == 0) memset(dw + o0 * in, 0, sizeof(S) * (o1 - o0) * in);
    else if (sizeof(S) == 2) scale_row(sum, 1.f, (o1 - o0) * in, dw + o0 * in);
}

template <typename T, typename S> struct Gradients {
    T* x;
    float* w_rows;
    S *gate, *up, *down;
};

inline void sort_weights(const float* w, const int64_t* row, long rows, float* w_row) {
#pragma omp for schedule(static)
    for (long a = 0; a < rows; a++) w_row[row[a]] = w[a];
}

// A run's rows from `start` on, as gate_row_back has them; dw, the gradients of their weights, is null for a dense network.
template <typename T>
void gate_rows_back(const T* gate_up, const float* w_row, const float* dh, long start, long m, long F, T* h, T* dgu, float* dw) {
    for (long i = 0; i < m; i++) {
        const T* gu = gate_up + (start + i) * 2 * F;
        T* dg = dgu + (start + i) * 2 * F;
        float scale = w_row ? w_row[start + i] : 1.f;
        float sum = gate_row_back(gu, gu + F, dh + i * F, scale, h + (start + i) * F, dg, dg + F, F);
        if (dw) dw[start + i] = sum;
    }
}

// A panel of gate above up, as one matrix of 2F rows: the two gradients of x add up in the product.
template <typename T, typename S> void pack_up_back(const Weights<S>& weight, long e, long column, const Sizes& z, T* to) {
    long D = z.width, F = z.hidden;
    pack_panel<T>(MatrixRows<S>{weight.gate + e * weight.up_stride, D}, F, column, D, to, F);
    pack_panel<T>(MatrixRows<S>{weight.up + e * weight.up_stride, D}, F, column, D, to + ROOM<T> * F * PANEL, round_up(2 * F, GRAIN<T>) - F);
}

// What the weights' part of a backward pass reads besides x and dy: h times w [M, F], and the gradients of gate and up [M, 2F].
template <typename T> struct Kept {
    T *h, *dgu;
};

// The weights' part, for all threads of a parallel region; x and dy as rows of tokens, or sorted by expert if there is no token.
template <typename T, typename S> void weight_part(const T* x, const int64_t* counts, const int64_t* token, const T* dy, Kept<T> kept,
                                                   Gradients<T, S> d, long up_stride, long down_stride, const Sizes& z) {
    constexpr long HEIGHT = 20 * TILE<T>;  // of a task's part of a weight gradient
    long D = z.width, F = z.hidden, deep = 2 * DEPTH, widest = std::max(D, F);
    Scratch memory(sizeof(T) * (panels_size<T>(deep, widest) + tile_size<T>(deep)) + 4 * HEIGHT * widest);
    float* sum = memory.as<float>();
    T *b_panels = (T*)(sum + HEIGHT * widest), *tile = b_panels + panels_size<T>(deep, widest);
    // Gate and up are one matrix of 2F rows where they lie so.
    bool joined = d.up == d.gate + F * D;
    long up_rows = joined ? 2 * F : F, up_parts = (up_rows + HEIGHT - 1) / HEIGHT, down_parts = (D + HEIGHT - 1) / HEIGHT;
    long parts = (joined ? 1 : 2) * up_parts + down_parts;
#pragma omp for schedule(dynamic)
    for (long task = 0; task < z.experts * parts; task++) {
        long e = task / parts, part = task % parts, start = 0, n = counts[e];
        for (long i = 0; i < e; i++) start += counts[i];
        auto picked = [&](const T* m) { return token ? MatrixRows<T>{m, D, token + start} : MatrixRows<T>{m + start * D, D}; };
        bool of_down = part < down_parts, is_up = part >= down_parts + up_parts;
        long o = (of_down ? part : part - down_parts - is_up * up_parts) * HEIGHT;
        if (of_down)
            outer_product(picked(dy), MatrixRows<T>{kept.h + start * F, F}, n, o, std::min(o + HEIGHT, D), D, F, d.down + e * down_stride, b_panels,
                          tile, sum);
        else
            outer_product(MatrixRows<T>{kept.dgu + start * 2 * F + is_up * F, 2 * F}, picked(x), n, o, std::min(o + HEIGHT, up_rows), up_rows, D,
                          (is_up ? d.up : d.gate) + e * up_stride, b_panels, tile, sum);
    }
}

// later: [M, 3F] for what the weights' part reads, which is then somebody else's to run; null: it is run.
template <typename T, typename S> void backward(const T* x, const float* w, Weights<S> weight, const int64_t* counts, const int64_t* token,
                                                const int64_t* row, const T* gate_up, const T* dy, Gradients<T, S> d, T* later, Sizes z) {
    long D = z.width, F = z.hidden, rows = z.tokens * z.per_token;
    long up_size = panels_size<T>(2 * F, D), ups = (D + PANEL - 1) / PANEL, downs = (F + PANEL - 1) / PANEL;
    Sharing<T> sharing(counts, z, ups + downs, up_size + panels_size<T>(D, F));
    Scratch row_memory(sizeof(T) * rows * ((later ? 0 : 3 * F) + (row ? D : 0)) + 4 * rows);
    float* w_row = row_memory.as<float>();
    T *own = (T*)(w_row + rows), *h = later ? later : own;
    Kept<T> kept{h, h + rows * F};
    T* dx = row ? own + (later ? 0 : rows * 3 * F) : d.x;
#pragma omp parallel num_threads(z.threads)
    {
        Scratch memory(sizeof(T) * BLOCK<T> * D + 4 * BLOCK<T> * F);
        float* dh = memory.as<float>();
        T* dys = (T*)(dh + BLOCK<T> * F);
        if (row) sort_weights(w, row, rows, w_row);
        auto pack = [&](long e, long j, T* to) {
            if (j < ups) pack_up_back(weight, e, j * PANEL, z, to + panel_at<T>(j * PANEL, 2 * F));
            else
                pack_panel<T>(MatrixRows<S>{weight.down + e * weight.down_stride, F}, D, (j - ups) * PANEL, F,
                              to + up_size + panel_at<T>((j - ups) * PANEL, D));
        };
        sharing.run(pack, [&](const Run& run, const T* to) {
            long start = run.start, m = run.stop - start;
            const T* from = dy + start * D;
            if (token) gather(dy, token, start, m, D, dys), from = dys;
            multiply(m, F, D, from, D, to + up_size, dh, F);
            gate_rows_back(gate_up, row ? w_row : nullptr, dh, start, m, F, kept.h, kept.dgu, d.w_rows);
            multiply(m, D, 2 * F, kept.dgu + start * 2 * F, 2 * F, to, dx + start * D, D);
        });
        if (row) sum_rows(dx, row, (const float*)nullptr, d.x, z);
        if (!later) weight_part(x, counts, token, dy, kept, d, weight.up_stride, weight.down_stride, z);
    }
}

template <typename T, typename S> void run_backward(const void* x, const void* w, const void* gate, const void* up, const void* down, long up_stride,
                                                    long down_stride, const void* counts, const void* token, const void* row, const void* gate_up,
                                                    const void* dy, void* dx, void* dw_rows, void* dgate, void* dup, void* ddown, void* later,
                                                    Sizes z) {
    Weights<S> weight{(const S*)gate, (const S*)up, (const S*)down, up_stride, down_stride};
    Gradients<T, S> d{(T*)dx, (float*)dw_rows, (S*)dgate, (S*)dup, (S*)ddown};
    backward<T, S>((const T*)x, (const float*)w, weight, (const int64_t*)counts, (const int64_t*)token, (const int64_t*)row, (const T*)gate_up,
                   (const T*)dy, d, (T*)later, z);
}

template <typename T, typename S> void run_weight_part(const void* x, const void* dy, const void* later, long up_stride, long down_stride,
                                                       const void* counts, const void* token, void* dgate, void* dup, void* ddown, Sizes z) {
    Gradients<T, S> d{nullptr, nullptr, (S*)dgate, (S*)dup, (S*)ddown};
    Kept<T> kept{(T*)later, (T*)later + z.tokens * z.per_token * z.hidden};
#pragma omp parallel num_threads(z.threads)
    weight_part<T, S>((const T*)x, (const int64_t*)counts, (const int64_t*)token, (const T*)dy, kept, d, up_stride, down_stride, z);
}
}  // namespace

// kinds as in linear.cpp. token [M] and row [N, A] are null for a dense network: one expert, rows in their own order.
// Scales, of E4M3 codes: of a stack those of gate and up in turns, for each [blocks of F, blocks of D]; of down [E, D, F] alike.
EXPORT void experts_forward(int64_t kind, const void* x, const void* w, const void* gate, const void* up, const void* down, const float* gate_scale,
                            const float* up_scale, const float* down_scale, int64_t up_stride, int64_t down_stride, const void* counts,
                            const void* token, const void* row, void* gate_up, void* out, int64_t tokens, int64_t width, int64_t hidden,
                            int64_t experts, int64_t per_token, int64_t threads) {
    Sizes z{tokens, width, hidden, experts, per_token, threads};
    auto run = [&](auto t, auto s) {
        using T = decltype(t);
        using S = decltype(s);
        long blocks = count_blocks(width) * count_blocks(hidden);
        Weights<S> weight{(const S*)gate, (const S*)up, (const S*)down, up_stride, down_stride, gate_scale, up_scale, down_scale, 2 * blocks, blocks};
        forward<T, S>((const T*)x, (const float*)w, weight, (const int64_t*)counts, (const int64_t*)token, (const int64_t*)row, (T*)gate_up, (T*)out,
                      z);
    };
    if (kind == 0) run(float(), float());
    if (kind == 1) run(bf16(), float());
    if (kind == 2) run(bf16(), bf16());
    if (kind == 3) run(float(), e4m3());
    if (kind == 4) run(bf16(), e4m3());
}

EXPORT void experts_backward(int64_t kind, const void* x, const void* w, const void* gate, const void* up, const void* down, int64_t up_stride,
                             int64_t down_stride, const void* counts, const void* token, const void* row, const void* gate_up, const void* dy,
                             void* dx, void* dw_rows, void* dgate, void* dup, void* ddown, void* later, int64_t tokens, int64_t width, int64_t hidden,
                             int64_t experts, int64_t per_token, int64_t threads) {
    Sizes z{tokens, width, hidden, experts, per_token, threads};
    auto run = kind == 0 ? run_backward<float, float> : kind == 1 ? run_backward<bf16, float> : run_backward<bf16, bf16>;
    run(x, w, gate, up, down, up_stride, down_stride, counts, token, row, gate_up, dy, dx, dw_rows, dgate, dup, ddown, later, z);
}

// The weights' part of a backward pass that left it, from what it kept in `later`: the same bits.
EXPORT void experts_weight_gradient(int64_t kind, const void* x, const void* dy, const void* later, int64_t up_stride, int64_t down_stride,
                                    const void* counts, const void* token, void* dgate, void* dup, void* ddown, int64_t tokens, int64_t width,
                                    int64_t hidden, int64_t experts, int64_t per_token, int64_t threads) {
    Sizes z{tokens, width, hidden, experts, per_token, threads};
    auto run = kind == 0 ? run_weight_part<float, float> : kind == 1 ? run_weight_part<bf16, float> : run_weight_part<bf16, bf16>;
    run(x, dy, later, up_stride, down_stride, counts, token, dgate, dup, ddown, z);
}
