// Which experts a token goes to, and where its rows lie when all rows are sorted by expert.
//
//     biased = score + bias      a group's worth: the sum of its best two (V3), or its best (V2)
//     chosen: the best A of the kept groups          of two equals the first one is taken
#include "numbers.hpp"

namespace {
// The position of the greatest of n numbers.
inline long greatest(const float* x, long n) {
    long best = 0;
    for (long i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return best;
}
}  // namespace

// score [N, E] FP32; bias [E] FP32 or null; index [N, A]. kept: groups of which experts may be taken; best_two: V3's rule.
EXPORT void choose_experts(const float* score, const float* bias, int64_t* index, int64_t tokens, int64_t experts, int64_t per_token,
                           int64_t groups, int64_t kept, int64_t best_two, int64_t threads) {
    long members = experts / groups;
#pragma omp parallel num_threads(threads)
    {
        Scratch memory(4 * (experts + groups));
        float *biased = memory.as<float>(), *worth = biased + experts;
#pragma omp for schedule(static)
        for (long n = 0; n < tokens; n++) {
            for (long e = 0; e < experts; e++) biased[e] = score[n * experts + e] + (bias ? bias[e] : 0.f);
            if (kept < groups) {
                for (long g = 0; g < groups; g++) {
                    float first = -INFINITY, second = -INFINITY;
                    for (long e = g * members; e < (g + 1) * members; e++) {
                        float x = biased[e], low = std::min(first, x);
                        first = std::max(first, x);
                        second = std::max(second, low);
                    }
                    worth[g] = best_two ? first + second : first;
                }
                for (long k = 0; k < kept; k++) worth[greatest(worth, groups)] = -INFINITY;
                for (long g = 0; g < groups; g++)
                    if (worth[g] != -INFINITY)
                        for (long e = g * members; e < (g + 1) * members; e++) biased[e] = -INFINITY;
            }
            for (long a = 0; a < per_token; a++) {
                long e = greatest(biased, experts);
                index[n * per_token + a] = e;
                biased[e] = -INFINITY;
            }
        }
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
