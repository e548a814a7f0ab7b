// SHA-256 of two pieces of memory at once, by the processor's own instructions.
//
// Each round waits for the one before, so a single digest leaves the unit idle half of the time: two independent ones
// take little longer than one. State as the instructions want it: words A B E F in one register, C D G H in another.
// Source: FIPS 180-4.
#include "numbers.hpp"

#if defined(__SHA__) && defined(__SSE4_1__)
#include <immintrin.h>

namespace {

constexpr int64_t BLOCK_BYTES = 64;

alignas(16) constexpr uint32_t ROUND_CONSTANTS[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

struct Digest {
    __m128i abef = _mm_set_epi32(0x6a09e667, 0xbb67ae85, 0x510e527f, 0x9b05688c);
    __m128i cdgh = _mm_set_epi32(0x3c6ef372, 0xa54ff53a, 0x1f83d9ab, 0x5be0cd19);
};

// Take n blocks of each of N messages into their digests.
template <int N> void absorb(Digest (&digest)[N], const uint8_t* const (&message)[N], int64_t n) {
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

}  // namespace

// out [2, 32]: the digests of a and b. served [1]: 1, or 0 where the processor has no such instructions.
EXPORT void sha256_pair(
    const uint8_t* a, int64_t a_bytes, const uint8_t* b, int64_t b_bytes, uint8_t* out, int64_t* served) {
    const int64_t a_blocks = a_bytes / BLOCK_BYTES, b_blocks = b_bytes / BLOCK_BYTES;
    const int64_t both = std::min(a_blocks, b_blocks);
    Digest pair[2];
    absorb<2>(pair, {a, b}, both);
    Digest rest[1] = {a_blocks > both ? pair[0] : pair[1]};
    absorb<1>(rest, {(a_blocks > both ? a : b) + both * BLOCK_BYTES}, std::max(a_blocks, b_blocks) - both);
    (a_blocks > both ? pair[0] : pair[1]) = rest[0];
    finish(pair[0], a, a_bytes, out);
    finish(pair[1], b, b_bytes, out + 32);
    *served = 1;
}
#else
EXPORT void sha256_pair(const uint8_t*, int64_t, const uint8_t*, int64_t, uint8_t*, int64_t* served) { *served = 0; }
#endif
