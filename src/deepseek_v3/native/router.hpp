// Which experts a token goes to, for training and for decoding.
//
//     biased = score + bias      a group's worth: the sum of its best two (V3), or its best (V2)
//     chosen: the best A of the kept groups          of two equals the first one is taken
#pragma once
#include "numbers.hpp"

struct RoutingRule {
    int64_t experts, per_token, groups, kept;  // groups of which experts may be taken
    bool best_two;                             // V3's rule for a group
};

// The position of the greatest of n numbers.
inline int64_t greatest(const float* x, int64_t n) { return std::max_element(x, x + n) - x; }

// Choose one token's experts by score [E] and bias ([E] or null), into chosen [A]. biased [E] and worth [groups] are scratch.
inline void choose_experts_of(const float* score, const float* bias, const RoutingRule& rule, float* biased, float* worth, int64_t* chosen) {
    const int64_t members = rule.experts / rule.groups;
    for (int64_t e = 0; e < rule.experts; e++) biased[e] = score[e] + (bias ? bias[e] : 0.f);  // V3 Eq. (16)
    if (rule.kept < rule.groups) {
        for (int64_t g = 0; g < rule.groups; g++) {
            float first = -INFINITY, second = -INFINITY;
            for (int64_t e = g * members; e < (g + 1) * members; e++) {
                second = std::max(second, std::min(first, biased[e]));
                first = std::max(first, biased[e]);
            }
            worth[g] = rule.best_two ? first + second : first;
        }
        for (int64_t k = 0; k < rule.kept; k++) worth[greatest(worth, rule.groups)] = -INFINITY;
        for (int64_t e = 0; e < rule.experts; e++)
            if (worth[e / members] != -INFINITY) biased[e] = -INFINITY;
    }
    for (int64_t a = 0; a < rule.per_token; a++) {
        chosen[a] = greatest(biased, rule.experts);  // V3 Eq. (14)
        biased[chosen[a]] = -INFINITY;
    }
}
