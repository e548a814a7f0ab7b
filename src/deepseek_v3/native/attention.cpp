// Causal latent attention in its expanded form, forward and backward, a block of queries of one head at a time.
//
//     s = scale q k^T     p = softmax(s)     out = p v
//     dv = p^T do     dp = do v^T     ds = scale p (dp - <do, out>)     dq = ds k     dk = ds^T q
//
// q comes as the projection leaves it, [content | rope] per head, and is turned here; k and v come interleaved per head as
// kv_b_proj leaves them, and the one rope key, turned already, is shared by all heads. A block meets only the keys up to its
// own end, its scores stay in the second-level cache, and nothing of them is kept: the backward pass makes them again from
// the saved log of each row's sum.
// Letters as in model/attention.py: B batch, S queries, T keys (the last S are the queries' own), H heads, K content,
// R rotary, U value, W = K + R.
#include "product.hpp"

namespace {
template <typename T> constexpr long BLOCK = 4 * TILE<T>;  // queries

struct Sizes {
    long batch, queries, keys, heads, content, rotary, value;
    long turn_stride;  // from one row of the batch to the next in cos and sin, 0 if they share the positions
    float scale;
    long width() const { return content + rotary; }
    template <typename T> long row() const { return round_up(width(), GRAIN<T>); }  // room of a key or query, as products want it
};

template <typename T> struct Inputs {
    const T *query, *key_value, *rope;
    long rope_stride;  // between tokens
    const float *cos, *sin;
};

// Turn the pairs of one row by its angles; sign -1 turns back.
template <typename From, typename To> void turn_row(const From* x, const float* cos, const float* sin, float sign, long n, To* to) {
    for (long i = 0; i < n; i += 2) {
        float even = to_float(x[i]), odd = to_float(x[i + 1]), c = cos[i / 2], s = sign * sin[i / 2];
        store(to + i, even * c - odd * s);
        store(to + i + 1, even * s + odd * c);
    }
}

template <typename T> float dot(const T* x, const T* y, long n) {
    Vec sum = {};
    float rest = 0;
    long i = 0;
    for (; i + LANES <= n; i += LANES) sum += load_vec(x + i) * load_vec(y + i);
    for (; i < n; i++) rest += to_float(x[i]) * to_float(y[i]);
    return rest + sum_lanes(sum);
}

// Keys, values and queries of one head of one row of the batch, as the products want them.
template <typename T> struct Head {
    const Inputs<T>& in;
    const Sizes& z;
    long b, h;
    const T* key_value(long t) const { return in.key_value + ((b * z.keys + t) * z.heads + h) * (z.content + z.value); }
    MatrixRows<T> values() const { return {key_value(0) + z.content, z.heads * (z.content + z.value)}; }
    void fill_keys(long n, T* to) const {
        for (long t = 0; t < n; t++, to += z.template row<T>()) {
            memcpy(to, key_value(t), sizeof(T) * z.content);
            memcpy(to + z.content, in.rope + (b * z.keys + t) * in.rope_stride, sizeof(T) * z.rotary);
            fill_up(to);
        }
    }
    void fill_up(T* to) const {
        for (long i = z.width(); i < z.template row<T>(); i++) store(to + i, 0.f);
    }
    long turn_at(long s) const { return b * z.turn_stride + s * (z.rotary / 2); }
    void fill_queries(long start, long n, T* to) const {
        for (long s = start; s < start + n; s++, to += z.template row<T>()) {
            const T* q = in.query + ((b * z.queries + s) * z.heads + h) * z.width();
            memcpy(to, q, sizeof(T) * z.content);
            turn_row(q + z.content, in.cos + turn_at(s), in.sin + turn_at(s), 1.f, z.rotary, to + z.content);
            fill_up(to);
        }
    }
};

template <typename T> void pack_all(MatrixRows<T> rows, long k, long n, T* to) {
    for (long j = 0; j < n; j += PANEL) pack_panel<T>(rows, k, j, n, to + panel_at<T>(j, k));
}
template <typename T> void pack_all_transposed(MatrixRows<T> rows, long k, long n, T* to) {
    for (long j = 0; j < n; j += PANEL) pack_panel_transposed<T>(rows, k, j, n, to + panel_at<T>(j, k));
}

// p = e^(scale s - shift) for the n keys that a query sees, zeros up to `all`; returns the sum.
template <typename T> float weigh(const float* s, float scale, float shift, long n, long all, T* p) {
    Vec sum = {};
    float rest = 0;
    long i = 0;
    for (; i + LANES <= n; i += LANES) {
        Vec weight = exp_vec(load_vec(s + i) * scale - shift);
        sum += weight;
        store_result(p + i, weight);
    }
    for (; i < n; i++) {
        float weight = expf(s[i] * scale - shift);
        rest += weight;
        store(p + i, weight);
    }
    memset(p + i, 0, sizeof(T) * (all - i));
    return rest + sum_lanes(sum);
}

template <typename T> void forward(Inputs<T> in, T* out, float* logs, const Sizes& z, long threads) {
    long W = z.width(), R = z.template row<T>(), U = z.value, blocks = (z.queries + BLOCK<T> - 1) / BLOCK<T>, heads = z.batch * z.heads;
    long parts = std::min(blocks, (4 * threads + heads - 1) / heads);  // of the queries of a head
    if (heads >= 4 * threads) parts = 1;
#pragma omp parallel num_threads(threads)
    {
        long room = round_up(z.keys, PANEL) + PANEL;
        Scratch memory(4 * BLOCK<T> * (room + U + 1) +
                       sizeof(T) * (BLOCK<T> * room + room * R + panels_size<T>(W, room) + panels_size<T>(room, U) + BLOCK<T> * R));
        float *s = memory.as<float>(), *mixed = s + BLOCK<T> * room, *sums = mixed + BLOCK<T> * U;
        T *p = (T*)(sums + BLOCK<T>), *k = p + BLOCK<T> * room, *k_panels = k + room * R, *v_panels = k_panels + panels_size<T>(W, room);
        T* q = v_panels + panels_size<T>(room, U);
#pragma omp for schedule(dynamic)
        for (long task = heads * parts - 1; task >= 0; task--) {  // the last parts see the most keys: they go first
            long part = task / heads, first = blocks * part / parts, last = blocks * (part + 1) / parts;
            Head<T> head{in, z, task % heads / z.heads, task % heads % z.heads};
            long keys = z.keys - z.queries + std::min(last * BLOCK<T>, z.queries);
            head.fill_keys(keys, k);
            pack_all_transposed(MatrixRows<T>{k, R}, W, keys, k_panels);
            pack_all(head.values(), keys, U, v_panels);
            for (long block = first; block < last; block++) {
                long start = block * BLOCK<T>, n = std::min(BLOCK<T>, z.queries - start), seen = z.keys - z.queries + start + n;
                long deep = round_up(seen, GRAIN<T>);
                head.fill_queries(start, n, q);
                multiply(n, round_up(seen, PANEL), R, q, R, k_panels, s, room);
                for (long i = 0; i < n; i++) {
                    long visible = seen - n + i + 1;
                    float shift = largest_of(s + i * room, visible) * z.scale;
                    sums[i] = weigh(s + i * room, z.scale, shift, visible, deep, p + i * room);
                    if (logs) logs[(head.b * z.heads + head.h) * z.queries + start + i] = shift + logf(sums[i]);
                }
                multiply(n, U, deep, p, room, v_panels, mixed, U, false, keys);
                for (long i = 0; i < n; i++) {
                    T* to = out + ((head.b * z.queries + start + i) * z.heads + head.h) * U;
                    scale_row(mixed + i * U, 1.f / sums[i], U, to);
                }
            }
        }
    }
}

// sum[m, n] += sum_k a[k][m] b[k][n]
template <typename T> void add_outer(MatrixRows<T> a, long m, const T* b_panels, long n, long k, T* tile, float* sum) {
    for (long i = 0; i < m; i += TILE<T>) multiply_transposed_tile(a, k, i, m, b_panels, n, tile, sum + i * n, true);
}

// p = e^(scale s - log) and ds = scale p (dp - along) for the n keys that a query sees, zeros up to `all`.
template <typename T> void weigh_back(const float* s, const float* dp, float scale, float log, float along, long n, long all, T* p, T* ds) {
    long j = 0;
    for (; j + LANES <= n; j += LANES) {
        Vec weight = exp_vec(load_vec(s + j) * scale - log);
        store_result(p + j, weight);
        store_result(ds + j, weight * (load_vec(dp + j) - along) * scale);
    }
    for (; j < n; j++) {
        float weight = expf(s[j] * scale - log);
        store(p + j, weight);
        store(ds + j, weight * (dp[j] - along) * scale);
    }
    memset(p + j, 0, sizeof(T) * (all - j));
    memset(ds + j, 0, sizeof(T) * (all - j));
}

// Rows of `width` numbers, each filled up with zeros to `room`.
template <typename T> void fill_rows(const T* from, long stride, long n, long width, long room, T* to) {
    for (long i = 0; i < n; i++) {
        memcpy(to + i * room, from + i * stride, sizeof(T) * width);
        memset(to + i * room + width, 0, sizeof(T) * (room - width));
    }
}

// drope = the sum over heads: all of them share the one rope key.
template <typename T> void sum_heads(const float* rope_sums, const Sizes& z, T* drope) {
#pragma omp for schedule(static)
    for (long i = 0; i < z.batch * z.keys; i++)
        for (long r = 0; r < z.rotary; r++) {
            float sum = 0;
            for (long h = 0; h < z.heads; h++) sum += rope_sums[((i / z.keys * z.heads + h) * z.keys + i % z.keys) * z.rotary + r];
            store(drope + i * z.rotary + r, sum);
        }
}

template <typename T>
void backward(Inputs<T> in, const T* out, const float* logs, const T* dout, T* dquery, T* dkey_value, T* drope, const Sizes& z, long threads) {
    long W = z.width(), R = z.template row<T>(), U = z.value, V = round_up(U, GRAIN<T>), heads = z.batch * z.heads;
    Scratch rope_memory(4 * heads * z.keys * z.rotary);
    float* rope_sums = rope_memory.as<float>();
#pragma omp parallel num_threads(threads)
    {
        long room = round_up(z.keys, PANEL) + PANEL, pads = panels_size<T>(W, room) + panels_size<T>(U, room) + panels_size<T>(room, W);
        Scratch memory(4 * (2 * BLOCK<T> * room + room * (W + U) + BLOCK<T> * W) +
                       sizeof(T) * (2 * BLOCK<T> * room + room * R + pads + BLOCK<T> * (R + V) + panels_size<T>(BLOCK<T>, W) +
                                    panels_size<T>(BLOCK<T>, U) + tile_size<T>(BLOCK<T>)));
        float *s = memory.as<float>(), *dp = s + BLOCK<T> * room, *dk = dp + BLOCK<T> * room, *dv = dk + room * W, *dq = dv + room * U;
        T *p = (T*)(dq + BLOCK<T> * W), *ds = p + BLOCK<T> * room, *k = ds + BLOCK<T> * room, *k_turned = k + room * R;
        T *v_turned = k_turned + panels_size<T>(W, room), *k_panels = v_turned + panels_size<T>(U, room), *q = k_panels + panels_size<T>(room, W);
        T *d = q + BLOCK<T> * R, *q_panels = d + BLOCK<T> * V, *d_panels = q_panels + panels_size<T>(BLOCK<T>, W),
          *tile = d_panels + panels_size<T>(BLOCK<T>, U);
#pragma omp for schedule(dynamic)
        for (long task = 0; task < heads; task++) {
            Head<T> head{in, z, task / z.heads, task % z.heads};
            head.fill_keys(z.keys, k);
            pack_all_transposed(MatrixRows<T>{k, R}, W, z.keys, k_turned);
            pack_all_transposed(head.values(), U, z.keys, v_turned);
            pack_all(MatrixRows<T>{k, R}, z.keys, W, k_panels);
            memset(dk, 0, 4 * z.keys * W);
            memset(dv, 0, 4 * z.keys * U);
            for (long start = 0; start < z.queries; start += BLOCK<T>) {
                long n = std::min(BLOCK<T>, z.queries - start), seen = z.keys - z.queries + start + n;
                long deep = round_up(seen, GRAIN<T>);
                head.fill_queries(start, n, q);
                long row = (head.b * z.queries + start) * z.heads + head.h;
                fill_rows(dout + row * U, z.heads * U, n, U, V, d);
                multiply(n, round_up(seen, PANEL), R, q, R, k_turned, s, room);
                multiply(n, round_up(seen, PANEL), V, d, V, v_turned, dp, room);
                for (long i = 0; i < n; i++) {
                    float along = dot(out + (row + i * z.heads) * U, d + i * V, U), log = logs[task * z.queries + start + i];
                    weigh_back(s + i * room, dp + i * room, z.scale, log, along, seen - n + i + 1, deep, p + i * room, ds + i * room);
                }
                multiply(n, W, deep, ds, room, k_panels, dq, W, false, z.keys);
                for (long i = 0; i < n; i++) {
                    T* to = dquery + (row + i * z.heads) * W;
                    long at = head.turn_at(start + i);
                    scale_row(dq + i * W, 1.f, z.content, to);
                    turn_row(dq + i * W + z.content, in.cos + at, in.sin + at, -1.f, z.rotary, to + z.content);
                }
                pack_all(MatrixRows<T>{q, R}, n, W, q_panels);
                pack_all(MatrixRows<T>{d, V}, n, U, d_panels);
                add_outer(MatrixRows<T>{p, room}, seen, d_panels, U, n, tile, dv);
                add_outer(MatrixRows<T>{ds, room}, seen, q_panels, W, n, tile, dk);
            }
            for (long t = 0; t < z.keys; t++) {
                T* to = dkey_value + (head.key_value(t) - in.key_value);
                scale_row(dk + t * W, 1.f, z.content, to);
                scale_row(dv + t * U, 1.f, U, to + z.content);
                memcpy(rope_sums + (task * z.keys + t) * z.rotary, dk + t * W + z.content, 4 * z.rotary);
            }
        }
        sum_heads(rope_sums, z, drope);
    }
}

template <typename T>
Inputs<T> inputs(const void* query, const void* key_value, const void* rope, long rope_stride, const void* cos, const void* sin) {
    return {(const T*)query, (const T*)key_value, (const T*)rope, rope_stride, (const float*)cos, (const float*)sin};
}
}  // namespace

