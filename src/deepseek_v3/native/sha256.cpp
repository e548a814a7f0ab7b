// SHA-256 of several pieces of memory at once.
//
// The processor's own instructions wait for the round before, so a single digest leaves their unit idle half of the time:
// two independent ones take little longer than one. That unit is slow in Intel's processors; sixteen digests in the lanes
// of AVX-512 are faster there. State as the instructions want it: words A B E F in one register, C D G H in another.
// Source: FIPS 180-4.
#include "product.hpp"

#include <functional>

#if defined(__SHA__) && defined(__SSE4_1__)
#include <immintrin.h>

namespace {

constexpr int64_t BLOCK_BYTES = 64;

alignas(16) constexpr uint32_t ROUND_CONSTANTS[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
    0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
    0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
    0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
    0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
    0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

struct Digest {
    __m128i abef = _mm_set_epi32(0x6a09e667, 0xbb67ae85, 0x510e527f, 0x9b05688c);
    __m128i cdgh = _mm_set_epi32(0x3c6ef372, 0xa54ff53a, 0x1f83d9ab, 0x5be0cd19);
};

// Take n blocks of each of N messages into their digests.
template <int N> void absorb(Digest (&digest)[N], const uint8_t* const (&message)[N], int64_t n) {
#if defined(__AVX__)
    _mm256_zeroupper();  // these instructions have the old encoding: beside filled upper halves they are 200 times slower
#endif
    const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    for (int64_t at = 0; at < n * BLOCK_BYTES; at += BLOCK_BYTES) {
        Digest state[N];
        __m128i words[N][4];  // the last 16 words of the message schedule, 4 to a register
        for (int k = 0; k < N; k++) {
            state[k] = digest[k];
            for (int i = 0; i < 4; i++) {
                __m128i raw = _mm_loadu_si128((const __m128i*)(message[k] + at) + i);
                words[k][i] = _mm_shuffle_epi8(raw, big_endian);
            }
        }
#pragma GCC unroll 16
        for (int step = 0; step < 16; step++) {  // of four rounds each
#pragma GCC unroll 2
            for (int k = 0; k < N; k++) {
                __m128i& word = words[k][step % 4];
                if (step >= 4) {
                    __m128i after = words[k][(step + 1) % 4], last = words[k][(step + 3) % 4];
                    __m128i seven_back = _mm_alignr_epi8(last, words[k][(step + 2) % 4], 4);
                    word = _mm_add_epi32(_mm_sha256msg1_epu32(word, after), seven_back);
                    word = _mm_sha256msg2_epu32(word, last);
                }
                __m128i term = _mm_add_epi32(word, _mm_load_si128((const __m128i*)ROUND_CONSTANTS + step));
                state[k].cdgh = _mm_sha256rnds2_epu32(state[k].cdgh, state[k].abef, term);
                state[k].abef = _mm_sha256rnds2_epu32(state[k].abef, state[k].cdgh, _mm_shuffle_epi32(term, 0x0e));
            }
        }
        for (int k = 0; k < N; k++) {
            digest[k].abef = _mm_add_epi32(digest[k].abef, state[k].abef);
            digest[k].cdgh = _mm_add_epi32(digest[k].cdgh, state[k].cdgh);
        }
    }
}

#if defined(__AVX512BW__)
constexpr int LANES_OF_DIGESTS = 16;

inline __m512i xor_three(__m512i x, __m512i y, __m512i z) { return _mm512_ternarylogic_epi32(x, y, z, 0x96); }

// Take n blocks of each of 16 messages into their digests, a lane each.
void absorb_lanes(Digest* const (&digest)[16], const uint8_t* const (&message)[16], int64_t n) {
    const __m512i big_endian = _mm512_broadcast_i32x4(_mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203));
    alignas(64) uint32_t lanes[8][16];  // words A to H
    for (int k = 0; k < 16; k++) {
        uint32_t abef[4], cdgh[4];  // lowest first: F E B A and H G D C
        memcpy(abef, &digest[k]->abef, 16), memcpy(cdgh, &digest[k]->cdgh, 16);
        for (int i = 0; i < 2; i++) {
            lanes[i][k] = abef[3 - i], lanes[2 + i][k] = cdgh[3 - i];
            lanes[4 + i][k] = abef[1 - i], lanes[6 + i][k] = cdgh[1 - i];
        }
    }
    __m512i state[8];
    for (int i = 0; i < 8; i++) state[i] = _mm512_load_si512(lanes[i]);
    for (int64_t at = 0; at < n * BLOCK_BYTES; at += BLOCK_BYTES) {
        __m512i word[16];
        for (int k = 0; k < 16; k++) {
            word[k] = _mm512_loadu_si512(message[k] + at);
            _mm_prefetch((const char*)message[k] + at + 8 * BLOCK_BYTES, _MM_HINT_T0);
        }
        transpose(word);
        for (int i = 0; i < 16; i++) word[i] = _mm512_shuffle_epi8(word[i], big_endian);
        __m512i a = state[0], b = state[1], c = state[2], d = state[3], e = state[4], f = state[5], g = state[6], h = state[7];
#pragma GCC unroll 64
        for (int t = 0; t < 64; t++) {
            __m512i& w = word[t % 16];
            if (t >= 16) {
                __m512i x = word[(t + 1) % 16], y = word[(t + 14) % 16];
                x = xor_three(_mm512_ror_epi32(x, 7), _mm512_ror_epi32(x, 18), _mm512_srli_epi32(x, 3));
                y = xor_three(_mm512_ror_epi32(y, 17), _mm512_ror_epi32(y, 19), _mm512_srli_epi32(y, 10));
                w = _mm512_add_epi32(_mm512_add_epi32(w, x), _mm512_add_epi32(word[(t + 9) % 16], y));
            }
            __m512i from_e = xor_three(_mm512_ror_epi32(e, 6), _mm512_ror_epi32(e, 11), _mm512_ror_epi32(e, 25));
            __m512i from_a = xor_three(_mm512_ror_epi32(a, 2), _mm512_ror_epi32(a, 13), _mm512_ror_epi32(a, 22));
            __m512i choice = _mm512_ternarylogic_epi32(e, f, g, 0xCA), majority = _mm512_ternarylogic_epi32(a, b, c, 0xE8);
            __m512i constant = _mm512_add_epi32(h, _mm512_set1_epi32(ROUND_CONSTANTS[t]));
            __m512i first = _mm512_add_epi32(_mm512_add_epi32(constant, _mm512_add_epi32(w, choice)), from_e);
            h = g, g = f, f = e, e = _mm512_add_epi32(d, first);
            d = c, c = b, b = a, a = _mm512_add_epi32(first, _mm512_add_epi32(from_a, majority));
        }
        const __m512i worked[8] = {a, b, c, d, e, f, g, h};
        for (int i = 0; i < 8; i++) state[i] = _mm512_add_epi32(state[i], worked[i]);
    }
    for (int i = 0; i < 8; i++) _mm512_store_si512(lanes[i], state[i]);
    for (int k = 0; k < 16; k++) {
        digest[k]->abef = _mm_set_epi32(lanes[0][k], lanes[1][k], lanes[4][k], lanes[5][k]);
        digest[k]->cdgh = _mm_set_epi32(lanes[2][k], lanes[3][k], lanes[6][k], lanes[7][k]);
    }
}
#else
constexpr int LANES_OF_DIGESTS = 2;
void absorb_lanes(Digest* const (&)[16], const uint8_t* const (&)[16], int64_t) {}
#endif

// What follows the last whole block: a one bit, zeros, and the length in bits; then the state in the order A to H.
void finish(Digest& digest, const uint8_t* message, int64_t n_bytes, uint8_t* out) {
    uint8_t tail[2 * BLOCK_BYTES] = {};
    const int64_t rest = n_bytes % BLOCK_BYTES, n = rest + 9 > BLOCK_BYTES ? 2 : 1;
    if (rest) memcpy(tail, message + n_bytes - rest, rest);
    tail[rest] = 0x80;
    for (int i = 0; i < 8; i++) tail[n * BLOCK_BYTES - 1 - i] = uint8_t(uint64_t(n_bytes) * 8 >> (8 * i));
    Digest last[1] = {digest};
    absorb<1>(last, {tail}, n);
    uint32_t abef[4], cdgh[4];  // lowest first: F E B A and H G D C
    memcpy(abef, &last[0].abef, 16);
    memcpy(cdgh, &last[0].cdgh, 16);
    const uint32_t ordered[8] = {abef[3], abef[2], cdgh[3], cdgh[2], abef[1], abef[0], cdgh[1], cdgh[0]};
    for (int i = 0; i < 32; i++) out[i] = uint8_t(ordered[i / 4] >> (24 - 8 * (i % 4)));
}

struct Piece {
    const uint8_t* at;  // what is not in the digest yet
    int64_t left, n_bytes;
    Digest digest;
};

// The rest of two pieces, and their ends.
void finish_two(Piece& a, Piece& b, uint8_t* a_out, uint8_t* b_out) {
    Digest pair[2] = {a.digest, b.digest};
    const int64_t both = std::min(a.left, b.left) / BLOCK_BYTES;
    absorb<2>(pair, {a.at, b.at}, both);
    Piece& longer = a.left > b.left ? a : b;
    Digest rest[1] = {pair[&longer == &b]};
    absorb<1>(rest, {longer.at + both * BLOCK_BYTES}, longer.left / BLOCK_BYTES - both);
    pair[&longer == &b] = rest[0];
    finish(pair[0], a.at + a.left - a.n_bytes, a.n_bytes, a_out);
    finish(pair[1], b.at + b.left - b.n_bytes, b.n_bytes, b_out);
}

bool slow_unit() {
#if defined(__x86_64__)
    return __builtin_cpu_is("intel");
#else
    return false;
#endif
}

constexpr int FEWEST = 10;  // full lanes from which sixteen lanes are faster than pairs
}  // namespace

