// Matrices to codes in tiles of 1 x 128, 128 x 1 or 128 x 128, each with a scale of its own; and tiles turned over.
//
//     scale = max|x| / largest of the format, perhaps up to a power of two        code = encode(x / scale)
//
// A block of up to 128 x 128 numbers is a unit of work: it stays in the cache while it is read twice, and is read once for both
// directions. Blocks at the edges are smaller.
#include "fp8_encode.hpp"

namespace {

struct Shape {
    int64_t rows, columns;
    int64_t strips() const { return count_blocks(rows); }
    int64_t blocks() const { return count_blocks(columns); }
};

// Where a block lies in its matrix.
struct Block {
    int64_t row, column, height, width;
    Block(Shape s, int64_t unit)
        : row(unit / s.blocks() * BLOCK_SIZE), column(unit % s.blocks() * BLOCK_SIZE), height(std::min(BLOCK_SIZE, s.rows - row)),
          width(std::min(BLOCK_SIZE, s.columns - column)) {}
};

template <typename F> struct Target {  // codes [rows, columns] and scales
    typename F::Code* code;
    float* scale;
};

template <typename In> inline float amax_of(const In* x, int64_t n, float before = 0) {
    uint32_t top = magnitude_of(before);
    for (int64_t i = 0; i < n; i++) top = std::max(top, magnitude_of(to_float(x[i])));
    return float_of(top);
}

// 1 x 128: `x` is the block's first number, its rows are `stride` apart.
template <typename F, typename In> void quantize_rows(const In* x, int64_t stride, Block b, Shape s, Scaling scaling, Target<F> to) {
    for (int64_t i = 0; i < b.height; i++) {
        const float scale = scaling.of<F>(amax_of(x + i * stride, b.width));
        to.scale[(b.row + i) * s.blocks() + b.column / BLOCK_SIZE] = scale;
        encode_run<F>(x + i * stride, scale, to.code + (b.row + i) * s.columns + b.column, b.width);
    }
}

// 128 x 1: a scale for each column.
template <typename F, typename In> void quantize_columns(const In* x, int64_t stride, Block b, Shape s, Scaling scaling, Target<F> to) {
    alignas(64) uint32_t top[BLOCK_SIZE] = {};
    alignas(64) float divisor[BLOCK_SIZE];
    for (int64_t i = 0; i < b.height; i++)
        for (int64_t j = 0; j < b.width; j++) top[j] = std::max(top[j], magnitude_of(to_float(x[i * stride + j])));
    for (int64_t j = 0; j < b.width; j++) divisor[j] = scaling.of<F>(float_of(top[j]));
    memcpy(to.scale + b.row / BLOCK_SIZE * s.columns + b.column, divisor, sizeof(float) * b.width);
    for (int64_t i = 0; i < b.height; i++)
        encode_run<F>(x + i * stride, (const float*)divisor, to.code + (b.row + i) * s.columns + b.column, b.width);
}

// 128 x 128.
template <typename F, typename In> void quantize_block(const In* x, int64_t stride, Block b, Shape s, Scaling scaling, Target<F> to) {
    float amax = 0;
    for (int64_t i = 0; i < b.height; i++) amax = amax_of(x + i * stride, b.width, amax);
    const float scale = scaling.of<F>(amax);
    to.scale[b.row / BLOCK_SIZE * s.blocks() + b.column / BLOCK_SIZE] = scale;
    for (int64_t i = 0; i < b.height; i++) encode_run<F>(x + i * stride, scale, to.code + (b.row + i) * s.columns + b.column, b.width);
}

enum Tile { ROWS_OF_128, COLUMNS_OF_128, SQUARES, BOTH };  // 1 x 128, 128 x 1, 128 x 128, the first two at once

int64_t scales_of(Shape s, int64_t tile) {
    return tile == ROWS_OF_128 ? s.rows * s.blocks() : tile == COLUMNS_OF_128 ? s.strips() * s.columns : s.strips() * s.blocks();
}

template <typename F, typename In>
void quantize(const In* x, int64_t matrices, Shape s, int64_t tile, Scaling scaling, Target<F> to, Target<F> turned, int64_t threads) {
    const int64_t units = s.strips() * s.blocks(), size = s.rows * s.columns, scales = scales_of(s, tile);
#pragma omp parallel for num_threads(threads)
    for (int64_t unit = 0; unit < matrices * units; unit++) {
        const int64_t matrix = unit / units;
        const Block b(s, unit % units);
        const In* from = x + matrix * size + b.row * s.columns + b.column;
        const Target<F> here{to.code + matrix * size, to.scale + matrix * scales};
        if (tile == SQUARES) quantize_block<F>(from, s.columns, b, s, scaling, here);
        if (tile == ROWS_OF_128 || tile == BOTH) quantize_rows<F>(from, s.columns, b, s, scaling, here);
        if (tile == COLUMNS_OF_128) quantize_columns<F>(from, s.columns, b, s, scaling, here);
        if (tile == BOTH) quantize_columns<F>(from, s.columns, b, s, scaling, turned);
    }
}

// Codes in tiles of 1 x 128, perhaps rows picked by an index, to E4M3 in tiles of 128 x 1.
template <typename Code>
void turn(const Code* code, const float* scale, const int64_t* index, Shape s, Scaling scaling, Target<E4M3> to, int64_t threads) {
#pragma omp parallel num_threads(threads)
    {
        Scratch memory(sizeof(float) * BLOCK_SIZE * BLOCK_SIZE);
        float* x = memory.as<float>();
#pragma omp for
        for (int64_t unit = 0; unit < s.strips() * s.blocks(); unit++) {
            const Block b(s, unit);
            for (int64_t i = 0; i < b.height; i++) {
                const int64_t row = index ? index[b.row + i] : b.row + i;
                const Code* from = code + row * s.columns + b.column;
                const float factor = scale[row * s.blocks() + b.column / BLOCK_SIZE];
                for (int64_t j = 0; j < b.width; j++) x[i * BLOCK_SIZE + j] = widen(from[j]) * factor;
            }
            quantize_columns<E4M3>((const float*)x, BLOCK_SIZE, b, s, scaling, to);
        }
    }
}

}  // namespace

