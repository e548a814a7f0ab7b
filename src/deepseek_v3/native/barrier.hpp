// Where threads wait for each other, some fifty times a decoding step.
//
// A thread that waits spins for a while, then sleeps. OpenMP's own barrier spins for a millisecond: where other programs
// want the cores too, the thread that all wait for is kept from the very core on which the others spin. On a busy machine
// a step of eight rows took 12 ms instead of 48, on a quiet one it makes no difference.
#pragma once
#include <atomic>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

constexpr int SPINS = 500;  // some ten microseconds

class Barrier {
    std::atomic<int> arrived{0}, sleeping{0};
    alignas(64) std::atomic<int> round{0};

    static void pause() {
#if defined(__x86_64__)
        _mm_pause();
#endif
    }
    void futex(int operation, int value) { syscall(SYS_futex, (int*)&round, operation | FUTEX_PRIVATE_FLAG, value, nullptr, nullptr, 0); }

  public:
    void wait(int64_t threads) {
        const int mine = round.load();
        if (arrived.fetch_add(1) + 1 == threads) {
            arrived = 0;
            round++;
            if (sleeping.load()) futex(FUTEX_WAKE, 1 << 30);
            return;
        }
        for (int i = 0; i < SPINS; i++) {
            if (round.load(std::memory_order_acquire) != mine) return;
            pause();
        }
        sleeping++;
        while (round.load() == mine) futex(FUTEX_WAIT, mine);
        sleeping--;
    }
};