// How many pieces to give at a time; 0: there are no such instructions here.
EXPORT int64_t sha256_lanes() { return slow_unit() ? LANES_OF_DIGESTS : 2; }

// out [count, 32]: the digests of up to 16 pieces, given by their addresses and lengths.
EXPORT void sha256_pieces(const int64_t* address, const int64_t* n_bytes, uint8_t* out, int64_t count) {
    Piece piece[16];
    int64_t longest[16] = {};
    for (int64_t i = 0; i < count; i++) {
        piece[i] = {(const uint8_t*)address[i], n_bytes[i], n_bytes[i], Digest()};
        longest[i] = n_bytes[i] / BLOCK_BYTES;
    }
    std::sort(longest, longest + 16, std::greater<int64_t>());
    const int64_t blocks = longest[FEWEST - 1];  // so many pieces have at least that many
    if (LANES_OF_DIGESTS == 16 && blocks) {
        Digest idle;
        Digest* digest[16];
        const uint8_t* message[16];
        for (int64_t i = 0; i < 16; i++) {
            const bool joins = i < count && piece[i].left >= blocks * BLOCK_BYTES;
            digest[i] = joins ? &piece[i].digest : &idle, message[i] = joins ? piece[i].at : nullptr;
            if (joins) piece[i].at += blocks * BLOCK_BYTES, piece[i].left -= blocks * BLOCK_BYTES;
        }
        const uint8_t* some = *std::find_if(message, message + 16, [](const uint8_t* m) { return m != nullptr; });
        for (auto& m : message) m = m ? m : some;
        absorb_lanes(digest, message, blocks);
    }
    for (int64_t i = 0; i < count; i += 2) {
        Piece none = {nullptr, 0, 0, Digest()};
        uint8_t unused[32];
        const bool two = i + 1 < count;
        finish_two(piece[i], two ? piece[i + 1] : none, out + 32 * i, two ? out + 32 * (i + 1) : unused);
    }
}
#else
EXPORT int64_t sha256_lanes() { return 0; }
EXPORT void sha256_pieces(const int64_t*, const int64_t*, uint8_t*, int64_t) {}
#endif
