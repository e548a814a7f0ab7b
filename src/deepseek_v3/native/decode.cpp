// One decoding step of the model, or of an MTP module, in one call: latent attention, router, experts, head.
//
//     x = Emb(t)                                 or of a module: x = eh_proj [enorm(Emb(t)) ; hnorm(h)]
//     x += o_proj(attention(norm(x)))            queries and context in the latent's space, so that all heads read it:
//                                                q . (W_UK latent) = (W_UK^T q) . latent
//     x += sum_e w_e expert_e(norm(x)) + shared(norm(x))
//     logits = head(norm(x))
//
// What bounds it is reading the weights. Each thread takes its share of every matrix's rows; where one needs what the
// others have computed, all wait for each other (a barrier). The norms are so cheap that every thread does its own.
// Activations are FP32 throughout. serving/native_step.py fills the structures below.
//
// Letters: B rows, S new tokens of each, N = B * S, T slots, D width, H heads, K content, R rotary, U value, C latent,
// W = C + R, Q query latent, E experts, A experts per token, F expert width, V vocabulary.
// Source: arXiv:2412.19437, Eqs. (1) to (23).
#include "meeting.hpp"
#include "router.hpp"
#include "rows.hpp"

constexpr int HEADS = 8;  // that read the latents together, at most

struct Layer {  // addresses of weights; null where the layer has none
    const void *input_norm, *query_norm, *latent_norm, *post_norm, *router, *bias;
    Weight query_down, query_up, latent_down, key_value_up, out, expert_gate_up, expert_down, gate, up, down;
    int64_t dense_width;  // of gate, up and down: the dense layer's, or the shared experts'
};

struct Model {
    const void *embedding, *head;
    int64_t D, V, H, K, R, U, C, Q, E, A, F, groups, kept_groups, dense_width;
    int64_t bfloat16, sigmoid, normalise;
    double eps, latent_eps, softmax_scale, routed_scale;
};

struct Stack {  // the main model's layers, or a module's one
    const Layer* layers;
    int64_t count;
    const void *norm, *embedding_norm, *hidden_norm, *join;
};

struct Call {
    const int64_t *tokens, *lengths;  // [N], and of each row what is cached [B]
    const void* below;                // [N, D], of a module: the hidden states one depth below
    void *cache, *hidden;             // [layers, B, capacity, W], [N, D]
    float* logits;                    // [N, V], of a module [B, V]
    const float *cos, *sin;           // [capacity, R / 2]
    int64_t B, S, capacity, bfloat16_cache, threads;
};

// What all threads see.
struct Board {
    Meeting meeting;
    Buffer x, query_latent, query, latent, attended, score, gate, up, expert_gate, expert_up;
    std::vector<int64_t> chosen;  // [N, A]
    std::vector<float> chosen_weight;
    Board(const Model& m, int64_t N)
        : x(N, m.D), query_latent(N, m.Q), query(N, m.H * (m.K + m.R)), latent(N, m.C + m.R), attended(N, m.H * m.U), score(N, m.E),
          gate(N, m.dense_width), up(N, m.dense_width), expert_gate(N * m.A, m.F), expert_up(N * m.A, m.F), chosen(N * m.A), chosen_weight(N * m.A) {}
};

// The tokens of each chosen expert: its pairs are order[begin .. end), a pair is an index into chosen.
struct Plan {
    struct Run {
        int64_t expert, begin, end;
    };
    std::vector<Run> runs;
    std::vector<int64_t> order, start;
    std::vector<float*> from, to;  // per pair, sorted: the token's normed row, and its row of the residual stream
};

inline void rotate(const float* x, const float* cos, const float* sin, float* y, int64_t width) {
    for (int64_t i = 0; i < width / 2; i++) {
        float a = x[2 * i], b = x[2 * i + 1];
        y[2 * i] = a * cos[i] - b * sin[i];
        y[2 * i + 1] = a * sin[i] + b * cos[i];
    }
}

