// Whole tensors of E4M3 codes: to BF16 or FP32, from them, copied; and the search for codes that are no numbers.
#include "fp8_encode.hpp"

namespace {

constexpr int64_t WORTH_THREADS = 1 << 16;         // elements
constexpr int64_t BEYOND_CACHE = 8 * 1024 * 1024;  // bytes of output from which it is written past the cache

template <typename Out> bool decode(const uint8_t* code, const float* scale, Out* out, int64_t rows, int64_t columns) {
    bool nan = false;
    const int64_t strips = count_blocks(rows), blocks = count_blocks(columns);
    const bool aligned = uintptr_t(out) % 64 == 0 && columns * int64_t(sizeof(Out)) % 64 == 0;
    const bool past_cache = aligned && rows * columns * int64_t(sizeof(Out)) >= BEYOND_CACHE;
#pragma omp parallel reduction(|| : nan) if (rows * columns >= WORTH_THREADS)
    {
        Scratch scratch(blocks * sizeof(Table<Out>));
        Table<Out>* tables = scratch.as<Table<Out>>();
#pragma omp for
        for (int64_t strip = 0; strip < strips; strip++) {
            for (int64_t b = 0; b < blocks; b++) tables[b].fill(scale[strip * blocks + b]);
            const int64_t end = std::min(rows, (strip + 1) * BLOCK_SIZE);
            for (int64_t row = strip * BLOCK_SIZE; row < end; row++) {
                for (int64_t b = 0; b < blocks; b++) {
                    const int64_t at = row * columns + b * BLOCK_SIZE, n = std::min(BLOCK_SIZE, columns - b * BLOCK_SIZE);
                    if (decode_run(code + at, tables[b], out + at, n, past_cache)) nan = true;
                }
            }
        }
#if defined(__AVX2__)
        if (past_cache) _mm_sfence();  // such stores are ordered by nothing else
#endif
    }
    return nan;
}

// The largest magnitude of each block of height x 128.
template <typename In> void find_amax(const In* x, float* amax, int64_t rows, int64_t columns, int64_t height) {
    const int64_t strips = (rows + height - 1) / height, blocks = count_blocks(columns);
#pragma omp parallel for if (rows * columns >= WORTH_THREADS)
    for (int64_t strip = 0; strip < strips; strip++) {
        float* found = amax + strip * blocks;
        for (int64_t b = 0; b < blocks; b++) found[b] = 0;
        for (int64_t row = strip * height; row < std::min(rows, (strip + 1) * height); row++) {
            for (int64_t b = 0; b < blocks; b++) {
                const In* run = x + row * columns + b * BLOCK_SIZE;
                const int64_t n = std::min(BLOCK_SIZE, columns - b * BLOCK_SIZE);
                uint32_t largest = bits_of(found[b]);
                for (int64_t i = 0; i < n; i++) largest = std::max(largest, magnitude_of(to_float(run[i])));
                memcpy(&found[b], &largest, 4);
            }
        }
    }
}

template <typename In> void quantize(const In* x, const float* scale, uint8_t* code, int64_t rows, int64_t columns, int64_t height) {
    const int64_t blocks = count_blocks(columns);
#pragma omp parallel for if (rows * columns >= WORTH_THREADS)
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t b = 0; b < blocks; b++) {
            const int64_t at = row * columns + b * BLOCK_SIZE, n = std::min(BLOCK_SIZE, columns - b * BLOCK_SIZE);
            const float divisor = scale[row / height * blocks + b];
            encode_run<E4M3>(x + at, divisor, code + at, n);
        }
    }
}

inline bool holds_nan(const uint8_t* code, int64_t n) {
    uint8_t found = 0;
    for (int64_t i = 0; i < n; i++) found |= (code[i] & ~SIGN & 0xFF) == NAN_CODE;
    return found;
}

