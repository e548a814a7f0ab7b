// E4M3 codes with one scale per block of 128 x 128, as BF16 or FP32.
//
//   E4M3   s eeee mmm            2^(e - 7) (1 + m/8);  e = 0: 2^-6 m/8;  s 1111 111: NaN, and there is no infinity
//   BF16   s eeeeeeee mmmmmmm    the upper half of an FP32
//
// Without its sign a code has 128 values, and a block has one scale. So 128 products, each rounded once, are all that a
// block can hold; decoding looks them up and moves the sign over. Subnormals, overflow and NaN need no case of their own.
#pragma once
#include "numbers.hpp"

constexpr int64_t BLOCK_SIZE = 128;
constexpr int MAGNITUDES = 128;
constexpr uint8_t SIGN = 0x80, NAN_CODE = 0x7F;

inline int64_t count_blocks(int64_t length) { return (length + BLOCK_SIZE - 1) / BLOCK_SIZE; }

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
inline const Magnitudes magnitudes;

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
            const __m128i* eight = (const __m128i*)of;  // of one exponent
            const __m128i start = _mm_sub_epi16(eight[1], _mm_set1_epi16(1 << 7)), byte = _mm_set1_epi16(0xFF);
            _mm_store_si128((__m128i*)low, _mm_packus_epi16(_mm_and_si128(start, byte), _mm_and_si128(eight[0], byte)));
            _mm_store_si128((__m128i*)high, _mm_packus_epi16(_mm_srli_epi16(start, 8), _mm_srli_epi16(eight[0], 8)));
            __m128i same = _mm_set1_epi16(-1);
            for (int e = 1; e < 15; e++) same = _mm_and_si128(same, _mm_cmpeq_epi16(eight[e], _mm_add_epi16(start, _mm_set1_epi16(short(e << 7)))));
            const __m128i top = _mm_cmpeq_epi16(eight[15], _mm_add_epi16(start, _mm_set1_epi16(15 << 7)));
            same = _mm_and_si128(same, _mm_or_si128(top, _mm_setr_epi16(0, 0, 0, 0, 0, 0, 0, -1)));  // the last is NaN
            regular = _mm_movemask_epi8(same) == 0xFFFF;
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
inline bool decode_run(const uint8_t* code, const Table<float>& table, float* out, int64_t n, bool) { return look_up(code, table, out, n); }

inline bool decode_run(const uint8_t* code, const Table<bf16>& table, bf16* out, int64_t n, bool past_cache) {
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
        if (past_cache) _mm512_stream_si512((__m512i*)(out + i), value);
        else _mm512_storeu_si512(out + i, value);
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
            if (past_cache) _mm256_stream_si256((__m256i*)(out + i) + k, value);
            else _mm256_storeu_si256((__m256i*)(out + i) + k, value);
        }
    }
#endif
    return look_up(code + i, table, out + i, n - i) || nan;
}

struct e4m3 {
    uint8_t code;
};

// A matrix where it lies; of E4M3 codes also the scales of its blocks.
template <typename S> struct Matrix {
    const S* data;
    const float* scale = nullptr;
};

// The tables of one row of blocks, filled when another row is wanted. A thread has one set for itself.
template <typename T> class Tables {
    Scratch memory;
    const float* filled = nullptr;

  public:
    explicit Tables(int64_t widest) : memory(sizeof(Table<T>) * count_blocks(widest)) {}

    const Table<T>* of(Matrix<e4m3> from, int64_t width, int64_t row) {
        const float* scale = from.scale + row / BLOCK_SIZE * count_blocks(width);
        Table<T>* table = memory.as<Table<T>>();
        if (scale != filled)
            for (int64_t b = 0; b < count_blocks(width); b++) table[b].fill(scale[b]);
        filled = scale;
        return table;
    }
};

// Rows first to first + n of a matrix, as numbers behind each other.
template <typename T> void decode_rows(Matrix<e4m3> from, int64_t width, int64_t first, int64_t n, Tables<T>& tables, T* to) {
    for (int64_t row = first; row < first + n; row++) {
        const Table<T>* table = tables.of(from, width, row);
        const uint8_t* code = &from.data[row * width].code;
        for (int64_t i = 0; i < width; i += BLOCK_SIZE) decode_run(code + i, table[i / BLOCK_SIZE], to + i, std::min(BLOCK_SIZE, width - i), false);
        to += width;
    }
}

