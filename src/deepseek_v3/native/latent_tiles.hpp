// Attention of some queries to one tile of latents after the other, with a softmax that runs along.
//
//     s[q, t] = query_q . latent_t      m' = max(m, max_t s)      a = e^(scale (m - m'))      p = e^(scale (s - m'))
//     total = a total + sum_t p         context_q[c] = a context_q[c] + sum_t p[q, t] latent_t[c]
//
// Tiles begin at multiples of TILE positions, however the cache's blocks lie and whoever else reads: so every sum has one
// order. A tile is widened once and stays in the second-level cache while all queries read it.
//
// Letters: those of decode.cpp; t a position in a tile, q a query of one head, c a column.
#pragma once
#include "rows.hpp"

constexpr int TILE = 64;    // positions
constexpr int QUERIES = 4;  // that are read for together where columns are summed; their number is rounded up to it
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int SCORED = 4, SUMMED = 4;  // queries by four positions, and vectors of columns by four queries
#else
constexpr int SCORED = 3, SUMMED = 3;
#endif

inline int64_t whole_vectors(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

// Four positions by N queries; `width` is whole vectors.
template <int N> INLINE void score_four(Rows latent, Rows query, int64_t width, Rows score, int64_t t) {
    Vec sum[N][4] = {};
    const float* row[4] = {latent[t], latent[t + 1], latent[t + 2], latent[t + 3]};
    for (int64_t k = 0; k < width; k += LANES) {
        Vec numbers[4];
        for (int i = 0; i < 4; i++) numbers[i] = keep_loaded(row[i] + k);
        for (int q = 0; q < N; q++) {
            const Vec number = load_vec(query[q] + k);
            for (int i = 0; i < 4; i++) sum[q][i] = add_product(sum[q][i], numbers[i], number);
        }
    }
    for (int q = 0; q < N; q++) store_part(score[q] + t, sum_four(sum[q][0], sum[q][1], sum[q][2], sum[q][3]), 4);
}

// Of `width` scores, whole vectors.
inline float largest_of_vectors(const float* s, int64_t width) {
    Vec top = load_vec(s);
    for (int64_t t = LANES; t < width; t += LANES) top = load_vec(s + t) > top ? load_vec(s + t) : top;
    float largest = top[0];
    for (int i = 1; i < LANES; i++) largest = std::max(largest, top[i]);
    return largest;
}

// QUERIES queries by V vectors of columns from c on.
template <int V> INLINE void sum_columns(const float* latent, int64_t stride, int64_t n, Rows weight, const float* factor, Rows context, int64_t c) {
    Vec sum[QUERIES][V];
    for (int q = 0; q < QUERIES; q++)
        for (int v = 0; v < V; v++) sum[q][v] = load_vec(context[q] + c + v * LANES) * splat(factor[q]);
    for (int64_t t = 0; t < n; t++, latent += stride) {
        Vec numbers[V];
        for (int v = 0; v < V; v++) numbers[v] = keep_loaded(latent + c + v * LANES);
        for (int q = 0; q < QUERIES; q++)
            for (int v = 0; v < V; v++) sum[q][v] = add_product(sum[q][v], numbers[v], splat(weight[q][t]));
    }
    for (int q = 0; q < QUERIES; q++)
        for (int v = 0; v < V; v++) store_vec(context[q] + c + v * LANES, sum[q][v]);
}

// The queries of some heads of a row, and what they have seen so far.
class Attending {
    const int64_t W, C;
    const float softmax_scale;
    int64_t queries = 0;

  public:
    Buffer query, tile;  // [queries, W], [TILE, W]; zeros behind W

  private:
    Buffer score, context;
    std::vector<float> largest, total, factor;

  public:
    Attending(int64_t most, int64_t W, int64_t C, float softmax_scale)
        : W(whole_vectors(W)), C(whole_vectors(C)), softmax_scale(softmax_scale), query(round(most), this->W), tile(TILE, this->W),
          score(round(most), TILE), context(round(most), this->C), largest(round(most)), total(round(most)), factor(round(most)) {
        clear(query, 0, round(most), this->W);
        clear(tile, 0, TILE, this->W);
    }

    // Begin with as many queries as stand in `query`.
    void begin(int64_t count) {
        queries = round(count);
        clear(context, 0, queries, C);
        std::fill_n(largest.begin(), queries, -INFINITY);
        std::fill_n(total.begin(), queries, 0.0f);
    }

    // Read the n latents in `tile`. Of query q the first see(q) of them are visible, perhaps none, or more than there are.
    template <typename F> void read(int64_t n, F see) {
        for (int64_t t = 0; t < n; t += 4)
            for (int64_t q = 0, count; q < queries; q += count) {
                count = queries - q == 4 && SCORED == 3 ? 2 : std::min<int64_t>(SCORED, queries - q);
                if (count == SCORED) score_four<SCORED>(tile, query + q, W, score + q, t);
                else if (count == 2) score_four<2>(tile, query + q, W, score + q, t);
                else score_four<1>(tile, query + q, W, score + q, t);
            }
        for (int64_t q = 0; q < queries; q++) weigh(q, std::clamp<int64_t>(see(q), 0, n), whole_vectors(n));
        int64_t c = 0;
        for (; c + SUMMED * LANES <= C; c += SUMMED * LANES) add_columns<SUMMED>(n, c);
        for (; c + 2 * LANES <= C; c += 2 * LANES) add_columns<2>(n, c);
        if (c < C) add_columns<1>(n, c);
    }

    // The weighted sums, one a query.
    Rows finish() {
        for (int64_t q = 0; q < queries; q++) scale_up(context[q], 1 / total[q], C, context[q]);
        return context;
    }

  private:
    static int64_t round(int64_t count) { return (count + QUERIES - 1) / QUERIES * QUERIES; }
    static void clear(Rows rows, int64_t first, int64_t end, int64_t width) {
        for (int64_t i = first; i < end; i++) std::fill_n(rows[i], width, 0.0f);
    }

    template <int V> void add_columns(int64_t n, int64_t c) {
        for (int64_t q = 0; q < queries; q += QUERIES) sum_columns<V>(tile[0], tile[1] - tile[0], n, score + q, factor.data() + q, context + q, c);
    }

    // The first `visible` scores of a tile become weights, the others 0, as far as `width`: what lies behind would add zeros.
    // In one copy: in another GCC might fuse other operations.
    __attribute__((noinline)) void weigh(int64_t q, int64_t visible, int64_t width) {
        float* s = score[q];
        const Vec scale = splat(softmax_scale);
        std::fill(s + visible, s + width, -INFINITY);
        const float before = largest[q], top = std::max(before, largest_of_vectors(s, width));
        for (int64_t t = 0; t < width; t += LANES) store_vec(s + t, exp_vec((load_vec(s + t) - splat(top)) * scale));
        std::fill(s + visible, s + width, 0.0f);
        Vec sum = {};
        for (int64_t t = 0; t < width; t += LANES) sum += load_vec(s + t);
        factor[q] = exp_vec((splat(before) - splat(top)) * scale)[0];
        total[q] = total[q] * factor[q] + sum_lanes(sum);
        largest[q] = top;
    }
};
