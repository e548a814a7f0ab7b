// The choice of experts of many tokens, and where their rows lie when all rows are sorted by expert.
#include "router.hpp"

// score [N, E] FP32; bias [E] FP32 or null; index [N, A]
EXPORT void choose_experts(const float* score, const float* bias, int64_t* index, int64_t tokens, int64_t experts, int64_t per_token, int64_t groups,
                           int64_t kept, int64_t best_two, int64_t threads) {
    const RoutingRule rule{experts, per_token, groups, kept, best_two != 0};
#pragma omp parallel num_threads(threads)
    {
        Scratch memory(4 * (experts + groups));
        float* biased = memory.as<float>();
#pragma omp for schedule(static)
        for (long n = 0; n < tokens; n++) choose_experts_of(score + n * experts, bias, rule, biased, biased + experts, index + n * per_token);
    }
}

// Sort the rows by expert, within an expert by token: token [M] of each sorted row, row [N, A] of each copy, counts [E].
EXPORT void sort_by_expert(const int64_t* index, int64_t* token, int64_t* row, int64_t* counts, int64_t rows, int64_t experts, int64_t per_token) {
    Scratch memory(sizeof(int64_t) * experts);
    int64_t* next = memory.as<int64_t>();
    for (long e = 0; e < experts; e++) counts[e] = 0;
    for (long i = 0; i < rows; i++) counts[index[i]]++;
    for (long e = 0, start = 0; e < experts; start += counts[e++]) next[e] = start;
    for (long i = 0; i < rows; i++) {
        long to = next[index[i]]++;
        token[to] = i / per_token;
        row[i] = to;
    }
}
