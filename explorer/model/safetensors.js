// The weights of an ordinary checkpoint folder: safetensors, one file or several with an index (chapters 05 and 06).
//
//   8 bytes: length of the header        header: JSON, {name: {dtype, shape, data_offsets}}        then the numbers
//
// FP32, FP16, BF16 and FP8 (E4M3 with `weight_scale_inv`, a factor for each 128 x 128 block) all become float32.

import {FORMATS} from './fp8.js';

/** Float32Array of a tensor's bytes. */
function widen(dtype, bytes) {
  const whole = (type) => new type(bytes.slice().buffer); // a copy of its own begins where any type may begin
  if (dtype === 'F32') return whole(Float32Array);
  if (dtype === 'F64') return Float32Array.from(whole(Float64Array));
  if (dtype === 'F8_E4M3') return Float32Array.from(bytes, (code) => FORMATS.e4m3.values[code]);
  if (dtype === 'F16') return Float32Array.from(whole(Uint16Array), halfValue);
  if (dtype === 'BF16') {
    const short = whole(Uint16Array), long = new Uint32Array(short.length);
    short.forEach((half, i) => { long[i] = half << 16; }); // BF16 is the upper half of an FP32
    return new Float32Array(long.buffer);
  }
  throw new Error(`numbers of type ${dtype} are not known here; export the model as fp32, bf16 or fp8`);
}

function halfValue(code) {
  const exponent = (code >> 10) & 31, mantissa = (code & 1023) / 1024, sign = code >> 15 ? -1 : 1;
  if (exponent === 31) return mantissa ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + mantissa) : 2 ** -14 * mantissa);
}

/** Multiply every block by its scale. */
function scaleBlocks(values, columns, scales, scaleColumns, [height, width]) {
  return values.map((v, i) => {
    const row = Math.floor(i / columns), column = i % columns;
    return v * scales[Math.floor(row / height) * scaleColumns + Math.floor(column / width)];
  });
}

/** Read the header of one file: name -> {dtype, shape, bytes}. */
function readHeader(buffer) {
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  delete header.__metadata__;
  return Object.entries(header).map(([name, {dtype, shape, data_offsets: [from, to]}]) => [
    name, {dtype, shape, bytes: new Uint8Array(buffer, 8 + length + from, to - from)},
  ]);
}

/** The names of the files that hold the tensors. */
async function openFiles(fetchFile) {
  try {
    return [await fetchFile('model.safetensors')];
  } catch (missing) {
    const index = await fetchFile('model.safetensors.index.json').catch(() => { throw missing; });
    const files = new Set(Object.values(JSON.parse(new TextDecoder().decode(index)).weight_map));
    return Promise.all([...files].sort().map((name) => fetchFile(name)));
  }
}

/** Open a folder's tensors: returns take(name) -> {values, rows, columns}; a vector has one column. */
export async function openTensors(fetchFile, block = [128, 128]) {
  const entries = new Map((await openFiles(fetchFile)).flatMap(readHeader));
  return function take(name) {
    const entry = entries.get(name);
    if (!entry) throw new Error(`the checkpoint has no tensor ${name}`);
    const [rows, columns = 1] = entry.shape, values = widen(entry.dtype, entry.bytes);
    if (!entries.has(`${name}_scale_inv`)) return {values, rows, columns};
    const scales = take(`${name}_scale_inv`); // despite its name it multiplies
    return {values: scaleBlocks(values, columns, scales.values, scales.columns, block), rows, columns};
  };
}
