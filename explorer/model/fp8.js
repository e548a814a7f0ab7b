// FP8: a matrix as codes of 8 bits, with a scale for each tile, block or the whole (chapter 05).
//
//   scale = max |x| / largest of the format        code = nearest(x / scale)        x ~ value of the code * scale
//
//   E4M3: 4 bits of exponent, 3 of mantissa, up to 448        E5M2: 5 and 2, up to 57,344
//
// Every step is float32, as in the released kernels: `f` rounds to it. Source: arXiv:2412.19437, section 3.3.

import {project} from './numbers.js';

const f = Math.fround;
const FLOOR = f(1e-4); // under max |x|: a tile of zeros stays zero, and not 0 / 0
export const FORMATS = {
  e4m3: {exponentBits: 4, mantissaBits: 3, largestCode: 0x7e, nan: 0x7f, infinity: null},
  e5m2: {exponentBits: 5, mantissaBits: 2, largestCode: 0x7b, nan: 0x7e, infinity: 0x7c},
};
const number = new Float32Array(1), bits = new Uint32Array(number.buffer);
const LEAST = -24, POWERS = Float64Array.from({length: 160}, (_, i) => 2 ** (i + LEAST)); // 2^LEAST and up

function roundToEven(x) {
  const up = Math.round(x); // ties go up
  return up - x === 0.5 && up % 2 ? up - 1 : up;
}

/** The value of every code of a format, 256 numbers. */
export function valuesOf({exponentBits, mantissaBits, largestCode, infinity}) {
  const bias = 2 ** (exponentBits - 1) - 1;
  return Float32Array.from({length: 256}, (_, code) => {
    const size = code & 0x7f, exponent = size >> mantissaBits, steps = 1 << mantissaBits;
    const mantissa = (size % steps) / steps;
    const value = exponent ? 2 ** (exponent - bias) * (1 + mantissa) : 2 ** (1 - bias) * mantissa; // below: subnormal
    const real = size <= largestCode ? value : size === infinity ? Infinity : NaN;
    return code & 0x80 ? -real : real;
  });
}

for (const format of Object.values(FORMATS)) format.values = valuesOf(format);

/** The code nearest to a float32 number, ties to the even code; beyond the largest it stays the largest. */
export function encode(x, {exponentBits, mantissaBits, largestCode, nan}) {
  if (x !== x) return nan;
  number[0] = x; // its bits: one of sign, eight of exponent, which is off by 127
  const sign = (bits[0] >>> 31) << 7, stored = ((bits[0] >>> 23) & 0xff) - 127;
  const smallest = 2 - (1 << (exponentBits - 1)); // exponent of the smallest normal number, shared by the subnormals
  const exponent = Math.max(stored, smallest);
  const steps = roundToEven(Math.abs(x) / POWERS[exponent - mantissaBits - LEAST]); // a carry raises the exponent
  return sign | Math.min((exponent - smallest) * (1 << mantissaBits) + steps, largestCode);
}

/** 2^ceil(log2 x) of a positive float32: the exponent alone, one more if there is any mantissa. */
function powerOfTwoAbove(x) {
  number[0] = x;
  const rest = bits[0] & 0x7fffff;
  bits[0] -= rest;
  return rest ? 2 * number[0] : number[0];
}

/** Rows and columns that share a scale. */
export function tileOf(granularity, rows, columns) {
  const sizes = {tile: [1, 128], block: [128, 128], tensor: [rows, columns]}; // V3 Fig. 7
  if (!sizes[granularity]) throw new Error(`granularity ${granularity} must be tile, block or tensor`);
  return sizes[granularity];
}

/**
 * Quantize a matrix [rows, columns]; ragged edges are tiles cut short.
 *
 * Returns codes, one scale a tile (row after row of tiles), and the values that can be read back from them.
 */
export function quantize(values, rows, columns, {format = 'e4m3', granularity = 'tile', powerOfTwo = false} = {}) {
  const kind = FORMATS[format];
  if (!kind) throw new Error(`format ${format} must be ${Object.keys(FORMATS).join(' or ')}`);
  const [height, width] = tileOf(granularity, rows, columns), across = Math.ceil(columns / width);
  const scales = new Float32Array(Math.ceil(rows / height) * across);
  const forEach = (visit) => { // element and tile
    for (let row = 0, i = 0; row < rows; row++) {
      const first = Math.floor(row / height) * across;
      for (let column = 0; column < columns; column++, i++) visit(i, first + Math.floor(column / width));
    }
  };
  forEach((i, t) => {
    if (!Number.isFinite(values[i])) throw new Error('a matrix with infinity or NaN has no FP8 form');
    scales[t] = Math.max(scales[t], Math.abs(values[i]));
  });
  const largest = kind.values[kind.largestCode];
  scales.forEach((most, t) => { scales[t] = f(Math.max(most, FLOOR) / largest); });
  if (powerOfTwo) scales.forEach((scale, t) => { scales[t] = powerOfTwoAbove(scale); });
  const codes = new Uint8Array(values.length), back = new Float32Array(values.length);
  forEach((i, t) => {
    codes[i] = encode(f(f(values[i]) / scales[t]), kind);
    back[i] = kind.values[codes[i]] * scales[t];
  });
  return {codes, scales, values: back};
}

const held = new WeakMap(); // matrices in FP8, by the matrix, then by the way it was quantized

/**
 * The products of a model in FP8: the rows by the given granularity, the weights by blocks of 128 x 128 (or as one).
 *
 * Sums are exact here; what FP8 loses lies in the codes. Embedding, head, gate, norms and attention itself stay wide.
 */
export function fp8Linear(options) {
  const {format = 'e4m3', granularity = 'tile', powerOfTwo = false, weights = true, activations = true} = options;
  const quantizeWeight = (weight) => {
    const how = {format, granularity: granularity === 'tensor' ? 'tensor' : 'block', powerOfTwo};
    const key = JSON.stringify(how), known = held.get(weight) ?? held.set(weight, new Map()).get(weight);
    if (!known.has(key)) known.set(key, {...weight, ...quantize(weight.values, weight.rows, weight.columns, how)});
    return known.get(key);
  };
  return (weight, rows) => {
    const narrow = activations ? quantizeRows(rows, {format, granularity, powerOfTwo}) : rows;
    return project(weights ? quantizeWeight(weight) : weight, narrow);
  };
}

/** Quantize the rows of a text as one matrix, and read them back. */
export function quantizeRows(rows, how) {
  const width = rows[0].length, joined = new Float32Array(rows.length * width);
  rows.forEach((row, t) => joined.set(row, t * width));
  const {values} = quantize(joined, rows.length, width, how);
  return rows.map((_, t) => values.subarray(t * width, (t + 1) * width));
}
