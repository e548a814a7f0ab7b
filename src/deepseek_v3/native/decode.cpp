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
// Activations are FP32 throughout. engine/native_step.py fills the structures of decode.hpp.
//
// Letters: B rows, S new tokens of one, N of all, M of which logits are wanted, T positions, D width, H heads, K content,
// R rotary, U value, C latent, W = C + R, Q query latent, E experts, A experts per token, F expert width, V vocabulary.
//
// Source: arXiv:2412.19437, Eqs. (1) to (23).
#include "decode_attention.hpp"
#include "router.hpp"

// The tokens of each chosen expert: its pairs are order[begin .. end), a pair is an index into chosen.
struct Plan {
    struct Run {
        int64_t expert, begin, end;
    };
    std::vector<Run> runs;
    std::vector<int64_t> order, start;
    std::vector<float*> from, to;  // per pair, sorted: the token's normed row, and its row of the residual stream
};

// T: of the weights; L: of the cache.
template <typename T, typename L> class Worker {
    const Model& m;
    const Stack& stack;
    const Call& call;
    Shared& shared;
    const int64_t N, W, index, threads;
    Buffer normed, query_latent, joined;
    Buffer scaled;  // for FP8 weights: activations times block scales
    LatentAttention<T, L> attention;
    Plan plan;
    std::vector<float*> a, b;
    std::vector<float> scratch;  // of the choice of experts
    int64_t routed = 0;          // layers with experts so far

  public:
    Worker(const Model& m, const Stack& stack, const Call& call, Shared& shared)
        : m(m), stack(stack), call(call), shared(shared), N(call.N), W(m.C + m.R), index(omp_get_thread_num()), threads(omp_get_num_threads()),
          normed(N, m.D), query_latent(N, m.Q), joined(stack.join ? N : 0, 2 * m.D), scaled(N, widest(m)), attention(m, call, shared, threads),
          scratch(m.E + m.groups) {}

    void run() {
        start();
        for (int64_t i = 0; i < stack.count; i++) {
            attend(stack.layers[i], (L*)call.cache + i * call.blocks * call.block_size * W);
            feed_forward(stack.layers[i]);
        }
        finish();
    }

  private:
    // Of the matrices that may be E4M3 codes.
    static int64_t widest(const Model& m) { return std::max({m.D, m.Q, m.C, m.H * m.U, m.F, m.dense_width}); }

    Range share(int64_t rows) const {
        int64_t blocks = (rows + ROWS - 1) / ROWS;
        return {std::min(rows, blocks * index / threads * ROWS), std::min(rows, blocks * (index + 1) / threads * ROWS)};
    }
    void sync() { shared.barrier.wait(threads); }
    bool mine(int64_t n) const { return n % threads == index; }

    void norm_rows(const void* weight, double eps, Rows x, Rows y, int64_t width) const {
        for (int64_t n = 0; n < N; n++) normalise_row<T>(x[n], weight, eps, y[n], width);
    }

    void start() {
        const T* table = (const T*)m.embedding;
        if (!stack.join) {
            Range columns = share(m.D);
            for (int64_t n = 0; n < N; n++)
                for (int64_t i = columns.begin; i < columns.end; i++) shared.x[n][i] = to_float(table[call.tokens[n] * m.D + i]);
        } else {
            const T* below = (const T*)call.below;
            for (int64_t n = 0; n < N; n++) {
                for (int64_t i = 0; i < m.D; i++) normed[n][i] = to_float(table[call.tokens[n] * m.D + i]);
                normalise_row<T>(normed[n], stack.embedding_norm, m.eps, joined[n], m.D);
                for (int64_t i = 0; i < m.D; i++) normed[n][i] = to_float(below[n * m.D + i]);
                normalise_row<T>(normed[n], stack.hidden_norm, m.eps, joined[n] + m.D, m.D);
            }
            multiply<false, T>(stack.join, share(m.D), 2 * m.D, joined, shared.x, N);  // V3 Eq. (21)
        }
        sync();
    }

    void attend(const Layer& layer, L* cache) {
        norm_rows(layer.input_norm, m.eps, shared.x, normed, m.D);
        const int64_t queries = m.H * (m.K + m.R);
        if (layer.query_down.data) multiply<false, T>(layer.query_down, share(m.Q), m.D, normed, shared.query_latent, N, scaled);  // V3 Eq. (6)
        else multiply<false, T>(layer.query_up, share(queries), m.D, normed, shared.query, N, scaled);                             // V2-Lite
        multiply<false, T>(layer.latent_down, share(W), m.D, normed, shared.latent, N, scaled);                                    // V3 Eqs. (1), (3)
        sync();
        for (int64_t n = 0; n < N; n++)
            if (mine(n)) attention.write_latent(layer, cache, n);
        if (layer.query_down.data) {
            norm_rows(layer.query_norm, m.latent_eps, shared.query_latent, query_latent, m.Q);
            multiply<false, T>(layer.query_up, share(queries), m.Q, query_latent, shared.query, N, scaled);  // V3 Eqs. (7), (8)
        }
        sync();
        const int64_t units = attention.units();
        for (int64_t u = units * index / threads; u < units * (index + 1) / threads; u++) attention.attend_unit(layer, cache, u);
        sync();
        multiply<true, T>(layer.out, share(m.D), m.H * m.U, shared.attended, shared.x, N, scaled);  // V3 Eq. (11)
        sync();
    }

    void feed_forward(const Layer& layer) {
        norm_rows(layer.post_norm, m.eps, shared.x, normed, m.D);
        if (layer.gate.data) {
            Range range = share(layer.dense_width);
            multiply<false, T>(layer.gate, range, m.D, normed, shared.gate, N, scaled);
            multiply<false, T>(layer.up, range, m.D, normed, shared.up, N, scaled);
            for (int64_t n = 0; n < N; n++) apply_gate(shared.gate[n], shared.up[n], 1, range);
        }
        if (layer.router) {
            score_rows(layer);
            sync();
            for (int64_t n = 0; n < N; n++)
                if (mine(n)) route(layer, n);
            routed++;
            sync();
            read_experts_up(layer);
        }
        sync();
        const Range columns = share(m.D);
        if (layer.router)
            for (const Plan::Run& run : plan.runs)
                multiply<true, T>(layer.expert_down.at<T>(run.expert, m.D, m.F), columns, m.F, shared.expert_gate + run.begin,
                                  plan.to.data() + run.begin, run.end - run.begin, scaled);
        if (layer.down.data) multiply<true, T>(layer.down, columns, layer.dense_width, shared.gate, shared.x, N, scaled);
        sync();
    }

    void score_rows(const Layer& layer) {
        if (layer.wide_router) multiply<false, float>(layer.router, share(m.E), m.D, normed, shared.score, N);
        else multiply<false, T>(layer.router, share(m.E), m.D, normed, shared.score, N);
    }

    // Choose a token's experts by biased score within the best groups, weigh them by the score itself.
    void route(const Layer& layer, int64_t n) {
        float* score = shared.score[n];
        int64_t* chosen = &shared.chosen[n * m.A];
        float* weight = &shared.chosen_weight[n * m.A];
        score_experts(score);
        const RoutingRule rule{m.E, m.A, m.groups, m.groups > 1 ? m.kept_groups : 1, m.sigmoid != 0};
        choose_experts_of(score, (const float*)layer.bias, rule, scratch.data(), scratch.data() + m.E, chosen);
        if (call.choices) std::copy_n(chosen, m.A, call.choices + (routed * N + n) * m.A);
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
        for (int64_t i = 0; i < pairs; i++) plan.start[shared.chosen[i] + 1]++;
        for (int64_t e = 0; e < m.E; e++) {
            if (plan.start[e + 1]) plan.runs.push_back({e, plan.start[e], plan.start[e] + plan.start[e + 1]});
            plan.start[e + 1] += plan.start[e];
        }
        for (int64_t i = 0; i < pairs; i++) {
            int64_t at = plan.start[shared.chosen[i]]++;
            plan.order[at] = i;
            plan.from[at] = normed[i / m.A];
            plan.to[at] = shared.x[i / m.A];
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
            multiply<false, T>(gate, range, m.D, from, shared.expert_gate + run.begin, count, scaled);
            multiply<false, T>(up, range, m.D, from, shared.expert_up + run.begin, count, scaled);
            for (int64_t i = run.begin; i < run.end; i++)
                apply_gate(shared.expert_gate[i], shared.expert_up[i], shared.chosen_weight[plan.order[i]], range);
        }
    }

    void finish() {
        norm_rows(stack.norm, m.eps, shared.x, normed, m.D);
        const Range columns = share(m.D);
        for (int64_t n = 0; n < N; n++)
            for (int64_t i = columns.begin; i < columns.end; i++) store((T*)call.hidden + n * m.D + i, normed[n][i]);
        a.clear();
        b.clear();
        for (int64_t i = 0; i < call.M; i++) {
            a.push_back(normed[call.wanted[i]]);
            b.push_back(call.logits + i * m.V);
        }
        multiply<false, T>(stack.head, share(m.V), m.D, a.data(), b.data(), (int64_t)a.size(), scaled);
    }
};

template <typename T, typename L> void decode(const Model& m, const Stack& stack, const Call& call) {
    Shared shared(m, call);
#pragma omp parallel num_threads(call.threads)
    Worker<T, L>(m, stack, call, shared).run();
}

EXPORT void decode_step(const Model* model, const Stack* stack, Call* call) {
    call->foreign = count_foreign_blocks(*call);
    if (call->foreign) return;
    if (model->bfloat16) call->bfloat16_cache ? decode<bf16, bf16>(*model, *stack, *call) : decode<bf16, float>(*model, *stack, *call);
    else call->bfloat16_cache ? decode<float, bf16>(*model, *stack, *call) : decode<float, float>(*model, *stack, *call);
}
