// E4M3 codes to BF16 or FP32 and back, one scale per block of 128 x 128; and the search for codes that are no numbers.
//
//   E4M3   s eeee mmm            2^(e - 7) (1 + m/8);  e = 0: 2^-6 m/8;  s 1111 111: NaN, and there is no infinity
//   BF16   s eeeeeeee mmmmmmm    the upper half of an FP32
//
// Without its sign a code has 128 values, and a block has one scale. So 128 products, each rounded once, are all that a
// block can hold; decoding looks them up and moves the sign over. Subnormals, overflow and NaN need no case of their own.
//
// Encoding rounds to nearest, ties to even: 20 bits of an FP32's mantissa go, which may carry into the exponent, as it
// should. Below 2^-6 the codes are multiples of 2^-9, which is the last place of the numbers from 2^14 on: adding 2^14
// rounds to it.
#include "numbers.hpp"

namespace {

constexpr int64_t BLOCK = 128;
constexpr int MAGNITUDES = 128;
constexpr uint8_t SIGN = 0x80, NAN_CODE = 0x7F;
constexpr int64_t WORTH_THREADS = 1 << 16;          // elements
constexpr int64_t BEYOND_CACHE = 8 * 1024 * 1024;  // bytes of output from which it is written past the cache

struct Magnitudes {
    alignas(64) float of[MAGNITUDES];
    Magnitudes() {
        for (int code = 0; code < MAGNITUDES; code++) {
            uint32_t bits = (uint32_t(code) << 20) + ((127 - 7) << 23);
            memcpy(&of[code], &bits, 4);
            if (code < 8) of[code] = float(code) / 512;
        }
        of[NAN_CODE] = NAN;
    }
};
const Magnitudes magnitudes;

// What a block makes of the magnitudes: float32(magnitude) * scale, rounded once.
template <typename Out> struct Table {
    alignas(64) Out of[MAGNITUDES];
#if defined(__AVX2__) && !defined(__AVX512BW__)
    // As long as BF16 is a normal number, an exponent one higher adds 1 << 7 to its bits. Then 16 entries are enough: the
    // bits of the eight mantissas at exponent 0, if it were like the others, and of the eight subnormals; in bytes apart.
    alignas(16) uint8_t low[16], high[16];
    bool regular;
#endif

    void fill(float scale) {
        for (int i = 0; i < MAGNITUDES; i += LANES) store_vec(of + i, load_vec(magnitudes.of + i) * scale);
#if defined(__AVX2__) && !defined(__AVX512BW__)
        if constexpr (sizeof(Out) == 2) {
            uint16_t start[16];
            for (int i = 0; i < 16; i++) start[i] = i < 8 ? of[8 + i].bits - (1 << 7) : of[i - 8].bits;
            for (int i = 0; i < 16; i++) low[i] = uint8_t(start[i]), high[i] = uint8_t(start[i] >> 8);
            regular = true;
            for (int i = 8; i < NAN_CODE; i++) regular &= of[i].bits == uint16_t(start[i % 8] + (i >> 3 << 7));
        }
#endif
    }
};

inline float flip_sign(float x, bool negative) { return negative ? -x : x; }
inline bf16 flip_sign(bf16 x, bool negative) { return {uint16_t(x.bits ^ (negative << 15))}; }

template <typename Out> bool look_up(const uint8_t* code, const Table<Out>& table, Out* out, int64_t n) {
    bool nan = false;
    for (int64_t i = 0; i < n; i++) {
        out[i] = flip_sign(table.of[code[i] & ~SIGN], code[i] & SIGN);
        nan |= (code[i] & NAN_CODE) == NAN_CODE;
    }
    return nan;
}

// Decode up to 128 codes of one row of a block; return whether one is NaN. `past_cache` wants `out` aligned to 64 bytes.
bool decode_run(const uint8_t* code, const Table<float>& table, float* out, int64_t n, bool) {
    return look_up(code, table, out, n);
}

bool decode_run(const uint8_t* code, const Table<bf16>& table, bf16* out, int64_t n, bool past_cache) {
    int64_t i = 0;
    bool nan = false;
#if defined(__AVX512BW__)
    // One permutation finds 32 of 64 entries at once; bit 6 of the code chooses between two of them.
    const __m512i* part = (const __m512i*)table.of;
    const __m512i part0 = part[0], part1 = part[1], part2 = part[2], part3 = part[3];
    const __m512i all = _mm512_set1_epi16(NAN_CODE);
    for (; i + 32 <= n; i += 32) {
        __m512i word = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)(code + i)));
        nan |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(word, all), all) != 0;
        __m512i low = _mm512_permutex2var_epi16(part0, word, part1);
        __m512i high = _mm512_permutex2var_epi16(part2, word, part3);
        __m512i value = _mm512_mask_mov_epi16(low, _mm512_test_epi16_mask(word, _mm512_set1_epi16(64)), high);
        value = _mm512_xor_si512(value, _mm512_slli_epi16(_mm512_and_si512(word, _mm512_set1_epi16(SIGN)), 8));
        if (past_cache)
            _mm512_stream_si512((__m512i*)(out + i), value);
        else
            _mm512_storeu_si512(out + i, value);
    }