// T: of the weights; L: of the cache.
template <typename T, typename L> class Worker {
    const Model& m;
    const Stack& stack;
    const Call& call;
    Board& board;
    const int64_t N, W, index, threads;
    int64_t group, longest;
    Buffer normed, query_latent, joined, query, score, context;
    Plan plan;
    Buffer scaled;  // for FP8 weights: activations times block scales
    Scratch lines;  // and some rows of W_UK or W_UV
    std::vector<float*> a, b;
    std::vector<float> scratch;  // of the choice of experts

  public:
    Worker(const Model& m, const Stack& stack, const Call& call, Board& board, int64_t longest)
        : m(m), stack(stack), call(call), board(board), N(call.B * call.S), W(m.C + m.R), index(omp_get_thread_num()), threads(omp_get_num_threads()),
          group(heads_together()), longest(longest), normed(N, m.D), query_latent(N, m.Q), joined(stack.join ? N : 0, 2 * m.D),
          query(group * call.S, W), score(group * call.S, longest), context(group * call.S, m.C), scaled(N, widest(m)),
          lines(sizeof(float) * std::max(m.K, m.U) * m.C), scratch(m.E + m.groups) {}

    void run() {
        start();
        for (int64_t i = 0; i < stack.count; i++) {
            attend(stack.layers[i], (L*)call.cache + i * call.B * call.capacity * W);
            feed_forward(stack.layers[i]);
        }
        finish();
    }

  private:
    // Heads that read the latents together: as many as leave work for every thread.
    int64_t heads_together() const { return std::min<int64_t>(HEADS, std::max<int64_t>(1, m.H * call.B / threads)); }

    // Of the matrices that may be E4M3 codes.
    static int64_t widest(const Model& m) { return std::max({m.D, m.Q, m.C, m.H * m.U, m.F, m.dense_width}); }

    Range share(int64_t rows) const {
        int64_t blocks = (rows + ROWS - 1) / ROWS;
        return {std::min(rows, blocks * index / threads * ROWS), std::min(rows, blocks * (index + 1) / threads * ROWS)};
    }
    void meet() { board.meeting.wait(threads); }
    bool mine(int64_t n) const { return n % threads == index; }
    int64_t cached(int64_t n) const { return call.lengths[n / call.S] + n % call.S; }  // = the token's position

    void norm_rows(const void* weight, double eps, Rows x, Rows y, int64_t width) const {
        for (int64_t n = 0; n < N; n++) normalise_row<T>(x[n], weight, eps, y[n], width);
    }

    void start() {
        const T* table = (const T*)m.embedding;
        if (!stack.join) {
            Range columns = share(m.D);
            for (int64_t n = 0; n < N; n++)
                for (int64_t i = columns.begin; i < columns.end; i++) board.x[n][i] = to_float(table[call.tokens[n] * m.D + i]);
        } else {
            const T* below = (const T*)call.below;
            for (int64_t n = 0; n < N; n++) {
                for (int64_t i = 0; i < m.D; i++) normed[n][i] = to_float(table[call.tokens[n] * m.D + i]);
                normalise_row<T>(normed[n], stack.embedding_norm, m.eps, joined[n], m.D);
                for (int64_t i = 0; i < m.D; i++) normed[n][i] = to_float(below[n * m.D + i]);
                normalise_row<T>(normed[n], stack.hidden_norm, m.eps, joined[n] + m.D, m.D);
            }
            multiply<false, T>(stack.join, share(m.D), 2 * m.D, joined, board.x, N);  // V3 Eq. (21)
        }
        meet();
    }

    void attend(const Layer& layer, L* cache) {
        norm_rows(layer.input_norm, m.eps, board.x, normed, m.D);
        const int64_t queries = m.H * (m.K + m.R);
        if (layer.query_down.data) multiply<false, T>(layer.query_down, share(m.Q), m.D, normed, board.query_latent, N, scaled);  // V3 Eq. (6)
        else multiply<false, T>(layer.query_up, share(queries), m.D, normed, board.query, N, scaled);                             // V2-Lite
        multiply<false, T>(layer.latent_down, share(W), m.D, normed, board.latent, N, scaled);                                    // V3 Eqs. (1), (3)
        meet();
        for (int64_t n = 0; n < N; n++)
            if (mine(n)) write_latent(layer, cache, n);
        if (layer.query_down.data) {
            norm_rows(layer.query_norm, m.latent_eps, board.query_latent, query_latent, m.Q);
            multiply<false, T>(layer.query_up, share(queries), m.Q, query_latent, board.query, N, scaled);  // V3 Eqs. (7), (8)
        }
        meet();
        const int64_t groups = (m.H + group - 1) / group, units = groups * call.B;
        for (int64_t u = units * index / threads; u < units * (index + 1) / threads; u++) attend_heads(layer, cache, u % call.B, u / call.B * group);
        meet();
        multiply<true, T>(layer.out, share(m.D), m.H * m.U, board.attended, board.x, N, scaled);  // V3 Eq. (11)
        meet();
    }

    // The normed latent and the rotated key of one token, into its slot.
    void write_latent(const Layer& layer, L* cache, int64_t n) {
        float *raw = board.latent[n], *y = query[0];
        L* slot = cache + (n / call.S * call.capacity + cached(n)) * W;
        normalise_row<T>(raw, layer.latent_norm, m.latent_eps, y, m.C);
        for (int64_t i = 0; i < m.C; i++) store(slot + i, y[i]);
        turn(raw + m.C, y, n);
        for (int64_t i = 0; i < m.R; i++) store(slot + m.C + i, y[i]);
    }

    // Some rows of W_UK or W_UV as numbers, and what f makes of them.
    template <typename F> void with_rows(Weight weight, int64_t first, int64_t n, F f) {
        if (!weight.scale) return f((const T*)weight.data + first * m.C);
        decode_rows(weight, m.C, first, n, lines.as<float>());
        f((const float*)lines.as<float>());
    }

    void turn(const float* x, float* y, int64_t n) const { rotate(x, call.cos + cached(n) * m.R / 2, call.sin + cached(n) * m.R / 2, y, m.R); }

    // A few heads of one row: its S queries per head against its latents.
    void attend_heads(const Layer& layer, const L* cache, int64_t row, int64_t first) {
        const int64_t S = call.S, heads = std::min(group, m.H - first), slots = call.lengths[row] + S;
        const L* latent = cache + row * call.capacity * W;
        for (int64_t h = 0; h < heads; h++) {
            a.clear();
            for (int64_t s = 0; s < S; s++) {
                a.push_back(board.query[row * S + s] + (first + h) * (m.K + m.R));
                turn(a[s] + m.K, query[h * S + s] + m.C, row * S + s);
            }
            with_rows(layer.key_value_up, (first + h) * (m.K + m.U), m.K,
                      [&](auto up_key) { combine_rows(up_key, m.K, m.C, m.C, a.data(), query + h * S, S); });
        }
        multiply<false, L>(latent, {0, slots}, W, query, score, heads * S);
        for (int64_t i = 0; i < heads * S; i++) softmax_row(score[i], call.lengths[row] + i % S + 1, slots, (float)m.softmax_scale);
        combine_rows(latent, slots, W, m.C, score, context, heads * S);  // V3 Eq. (10)
        for (int64_t h = 0; h < heads; h++) {
            a.clear();
            for (int64_t s = 0; s < S; s++) a.push_back(board.attended[row * S + s] + (first + h) * m.U);
            with_rows(layer.key_value_up, (first + h) * (m.K + m.U) + m.K, m.U, [&](auto up_value) {
                multiply<false, std::decay_t<decltype(*up_value)>>(up_value, {0, m.U}, m.C, context + h * S, a.data(), S);
            });
        }
    }

    void feed_forward(const Layer& layer) {
        norm_rows(layer.post_norm, m.eps, board.x, normed, m.D);
        if (layer.gate.data) {
            Range range = share(layer.dense_width);
            multiply<false, T>(layer.gate, range, m.D, normed, board.gate, N, scaled);
            multiply<false, T>(layer.up, range, m.D, normed, board.up, N, scaled);
            for (int64_t n = 0; n < N; n++) apply_gate(board.gate[n], board.up[n], 1, range);
        }
        if (layer.router) {
            multiply<false, T>(layer.router, share(m.E), m.D, normed, board.score, N);
            meet();
            for (int64_t n = 0; n < N; n++)
                if (mine(n)) route(layer, n);
            meet();
            read_experts_up(layer);
        }
        meet();
        const Range columns = share(m.D);
        if (layer.router)
            for (const Plan::Run& run : plan.runs)
                multiply<true, T>(layer.expert_down.at<T>(run.expert, m.D, m.F), columns, m.F, board.expert_gate + run.begin,
                                  plan.to.data() + run.begin, run.end - run.begin, scaled);
        if (layer.down.data) multiply<true, T>(layer.down, columns, layer.dense_width, board.gate, board.x, N, scaled);
        meet();
    }

    // Choose a token's experts by biased score within the best groups, weigh them by the score itself.
    void route(const Layer& layer, int64_t n) {
        float* score = board.score[n];
        int64_t* chosen = &board.chosen[n * m.A];
        float* weight = &board.chosen_weight[n * m.A];
        score_experts(score);
        const RoutingRule rule{m.E, m.A, m.groups, m.groups > 1 ? m.kept_groups : 1, m.sigmoid != 0};
        choose_experts_of(score, (const float*)layer.bias, rule, scratch.data(), scratch.data() + m.E, chosen);
        float total = 0;
        for (int64_t i = 0; i < m.A; i++) total += weight[i] = score[chosen[i]];
        for (int64_t i = 0; i < m.A; i++) {
            if (m.normalise) weight[i] /= total + 1e-20f;  // V3 Eq. (13)
            weight[i] *= (float)m.routed_scale;
        }
    }

    void score_experts(float* score) const {
        if (!m.sigmoid) return softmax_row(score, m.E, m.E, 1);
        for (int64_t e = 0; e < m.E; e++) score[e] = 1 / (1 + std::exp(-score[e]));  // V3 Eq. (15)
    }

    // Sort the chosen pairs by expert, within an expert by token.
    void make_plan() {
        const int64_t pairs = N * m.A;
        plan.start.assign(m.E + 1, 0);
        plan.order.resize(pairs);
        plan.from.resize(pairs);
        plan.to.resize(pairs);
        plan.runs.clear();
        for (int64_t i = 0; i < pairs; i++) plan.start[board.chosen[i] + 1]++;
        for (int64_t e = 0; e < m.E; e++) {
            if (plan.start[e + 1]) plan.runs.push_back({e, plan.start[e], plan.start[e] + plan.start[e + 1]});
            plan.start[e + 1] += plan.start[e];
        }
        for (int64_t i = 0; i < pairs; i++) {
            int64_t at = plan.start[board.chosen[i]]++;
            plan.order[at] = i;
            plan.from[at] = normed[i / m.A];
            plan.to[at] = board.x[i / m.A];
        }
    }

    void read_experts_up(const Layer& layer) {
        make_plan();
        const Range range = share(m.F);
        for (const Plan::Run& run : plan.runs) {
            const Weight gate = layer.expert_gate_up.at<T>(2 * run.expert, m.F, m.D);
            const Weight up = layer.expert_gate_up.at<T>(2 * run.expert + 1, m.F, m.D);
            float* const* from = plan.from.data() + run.begin;
            const int64_t count = run.end - run.begin;
            multiply<false, T>(gate, range, m.D, from, board.expert_gate + run.begin, count, scaled);
            multiply<false, T>(up, range, m.D, from, board.expert_up + run.begin, count, scaled);
            for (int64_t i = run.begin; i < run.end; i++)
                apply_gate(board.expert_gate[i], board.expert_up[i], board.chosen_weight[plan.order[i]], range);
        }
    }

    void finish() {
        norm_rows(stack.norm, m.eps, board.x, normed, m.D);
        const Range columns = share(m.D);
        for (int64_t n = 0; n < N; n++)
            for (int64_t i = columns.begin; i < columns.end; i++) store((T*)call.hidden + n * m.D + i, normed[n][i]);
        const int64_t step = stack.join ? call.S : 1;  // of a module only each row's last logits are wanted
        a.clear();
        b.clear();
        for (int64_t n = step - 1; n < N; n += step) {
            a.push_back(normed[n]);
            b.push_back(call.logits + n / step * m.V);
        }
        multiply<false, T>(m.head, share(m.V), m.D, a.data(), b.data(), (int64_t)a.size());
    }
};

template <typename T, typename L> void decode(const Model& m, const Stack& stack, const Call& call) {
    Board board(m, call.B * call.S);
    const int64_t longest = *std::max_element(call.lengths, call.lengths + call.B) + call.S;
#pragma omp parallel num_threads(call.threads)
    Worker<T, L>(m, stack, call, board, longest).run();
}

EXPORT void decode_step(const Model* model, const Stack* stack, const Call* call) {
    if (model->bfloat16) call->bfloat16_cache ? decode<bf16, bf16>(*model, *stack, *call) : decode<bf16, float>(*model, *stack, *call);
    else call->bfloat16_cache ? decode<float, bf16>(*model, *stack, *call) : decode<float, float>(*model, *stack, *call);
}
