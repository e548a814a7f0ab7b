// Products of codes in tiles of 128 along the summed axis: the three products of FP8 training.
//
//     Y[m, n] = sum over tiles t of  (scale_A[m, t] * scale_B[n, t]) * sum over k in t of A[m, k] * B[n, k]
//
// Codes are bf16 numbers exactly, so a tile is summed by the products of product.hpp, in FP32; its sum, scaled, is added to an
// FP32 sum over tiles: product, scaling and addition are rounded apart, as in chapter 05. Either operand may lie along k or
// along its rows (a weight for the gradient of its input; both operands for the gradient of a weight).
#include "product.hpp"

namespace {
constexpr long DEEP = BLOCK_SIZE, WIDE = 256;  // k of a tile; columns of a unit of work
constexpr long HIGH = 8 * TILE<bf16>;          // rows of a unit of work

struct Plain : Table<bf16> {
    Plain() { fill(1.f); }
};
const Plain plain;

// [rows, k]: (r, k) is at code[r * across + k * along], one of the two steps is 1; the scale of row r and tile t at
// scale[r / height * scale_across + t * scale_along].
struct Operand {
    const void* code;
    const float* scale;
    int64_t wide;  // numbers in bf16 in place of codes
    int64_t across, along, height, scale_across, scale_along;