#elif defined(__AVX2__)
    const __m256i low_part = _mm256_broadcastsi128_si256(*(const __m128i*)table.low);
    const __m256i high_part = _mm256_broadcastsi128_si256(*(const __m128i*)table.high);
    const __m256i all = _mm256_set1_epi8(NAN_CODE), eight = _mm256_set1_epi8(8), mantissa = _mm256_set1_epi8(7);
    const __m256i sign_and_exponent = _mm256_set1_epi16(short(0x8780));
    for (; table.regular && i + 32 <= n; i += 32) {
        // Bytes become words within halves of 16; quarters in the order 0 2 1 3 come out of that in order.
        __m256i word = _mm256_permute4x64_epi64(_mm256_loadu_si256((const __m256i*)(code + i)), 0xD8);
        __m256i magnitude = _mm256_and_si256(word, all), nans = _mm256_cmpeq_epi8(magnitude, all);
        if (!_mm256_testz_si256(nans, nans)) {
            nan = look_up(code + i, table, out + i, 32);
            continue;
        }
        __m256i subnormal = _mm256_and_si256(_mm256_cmpgt_epi8(eight, magnitude), eight);
        __m256i index = _mm256_or_si256(_mm256_and_si256(word, mantissa), subnormal);
        __m256i low = _mm256_shuffle_epi8(low_part, index), high = _mm256_shuffle_epi8(high_part, index);
        // With the code in the upper byte the sign is in its place, and the exponent 4 bits too high.
        __m256i half[2] = {_mm256_unpacklo_epi8(low, word), _mm256_unpackhi_epi8(low, word)};
        __m256i start[2] = {_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high)};
        for (int k = 0; k < 2; k++) {
            __m256i more = _mm256_and_si256(_mm256_srai_epi16(half[k], 4), sign_and_exponent);
            __m256i value = _mm256_add_epi16(start[k], more);
            if (past_cache)
                _mm256_stream_si256((__m256i*)(out + i) + k, value);
            else
                _mm256_storeu_si256((__m256i*)(out + i) + k, value);
        }
    }
#endif
    return look_up(code + i, table, out + i, n - i) || nan;
}

