// What a decoding step is told, and what its threads share: engine/native_step.py fills the first four structures.
//
// Letters: those of decode.cpp.
#pragma once
#include "barrier.hpp"
#include "rows.hpp"

struct Layer {  // addresses of weights; null where the layer has none
    const void *input_norm, *query_norm, *latent_norm, *post_norm, *router, *bias;
    Weight query_down, query_up, latent_down, key_value_up, out, expert_gate_up, expert_down, gate, up, down;
    int64_t dense_width;  // of gate, up and down: the dense layer's, or the shared experts'
    int64_t wide_router;  // in FP32, whatever the model is in
};

struct Model {
    const void* embedding;
    int64_t D, V, H, K, R, U, C, Q, E, A, F, groups, kept_groups, dense_width;
    int64_t bfloat16, sigmoid, normalise;
    double eps, latent_eps, softmax_scale, routed_scale;
};

struct Stack {  // the main model's layers, or a module's one
    const Layer* layers;
    int64_t count;
    const void *norm, *embedding_norm, *hidden_norm, *join;
    Weight head;  // a module's may be a copy in codes: it only drafts
};

// Rows have their tokens behind each other, each row as many as it has. Position p of a row lies in the block
// table[p / block_size] of its table.
struct Call {
    const int64_t *tokens, *lengths, *counts;  // [N], and of each row what is cached and what is new [B]
    const int64_t *const *tables, *wanted;     // of each row, and the tokens whose logits are wanted [M]
    const void* below;                         // [N, D], of a module: the hidden states one depth below
    void *cache, *hidden;                      // [layers, blocks, block_size, W], [N, D]
    float* logits;                             // [M, V]
    const float *cos, *sin;                    // [positions, R / 2]
    int64_t* choices;                          // [layers with experts, N, A], or null: which experts the tokens went to
    int64_t N, B, M, blocks, block_size, bfloat16_cache, threads;
    int64_t foreign;  // out: the number of blocks in tables that the cache does not have; then nothing is computed
};

// What all threads see of one step.
struct Shared {
    Barrier barrier;
    Buffer x, query_latent, query, latent, attended, score, gate, up, expert_gate, expert_up;
    std::vector<int64_t> chosen;  // [N, A]
    std::vector<float> chosen_weight;
    std::vector<int64_t> row, position;   // [N]
    std::vector<int64_t> first, reading;  // the first token of each row [B + 1], and the rows that have any
    int64_t most = 0;                     // new tokens of a row

    Shared(const Model& m, const Call& call)
        : x(call.N, m.D), query_latent(call.N, m.Q), query(call.N, m.H * (m.K + m.R)), latent(call.N, m.C + m.R), attended(call.N, m.H * m.U),
          score(call.N, m.E), gate(call.N, m.dense_width), up(call.N, m.dense_width), expert_gate(call.N * m.A, m.F), expert_up(call.N * m.A, m.F),
          chosen(call.N * m.A), chosen_weight(call.N * m.A), first{0} {
        for (int64_t b = 0; b < call.B; b++) {
            const int64_t count = call.counts[b];
            for (int64_t i = 0; i < count; i++) row.push_back(b), position.push_back(call.lengths[b] + i);
            first.push_back(first[b] + count);
            if (!count) continue;
            reading.push_back(b);
            most = std::max(most, count);
        }
    }
};

inline int64_t count_foreign_blocks(const Call& call) {
    int64_t foreign = 0;
    for (int64_t b = 0; b < call.B; b++)
        for (int64_t i = 0; i * call.block_size < call.lengths[b] + call.counts[b]; i++)
            foreign += call.tables[b][i] < 0 || call.tables[b][i] >= call.blocks;
    return foreign;
}