EXPORT void attention_forward(int64_t is_bf16, const void* query, const void* key_value, const void* rope, int64_t rope_stride, const void* cos,
                              const void* sin, int64_t turn_stride, void* out, void* logs, int64_t batch, int64_t queries, int64_t keys,
                              int64_t heads, int64_t content, int64_t rotary, int64_t value, double scale, int64_t threads) {
    Sizes z{batch, queries, keys, heads, content, rotary, value, turn_stride, float(scale)};
    if (is_bf16) forward(inputs<bf16>(query, key_value, rope, rope_stride, cos, sin), (bf16*)out, (float*)logs, z, threads);
    else forward(inputs<float>(query, key_value, rope, rope_stride, cos, sin), (float*)out, (float*)logs, z, threads);
}

EXPORT void attention_backward(int64_t is_bf16, const void* query, const void* key_value, const void* rope, int64_t rope_stride, const void* cos,
                               const void* sin, int64_t turn_stride, const void* out, const void* logs, const void* dout, void* dquery,
                               void* dkey_value, void* drope, int64_t batch, int64_t queries, int64_t keys, int64_t heads, int64_t content,
                               int64_t rotary, int64_t value, double scale, int64_t threads) {
    Sizes z{batch, queries, keys, heads, content, rotary, value, turn_stride, float(scale)};
    if (is_bf16)
        backward(inputs<bf16>(query, key_value, rope, rope_stride, cos, sin), (const bf16*)out, (const float*)logs, (const bf16*)dout, (bf16*)dquery,
                 (bf16*)dkey_value, (bf16*)drope, z, threads);
    else
        backward(inputs<float>(query, key_value, rope, rope_stride, cos, sin), (const float*)out, (const float*)logs, (const float*)dout,
                 (float*)dquery, (float*)dkey_value, (float*)drope, z, threads);
}
