// Which thread packs an expert's weights, and which lets its rows meet them.
//
// Letters: those of experts.cpp.
#pragma once
#include "product.hpp"
#include <vector>

template <typename T> constexpr long BLOCK = 8 * TILE<T>;  // rows that go through an expert together, and stay in the second-level cache

struct Sizes {
    long tokens, width, hidden, experts, per_token, threads;
};

struct Run {  // rows [start, stop) of one expert
    long expert, start, stop;
};

// Who packs an expert's panels, and who lets its rows meet them. Where no expert has more than a small part of a thread's share,
// each is one thread's work, and its panels stay in that thread's cache. Else all panels are packed first, and runs of rows are
// shared out. The sums are the same.
template <typename T> class Sharing {
    const int64_t* counts;
    const long experts, tasks, size;
    std::vector<Run> runs;
    std::vector<long> first{0};  // of an expert's runs
    const bool alone;
    Scratch panels;

    static bool are_small(const int64_t* counts, const Sizes& z) {
        return *std::max_element(counts, counts + z.experts) * 8 * z.threads <= z.tokens * z.per_token;
    }

  public:
    // tasks: into which packing an expert falls; size: of its panels.
    Sharing(const int64_t* counts, const Sizes& z, long tasks, long size)
        : counts(counts), experts(z.experts), tasks(tasks), size(size), alone(are_small(counts, z)),
          panels(sizeof(T) * size * (alone ? z.threads : z.experts)) {
        for (long e = 0, start = 0; e < experts; start += counts[e++]) {
            for (long i = 0; i < counts[e]; i += BLOCK<T>) runs.push_back({e, start + i, start + std::min<long>(i + BLOCK<T>, counts[e])});
            first.push_back((long)runs.size());
        }
    }

    // Of every thread: pack(expert, task, to), and read(run, panels) for what is packed.
    template <typename Pack, typename Read> void run(Pack pack, Read read) {
        T* to = panels.as<T>();
        if (alone) {
            to += omp_get_thread_num() * size;
#pragma omp for schedule(dynamic)
            for (long e = 0; e < experts; e++) {
                for (long j = 0; j < tasks && counts[e]; j++) pack(e, j, to);
                for (long r = first[e]; r < first[e + 1]; r++) read(runs[r], to);
            }
            return;
        }
#pragma omp for schedule(dynamic, 4)
        for (long task = 0; task < experts * tasks; task++)
            if (counts[task / tasks]) pack(task / tasks, task % tasks, to + task / tasks * size);
#pragma omp for schedule(dynamic)
        for (long r = 0; r < (long)runs.size(); r++) read(runs[r], to + runs[r].expert * size);
    }
};
