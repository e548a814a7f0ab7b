// Codes and scales of matrices, and codes of single numbers.

import {FORMATS, encode, quantize} from '../../explorer/model/fp8.js';
import {sizes} from '../../explorer/model/sizes.js';
import {readConfig} from '../../explorer/model/config.js';
import {answer, pack, readJob, unpack} from './talk.mjs';

const job = readJob();
const numbers = unpack(job.numbers, Float32Array);
answer({
  codes: Object.fromEntries(Object.entries(FORMATS).map(([name, format]) =>
    [name, pack(Uint8Array.from(numbers, (x) => encode(x, format)))])),
  values: Object.fromEntries(Object.entries(FORMATS).map(([name, format]) => [name, pack(format.values)])),
  matrices: job.matrices.map(({data, rows, columns, ...how}) => {
    const {codes, scales, values} = quantize(unpack(data, Float32Array), rows, columns, how);
    return {codes: pack(codes), scales: pack(scales), values: pack(values)};
  }),
  sizes: job.configs.map(({config, options}) => sizes(readConfig(config), options)),
});