template <typename Out>
bool decode(const uint8_t* code, const float* scale, Out* out, int64_t rows, int64_t columns) {
    bool nan = false;
    const int64_t strips = (rows + BLOCK - 1) / BLOCK, blocks = (columns + BLOCK - 1) / BLOCK;
    const bool aligned = uintptr_t(out) % 64 == 0 && columns * int64_t(sizeof(Out)) % 64 == 0;
    const bool past_cache = aligned && rows * columns * int64_t(sizeof(Out)) >= BEYOND_CACHE;
#pragma omp parallel reduction(|| : nan) if (rows * columns >= WORTH_THREADS)
    {
        Scratch scratch(blocks * sizeof(Table<Out>));
        Table<Out>* tables = scratch.as<Table<Out>>();
#pragma omp for
        for (int64_t strip = 0; strip < strips; strip++) {
            for (int64_t b = 0; b < blocks; b++) tables[b].fill(scale[strip * blocks + b]);
            const int64_t end = std::min(rows, (strip + 1) * BLOCK);
            for (int64_t row = strip * BLOCK; row < end; row++) {
                for (int64_t b = 0; b < blocks; b++) {
                    const int64_t at = row * columns + b * BLOCK, n = std::min(BLOCK, columns - b * BLOCK);
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

inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

inline uint8_t encode(float x) {
    x = x > 448.0f ? 448.0f : x < -448.0f ? -448.0f : x;  // NaN stays
    const uint32_t bits = bits_of(x), magnitude = bits & 0x7FFFFFFF;
    const uint32_t normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - ((127 - 7) << 3);
    const uint32_t subnormal = bits_of(std::fabs(x) + 16384.0f) - bits_of(16384.0f);
    const uint32_t number = magnitude < bits_of(0x1p-6f) ? subnormal : normal;
    return uint8_t((bits >> 24 & SIGN) | (x != x ? NAN_CODE : number));
}

// The largest magnitude of each block of height x 128. As integers, the bits of NaN are larger than all others.
template <typename In>
void find_amax(const In* x, float* amax, int64_t rows, int64_t columns, int64_t height) {
    const int64_t strips = (rows + height - 1) / height, blocks = (columns + BLOCK - 1) / BLOCK;
#pragma omp parallel for if (rows * columns >= WORTH_THREADS)
    for (int64_t strip = 0; strip < strips; strip++) {
        float* found = amax + strip * blocks;
        for (int64_t b = 0; b < blocks; b++) found[b] = 0;
        for (int64_t row = strip * height; row < std::min(rows, (strip + 1) * height); row++) {
            for (int64_t b = 0; b < blocks; b++) {
                const In* run = x + row * columns + b * BLOCK;
                const int64_t n = std::min(BLOCK, columns - b * BLOCK);
                uint32_t largest = bits_of(found[b]);
                for (int64_t i = 0; i < n; i++) largest = std::max(largest, bits_of(to_float(run[i])) & 0x7FFFFFFF);
                memcpy(&found[b], &largest, 4);
            }
        }
    }
}

template <typename In>
void quantise(const In* x, const float* scale, uint8_t* code, int64_t rows, int64_t columns, int64_t height) {
    const int64_t blocks = (columns + BLOCK - 1) / BLOCK;
#pragma omp parallel for if (rows * columns >= WORTH_THREADS)
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t b = 0; b < blocks; b++) {
            const int64_t at = row * columns + b * BLOCK, n = std::min(BLOCK, columns - b * BLOCK);
            const float divisor = scale[row / height * blocks + b];
            for (int64_t i = at; i < at + n; i++) code[i] = encode(to_float(x[i]) / divisor);
        }
    }
}

inline bool holds_nan(const uint8_t* code, int64_t n) {
    uint8_t found = 0;
    for (int64_t i = 0; i < n; i++) found |= (code[i] & ~SIGN & 0xFF) == NAN_CODE;
    return found;
}

}  // namespace

// code, out [rows, columns], scale [ceil(rows / 128), ceil(columns / 128)], all contiguous. nan [1]: whether a code is.
EXPORT void decode_e4m3_bf16(
    const uint8_t* code, const float* scale, bf16* out, int64_t rows, int64_t columns, int64_t* nan) {
    *nan = decode(code, scale, out, rows, columns);
}
EXPORT void decode_e4m3_fp32(
    const uint8_t* code, const float* scale, float* out, int64_t rows, int64_t columns, int64_t* nan) {
    *nan = decode(code, scale, out, rows, columns);
}

// amax, scale [ceil(rows / height), ceil(columns / 128)]: height is 128 for weights, 1 for the tiles of activations.
EXPORT void amax_bf16(const bf16* x, float* amax, int64_t rows, int64_t columns, int64_t height) {
    find_amax(x, amax, rows, columns, height);
}
EXPORT void amax_fp32(const float* x, float* amax, int64_t rows, int64_t columns, int64_t height) {
    find_amax(x, amax, rows, columns, height);
}
EXPORT void quantise_bf16(
    const bf16* x, const float* scale, uint8_t* code, int64_t rows, int64_t columns, int64_t height) {
    quantise(x, scale, code, rows, columns, height);
}
EXPORT void quantise_fp32(
    const float* x, const float* scale, uint8_t* code, int64_t rows, int64_t columns, int64_t height) {
    quantise(x, scale, code, rows, columns, height);
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