// Copy n codes; return whether one is NaN.
bool copy_codes(const uint8_t* code, uint8_t* out, int64_t n) {
    constexpr int64_t STEP = 16384;  // what is looked at and then copied stays in the first-level cache
    bool nan = false;
    for (int64_t start = 0; start < n; start += STEP) {
        const int64_t length = std::min(STEP, n - start);
        if (holds_nan(code + start, length)) nan = true;
        memcpy(out + start, code + start, length);
    }
    return nan;
}

// One tensor, or some of its rows, on the way from a file into memory.
struct Transfer {
    const uint8_t* from;
    const float* scale;
    void* to;
    float* scale_to;
    int64_t rows, columns, form;
};

// Return whether its scales are positive and finite and its codes numbers.
bool transfer_one(const Transfer& t) {
    enum { COPY, KEEP_FP8, TO_BF16, TO_FP32 };
    if (t.form == COPY) return memcpy(t.to, t.from, t.rows * t.columns), true;
    const int64_t blocks = count_blocks(t.rows) * count_blocks(t.columns);
    bool good = true;
    for (int64_t b = 0; b < blocks; b++) good &= t.scale[b] > 0 && t.scale[b] < INFINITY;
    if (t.form == TO_BF16) return !decode(t.from, t.scale, (bf16*)t.to, t.rows, t.columns) && good;
    if (t.form == TO_FP32) return !decode(t.from, t.scale, (float*)t.to, t.rows, t.columns) && good;
    memcpy(t.scale_to, t.scale, blocks * sizeof(float));
    return !copy_codes(t.from, (uint8_t*)t.to, t.rows * t.columns) && good;
}

}  // namespace

// code, out [rows, columns], scale [ceil(rows / 128), ceil(columns / 128)], all contiguous. nan [1]: whether a code is.
EXPORT void decode_e4m3_bf16(const uint8_t* code, const float* scale, bf16* out, int64_t rows, int64_t columns, int64_t* nan) {
    *nan = decode(code, scale, out, rows, columns);
}
EXPORT void decode_e4m3_fp32(const uint8_t* code, const float* scale, float* out, int64_t rows, int64_t columns, int64_t* nan) {
    *nan = decode(code, scale, out, rows, columns);
}

// amax, scale [ceil(rows / height), ceil(columns / 128)]: height is 128 for weights, 1 for the tiles of activations.
EXPORT void amax_bf16(const bf16* x, float* amax, int64_t rows, int64_t columns, int64_t height) { find_amax(x, amax, rows, columns, height); }
EXPORT void amax_fp32(const float* x, float* amax, int64_t rows, int64_t columns, int64_t height) { find_amax(x, amax, rows, columns, height); }
EXPORT void quantize_bf16(const bf16* x, const float* scale, uint8_t* code, int64_t rows, int64_t columns, int64_t height) {
    quantize(x, scale, code, rows, columns, height);
}
EXPORT void quantize_fp32(const float* x, const float* scale, uint8_t* code, int64_t rows, int64_t columns, int64_t height) {
    quantize(x, scale, code, rows, columns, height);
}

// Run n transfers, one after the other. wrong [1]: the first with a number that is none, or n.
EXPORT void transfer(const Transfer* transfers, int64_t n, int64_t* wrong) {
    *wrong = n;
    for (int64_t i = 0; i < n; i++)
        if (!transfer_one(transfers[i]) && *wrong == n) *wrong = i;
}

// first [1]: position of the first of n codes that is NaN, or n.
EXPORT void find_nan_e4m3(const uint8_t* code, int64_t* first, int64_t n) {
    constexpr int64_t STEP = 4096;
    int64_t least = n;
#pragma omp parallel for reduction(min : least) if (n >= WORTH_THREADS)
    for (int64_t start = 0; start < n; start += STEP) {
        const int64_t end = std::min(n, start + STEP);
        if (start >= least || !holds_nan(code + start, end - start)) continue;
        int64_t i = start;
        while ((code[i] & NAN_CODE) != NAN_CODE) i++;
        least = std::min(least, i);
    }
    *first = least;
}