// x [matrices, rows, columns], FP32 or bf16. tile: 0 for 1 x 128, 1 for 128 x 1, 2 for 128 x 128. wide: E5M6 in place of E4M3.
// code [matrices, rows, columns]; scale [matrices, then one a tile].
EXPORT void fp8_quantize(int64_t bfloat16, int64_t wide, const void* x, int64_t matrices, int64_t rows, int64_t columns, int64_t tile, double floor,
                         int64_t power_of_two, void* code, float* scale, int64_t threads) {
    const Scaling scaling{float(floor), power_of_two != 0};
    auto run = [&](auto in, auto format) {
        using F = decltype(format);
        quantize<F>((const decltype(in)*)x, matrices, {rows, columns}, tile, scaling, Target<F>{(typename F::Code*)code, scale}, {}, threads);
    };
    if (bfloat16 && wide) run(bf16(), E5M6());
    else if (bfloat16) run(bf16(), E4M3());
    else if (wide) run(float(), E5M6());
    else run(float(), E4M3());
}

// The same for one matrix in both directions: 1 x 128 and 128 x 1.
EXPORT void fp8_quantize_both(int64_t bfloat16, const void* x, int64_t rows, int64_t columns, double floor, int64_t power_of_two, uint8_t* code,
                              float* scale, uint8_t* turned_code, float* turned_scale, int64_t threads) {
    const Scaling scaling{float(floor), power_of_two != 0};
    const Target<E4M3> to{code, scale}, turned{turned_code, turned_scale};
    if (bfloat16) quantize<E4M3>((const bf16*)x, 1, {rows, columns}, BOTH, scaling, to, turned, threads);
    else quantize<E4M3>((const float*)x, 1, {rows, columns}, BOTH, scaling, to, turned, threads);
}

// code [.., columns] and scale [.., ceil(columns / 128)], of which `index` picks rows, or the first ones where it is null.
EXPORT void fp8_turn(int64_t wide, const void* code, const float* scale, const int64_t* index, int64_t rows, int64_t columns, double floor,
                     int64_t power_of_two, uint8_t* turned_code, float* turned_scale, int64_t threads) {
    const Scaling scaling{float(floor), power_of_two != 0};
    const Target<E4M3> to{turned_code, turned_scale};
    if (wide) turn((const uint16_t*)code, scale, index, {rows, columns}, scaling, to, threads);
    else turn((const uint8_t*)code, scale, index, {rows, columns}, scaling, to, threads);
}