// Codes as floats, in their order, 2^-8 of what they stand for. With a zero before its exponent a code is a half-precision
// number, whose exponents begin 2^-8 lower; so are its subnormals.
constexpr float CODE_UNIT = 256;

inline float widen_code(uint8_t code) { return flip_sign(magnitudes.of[code & ~SIGN], code & SIGN) / CODE_UNIT; }

#if defined(__AVX512VBMI__)
constexpr int CODES_AT_ONCE = 64;

// Every such number is a BF16 number: its two bytes are looked up, 64 codes at once, in two tables of 128 entries.
struct WidenTables {
    alignas(64) uint8_t low[MAGNITUDES], high[MAGNITUDES], order[CODES_AT_ONCE];
    WidenTables() {
        for (int code = 0; code < MAGNITUDES; code++) {
            float number = widen_code(uint8_t(code));
            uint32_t bits;
            memcpy(&bits, &number, 4);
            low[code] = uint8_t(bits >> 16), high[code] = uint8_t(bits >> 24);
        }
        // Where a code must be that it comes to its place: of a quarter of 16, bytes are paired within its halves of 8,
        // and the first of two pairs goes to one vector, the second to the next.
        for (int i = 0; i < CODES_AT_ONCE; i++) {
            int quarter = i / 16, half = i / 8 % 2, pair = i / 2 % 4, second = i % 2;
            order[i] = uint8_t(32 * half + 16 * second + 4 * quarter + pair);
        }
    }
};
inline const WidenTables widen_tables;

INLINE void widen_codes(const uint8_t* code, Vec* out) {
    const __m512i *low = (const __m512i*)widen_tables.low, *high = (const __m512i*)widen_tables.high;
    __m512i byte = _mm512_permutexvar_epi8(*(const __m512i*)widen_tables.order, _mm512_loadu_si512(code));
    __m512i lower = _mm512_permutex2var_epi8(low[0], byte, low[1]);
    __m512i upper = _mm512_permutex2var_epi8(high[0], byte, high[1]);
    upper = _mm512_ternarylogic_epi32(upper, byte, _mm512_set1_epi8(char(SIGN)), 0xF8);  // upper | (byte & SIGN)
    for (int half = 0; half < 2; half++) {
        __m512i pair = half ? _mm512_unpackhi_epi8(lower, upper) : _mm512_unpacklo_epi8(lower, upper);
        out[2 * half] = (Vec)_mm512_slli_epi32(pair, 16);
        out[2 * half + 1] = (Vec)_mm512_and_si512(pair, _mm512_set1_epi32(int(0xFFFF0000)));
    }
}
#else
constexpr int CODES_AT_ONCE = 32;

INLINE void widen_codes(const uint8_t* code, Vec* out) {
#if defined(__AVX512BW__)
    __m512i half = _mm512_slli_epi16(_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)code)), 7);
    half = _mm512_and_si512(half, _mm512_set1_epi16(short(0xBFFF)));
    out[0] = (Vec)_mm512_cvtph_ps(_mm512_castsi512_si256(half));
    out[1] = (Vec)_mm512_cvtph_ps(_mm512_extracti64x4_epi64(half, 1));
#elif defined(__AVX2__) && defined(__F16C__) && !defined(__AVX512F__)
    for (int i = 0; i < 2; i++) {
        __m256i half = _mm256_slli_epi16(_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)code + i)), 7);
        half = _mm256_and_si256(half, _mm256_set1_epi16(short(0xBFFF)));
        out[2 * i] = (Vec)_mm256_cvtph_ps(_mm256_castsi256_si128(half));
        out[2 * i + 1] = (Vec)_mm256_cvtph_ps(_mm256_extracti128_si256(half, 1));
    }
#else
    float number[CODES_AT_ONCE];
    for (int i = 0; i < CODES_AT_ONCE; i++) number[i] = widen_code(code[i]);
    for (int i = 0; i < CODES_AT_ONCE / LANES; i++) out[i] = load_vec(number + i * LANES);
#endif
}
#endif
