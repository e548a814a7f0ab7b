// How the scripts of this folder are asked, and how they answer: JSON in, JSON out, arrays in base64.

import {readFileSync, writeSync} from 'node:fs';

export const readJob = () => JSON.parse(readFileSync(0, 'utf8'));

export function answer(result) {
  const text = Buffer.from(JSON.stringify(result));
  for (let at = 0; at < text.length;) {
    try {
      at += writeSync(1, text, at);
    } catch (error) {
      if (error.code !== 'EAGAIN') throw error; // the pipe is full; Python reads
    }
  }
}

const TYPES = {Float32Array: '<f4', Uint8Array: '|u1'};

/** Rows of one length, or one array. */
export function pack(array) {
  const rows = Array.isArray(array) ? array : null, first = rows ? rows[0] : array;
  const bytes = Buffer.concat((rows ?? [array]).map((row) => Buffer.from(row.buffer, row.byteOffset, row.byteLength)));
  const shape = rows ? [rows.length, first.length] : [first.length];
  return {type: TYPES[first.constructor.name], shape, data: bytes.toString('base64')};
}

/** Bytes that Python wrote in base64, as a typed array. */
export const unpack = (text, type) => new type(Uint8Array.from(Buffer.from(text, 'base64')).buffer);
