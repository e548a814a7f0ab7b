// Latent attention of a decoding step: write the new tokens' latents into the cache, and attend to all that is there.
//
//     queries and context in the latent's space, so that all heads read it:      q . (W_UK latent) = (W_UK^T q) . latent
//
// Letters: those of decode.cpp.
// Source: arXiv:2412.19437, Eqs. (1) to (11); arXiv:2405.04434, section 2.1.
#pragma once
#include "decode.hpp"

constexpr int HEADS = 8;  // that read the latents together, at most

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
    Buffer query, score, context;
    Scratch lines;  // some rows of W_UK or W_UV, decoded
    std::vector<float*> at, part;

  public:
    LatentAttention(const Model& m, const Call& call, Shared& shared, int64_t threads)
        : m(m), call(call), shared(shared), W(m.C + m.R),
          group(std::min<int64_t>(HEADS, std::max<int64_t>(1, m.H * (int64_t)shared.reading.size() / threads))), query(group * shared.most, W),
          score(group * shared.most, shared.longest), context(group * shared.most, m.C), lines(sizeof(float) * std::max(m.K, m.U) * m.C) {}

    // Units of work: some heads of one row.
    int64_t units() const { return (m.H + group - 1) / group * (int64_t)shared.reading.size(); }
    void attend_unit(const Layer& layer, const L* cache, int64_t unit) {
        const int64_t rows = (int64_t)shared.reading.size();
        attend_heads(layer, cache, shared.reading[unit % rows], unit / rows * group);
    }

    // The normed latent and the rotated key of one token, into its slot.
    void write_latent(const Layer& layer, L* cache, int64_t n) {
        const int64_t position = shared.position[n], size = call.block_size;
        float *raw = shared.latent[n], *y = query[0];
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
                turn(at[s] + m.K, query[h * S + s] + m.C, shared.position[from + s]);
            }
            with_rows(layer.key_value_up, (first + h) * (m.K + m.U), m.K,
                      [&](auto up_key) { combine_rows(up_key, m.K, m.C, m.C, at.data(), 0, query + h * S, S); });
        }
        attend_latents(cache, row, heads * S);
        for (int64_t h = 0; h < heads; h++) {
            at.clear();
            for (int64_t s = 0; s < S; s++) at.push_back(shared.attended[from + s] + (first + h) * m.U);
            with_rows(layer.key_value_up, (first + h) * (m.K + m.U) + m.K, m.U, [&](auto up_value) {
                multiply<false, std::decay_t<decltype(*up_value)>>(up_value, {0, m.U}, m.C, context + h * S, at.data(), S);
            });
        }
    }

    // What the queries of a row see, block by block: f(its first position, how many, where they lie).
    template <typename F> void for_each_block(const L* cache, int64_t row, F f) const {
        const int64_t seen = call.lengths[row] + call.counts[row], size = call.block_size;
        for (int64_t p = 0; p < seen; p += size) f(p, std::min(size, seen - p), cache + call.tables[row][p / size] * size * W);
    }

    void attend_latents(const L* cache, int64_t row, int64_t queries) {
        const int64_t S = call.counts[row], seen = call.lengths[row] + S;
        part.resize(queries);
        for_each_block(cache, row, [&](int64_t p, int64_t n, const L* latent) {
            for (int64_t i = 0; i < queries; i++) part[i] = score[i] + p;
            multiply<false, L>(latent, {0, n}, W, query, part.data(), queries);
        });
        for (int64_t i = 0; i < queries; i++) softmax_row(score[i], call.lengths[row] + i % S + 1, seen, (float)m.softmax_scale);
        for_each_block(cache, row, [&](int64_t p, int64_t n, const L* latent) {
            combine_rows(latent, n, W, m.C, score, p, context, queries);  // V3 Eq. (10)
        });
    }
};
