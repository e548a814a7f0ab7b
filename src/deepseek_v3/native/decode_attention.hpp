// Latent attention of a decoding step: write the new tokens' latents into the cache, and attend to all that is there.
//
//     queries and context in the latent's space, so that all heads read it:      q . (W_UK latent) = (W_UK^T q) . latent
//
// Letters: those of decode.cpp.
// Source: arXiv:2412.19437, Eqs. (1) to (11); arXiv:2405.04434, section 2.1.
#pragma once
#include "decode.hpp"
#include "latent_tiles.hpp"

constexpr int HEADS = 16;  // that read the latents together, at most

inline void rotate(const float* x, const float* cos, const float* sin, float* y, int64_t width) {
    for (int64_t i = 0; i < width / 2; i++) {
        float a = x[2 * i], b = x[2 * i + 1];
        y[2 * i] = a * cos[i] - b * sin[i];
        y[2 * i + 1] = a * sin[i] + b * cos[i];
    }
}

// One thread's part. T: of the weights; L: of the cache.
template <typename T, typename L> class LatentAttention {
    const Model& m;
    const Call& call;
    Shared& shared;
    const int64_t W, group;  // heads that read the latents together: as many as leave work for every thread
    Attending attending;
    Scratch lines;  // some rows of W_UK or W_UV, decoded
    std::vector<float*> at;

  public:
    LatentAttention(const Model& m, const Call& call, Shared& shared, int64_t threads)
        : m(m), call(call), shared(shared), W(m.C + m.R),
          group(std::min<int64_t>(HEADS, std::max<int64_t>(1, m.H * (int64_t)shared.reading.size() / threads))),
          attending(group * shared.most, W, m.C, (float)m.softmax_scale), lines(sizeof(float) * std::max(m.K, m.U) * m.C) {}

    // Units of work: some heads of one row.
    int64_t units() const { return (m.H + group - 1) / group * (int64_t)shared.reading.size(); }
    void attend_unit(const Layer& layer, const L* cache, int64_t unit) {
        const int64_t rows = (int64_t)shared.reading.size();
        attend_heads(layer, cache, shared.reading[unit % rows], unit / rows * group);
    }

    // The normed latent and the rotated key of one token, into its slot.
    void write_latent(const Layer& layer, L* cache, int64_t n) {
        const int64_t position = shared.position[n], size = call.block_size;
        float *raw = shared.latent[n], *y = attending.query[0];
        L* slot = cache + (call.tables[shared.row[n]][position / size] * size + position % size) * W;
        normalise_row<T>(raw, layer.latent_norm, m.latent_eps, y, m.C);
        for (int64_t i = 0; i < m.C; i++) store(slot + i, y[i]);
        turn(raw + m.C, y, position);
        for (int64_t i = 0; i < m.R; i++) store(slot + m.C + i, y[i]);
    }

  private:
    // Some rows of W_UK or W_UV as numbers, and what f makes of them.
    template <typename F> void with_rows(Weight weight, int64_t first, int64_t n, F f) {
        if (!weight.scale) return f((const T*)weight.data + first * m.C);
        decode_rows(weight, m.C, first, n, lines.as<float>());
        f((const float*)lines.as<float>());
    }

    void turn(const float* x, float* y, int64_t position) const { rotate(x, call.cos + position * m.R / 2, call.sin + position * m.R / 2, y, m.R); }

    // A few heads of one row: its S queries per head against its latents.
    void attend_heads(const Layer& layer, const L* cache, int64_t row, int64_t first) {
        const int64_t S = call.counts[row], from = shared.first[row], heads = std::min(group, m.H - first);
        for (int64_t h = 0; h < heads; h++) {
            at.clear();
            for (int64_t s = 0; s < S; s++) {
                at.push_back(shared.query[from + s] + (first + h) * (m.K + m.R));
                turn(at[s] + m.K, attending.query[h * S + s] + m.C, shared.position[from + s]);
            }
            with_rows(layer.key_value_up, (first + h) * (m.K + m.U), m.K,
                      [&](auto up_key) { combine_rows(up_key, m.K, m.C, m.C, at.data(), 0, attending.query + h * S, S); });
        }
        Rows context = attend_latents(cache, row, heads * S);
        for (int64_t h = 0; h < heads; h++) {
            at.clear();
            for (int64_t s = 0; s < S; s++) at.push_back(shared.attended[from + s] + (first + h) * m.U);
            with_rows(layer.key_value_up, (first + h) * (m.K + m.U) + m.K, m.U, [&](auto up_value) {
                multiply<false, std::decay_t<decltype(*up_value)>>(up_value, {0, m.U}, m.C, context + h * S, at.data(), S);
            });
        }
    }

    // Some latents of a row, from a position on, as FP32 numbers.
    void widen_latents(const L* cache, int64_t row, int64_t start, int64_t n) {
        const int64_t size = call.block_size, *table = call.tables[row];
        for (int64_t t = 0, run; t < n; t += run) {
            const int64_t in_block = (start + t) % size;
            const L* from = cache + (table[(start + t) / size] * size + in_block) * W;
            run = std::min(n - t, size - in_block);
            for (int64_t i = t; i < t + run; i++, from += W) widen_row(from, attending.tile[i]);
        }
    }

    void widen_row(const L* from, float* to) const {
        constexpr int LINE = 64 / sizeof(L);
        int64_t i = 0;
        for (; i + LINE <= W; i += LINE) {
            read_ahead(from + i);
            for (int v = 0; v < LINE; v += LANES) store_vec(to + i + v, load_vec(from + i + v));
        }
        for (; i + LANES <= W; i += LANES) store_vec(to + i, load_vec(from + i));
        for (; i < W; i++) to[i] = to_float(from[i]);
    }

    Rows attend_latents(const L* cache, int64_t row, int64_t queries) {
        const int64_t S = call.counts[row], seen = call.lengths[row] + S;
        attending.begin(queries);
        for (int64_t start = 0; start < seen; start += TILE) {
            const int64_t n = std::min<int64_t>(TILE, seen - start);
            widen_latents(cache, row, start, n);
            attending.read(n, [&](int64_t q) { return call.lengths[row] + q % S + 1 - start; });  // V3 Eq. (10)
        }
        return attending.finish();
    }
};