    void read(long r, long k, long n, bf16* to) const {  // n neighbours
        const long at = r * across + k * along;
        if (wide) memcpy(to, (const bf16*)code + at, sizeof(bf16) * n);
        else decode_run((const uint8_t*)code + at, plain, to, n, false);
    }
    float scale_of(long r, long t) const { return scale[r / height * scale_across + t * scale_along]; }
};

struct Sizes {
    long m, n, k;
    long tiles() const { return (k + DEEP - 1) / DEEP; }
    long depth(long t) const { return std::min(DEEP, k - t * DEEP); }
};

// Panels of tile t of B, columns n0 to n0 + width (at most WIDE). lines: [WIDE or DEEP][WIDE].
void pack_chunk(const Operand& b, Sizes z, long t, long n0, long width, bf16* lines, bf16* panels) {
    const long k = z.depth(t);
    if (b.along == 1) {
        for (long j = 0; j < width; j += PANEL) {
            const long count = std::min<long>(PANEL, width - j);
            for (long i = 0; i < count; i++) b.read(n0 + j + i, t * DEEP, k, lines + i * DEEP);
            pack_panel_transposed<bf16>(MatrixRows<bf16>{lines, DEEP}, k, 0, count, panels + panel_at<bf16>(n0 + j, k));
        }
        return;
    }
    for (long p = 0; p < k; p++) b.read(n0, t * DEEP + p, width, lines + p * WIDE);
    for (long j = 0; j < width; j += PANEL) pack_panel<bf16>(MatrixRows<bf16>{lines, WIDE}, k, j, width, panels + panel_at<bf16>(n0 + j, k));
}

// Keeps the compiler from fusing a product with the sum that follows.
INLINE Vec keep_rounded(Vec x) {
#if defined(__AVX2__)
    asm("" : "+v"(x));
#elif defined(__aarch64__)
    asm("" : "+w"(x));
#endif
    return x;
}

// sum[i][j] += part[i][j] * (a[i] * b[j]), in whole vectors: the rows of `sum` are WIDE apart, those of `part` `width`.
void add_scaled(float* sum, const float* part, const float* a, const float* b, long rows, long width) {
    for (long i = 0; i < rows; i++)
        for (long j = 0; j < width; j += LANES) {
            const Vec scaled = keep_rounded(load_vec(part + i * width + j) * (splat(a[i]) * load_vec(b + j)));
            store_vec(sum + i * WIDE + j, load_vec(sum + i * WIDE + j) + scaled);
        }
}

// What a thread needs for units of HIGH rows by WIDE columns.
struct Workplace {
    Scratch rows, part, sum, tile, scale;
    explicit Workplace(Sizes z)
        : rows(sizeof(bf16) * HIGH * (z.tiles() * DEEP)), part(sizeof(float) * (HIGH * WIDE + LANES)), sum(sizeof(float) * HIGH * WIDE),
          tile(sizeof(bf16) * tile_size<bf16>(DEEP)), scale(sizeof(float) * HIGH) {}
};

// Tile t of a unit where A lies along its rows, unscaled, into w.part [height][width].
void multiply_along_rows(const Operand& a, Sizes z, long t, long m0, long height, long width, const bf16* panels, Workplace& w) {
    bf16* rows = w.rows.as<bf16>();
    for (long p = 0; p < z.depth(t); p++) a.read(m0, t * DEEP + p, height, rows + p * HIGH);
    for (long i = 0; i < height; i += TILE<bf16>)
        multiply_transposed_tile(MatrixRows<bf16>{rows, HIGH}, z.depth(t), i, height, panels, width, w.tile.as<bf16>(),
                                 w.part.as<float>() + i * width, false);
}

template <typename Out> void multiply_unit(const Operand& a, Sizes z, long m0, long n0, const bf16* panels, long panels_of_tile, const float* b_scale,
                                           long b_stride, Workplace& w, Out* out) {
    const long height = std::min(HIGH, z.m - m0), width = std::min(WIDE, z.n - n0), stride = z.tiles() * DEEP;
    float *part = w.part.as<float>(), *sum = w.sum.as<float>(), *a_scale = w.scale.as<float>();
    bf16* rows = w.rows.as<bf16>();
    memset(sum, 0, sizeof(float) * height * WIDE);
    if (a.along == 1)
        for (long i = 0; i < height; i++) {
            a.read(m0 + i, 0, z.k, rows + i * stride);
            if (z.k < stride) memset(rows + i * stride + z.k, 0, sizeof(bf16) * (stride - z.k));
        }
    for (long t = 0; t < z.tiles(); t++) {
        const bf16* from = panels + t * panels_of_tile + panel_at<bf16>(n0, z.depth(t));
        if (a.along == 1) multiply(height, width, round_up(z.depth(t), STEP<bf16>), rows + t * DEEP, stride, from, part, width);
        else multiply_along_rows(a, z, t, m0, height, width, from, w);
        for (long i = 0; i < height; i++) a_scale[i] = a.scale_of(m0 + i, t);
        add_scaled(sum, part, a_scale, b_scale + t * b_stride + n0, height, width);
    }
    for (long i = 0; i < height; i++) {
        Out* to = out + (m0 + i) * z.n + n0;
        long j = 0;
        for (; j + LANES <= width; j += LANES) store_vec(to + j, load_vec(sum + i * WIDE + j));
        for (; j < width; j++) store(to + j, sum[i * WIDE + j]);
    }
}

template <typename Out> void multiply_operands(const Operand& a, const Operand& b, Out* out, Sizes z, int64_t threads) {
    const long panels_of_tile = panels_size<bf16>(DEEP, z.n), b_stride = round_up(z.n, LANES), chunks = (z.n + WIDE - 1) / WIDE;
    Scratch panel_memory(sizeof(bf16) * panels_of_tile * z.tiles()), scale_memory(sizeof(float) * b_stride * z.tiles());
    bf16* panels = panel_memory.as<bf16>();
    float* b_scale = scale_memory.as<float>();
#pragma omp parallel num_threads(threads)
    {
        Scratch lines(sizeof(bf16) * DEEP * WIDE);
        Workplace workplace(z);
#pragma omp for
        for (long unit = 0; unit < z.tiles() * chunks; unit++) {
            const long t = unit / chunks, n0 = unit % chunks * WIDE, width = std::min(WIDE, z.n - n0);
            pack_chunk(b, z, t, n0, width, lines.as<bf16>(), panels + t * panels_of_tile);
            for (long j = n0; j < n0 + width; j++) b_scale[t * b_stride + j] = b.scale_of(j, t);
        }
#pragma omp for schedule(dynamic)
        for (long unit = 0; unit < (z.m + HIGH - 1) / HIGH * chunks; unit++)
            multiply_unit(a, z, unit / chunks * HIGH, unit % chunks * WIDE, panels, panels_of_tile, b_scale, b_stride, workplace, out);
    }
}
}  // namespace

// out [m, n], FP32 or bf16. Of each operand: codes, scales, whether they are bf16 numbers instead, and the five steps of Operand.
EXPORT void fp8_multiply(const void* a, const float* a_scale, int64_t a_wide, int64_t a_across, int64_t a_along, int64_t a_height,
                         int64_t a_scale_across, int64_t a_scale_along, const void* b, const float* b_scale, int64_t b_wide, int64_t b_across,
                         int64_t b_along, int64_t b_height, int64_t b_scale_across, int64_t b_scale_along, int64_t bfloat16, void* out, int64_t m,
                         int64_t n, int64_t k, int64_t threads) {
    const Operand left{a, a_scale, a_wide, a_across, a_along, a_height, a_scale_across, a_scale_along};
    const Operand right{b, b_scale, b_wide, b_across, b_along, b_height, b_scale_across, b_scale_along};
    if (bfloat16) multiply_operands(left, right, (bf16*)out, {m, n, k}, threads);
    else multiply_operands(left, right, (float*)out, {m, n, k}, threads);
}
