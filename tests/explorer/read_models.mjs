// Read texts by the explorer's model, and write on: everything that test_model.py compares.

import {readFile} from 'node:fs/promises';
import {loadModel} from '../../explorer/model/load.js';
import {answer, pack, readJob} from './talk.mjs';

function writeOn(model, ids, drafts, tokens) {
  const writer = model.writer(ids, {drafts}), steps = [];
  while (writer.ids.length < ids.length + tokens) {
    const {accepted, rejected, next, cacheLength} = writer.step();
    steps.push({accepted, rejected, next, cacheLength});
  }
  return {ids: writer.ids.slice(ids.length), steps};
}

function readText(model, text, drafts, tokens) {
  const ids = model.tokenizer.encode(text);
  const {logits, trace, ahead} = model.read(ids, {trace: true, ahead: true});
  const last = trace.layers.at(-1);
  return {
    ids,
    logits: pack(logits),
    absorbed: pack(model.read(ids, {absorbed: true}).logits),
    ahead: ahead.map((rows) => (rows.length ? pack(rows) : null)),
    lens: pack([model.lens(last.output.at(-1))]),
    chosen: trace.layers.map(({routing}) => routing?.chosen ?? null),
    weights: trace.layers.map(({routing}) => routing && pack(routing.weights)),
    written: drafts.map((count) => writeOn(model, ids, count, tokens)),
  };
}

/** Facts about one trace that hold by themselves, and what the package has too. */
function checkTrace(model, ids) {
  const {trace} = model.read(ids, {trace: true});
  let sums = 0, apart = 0;
  for (const {attention: seen} of trace.layers) {
    seen.probs.forEach((head, h) => head.forEach((row, t) => {
      sums = Math.max(sums, Math.abs(row.reduce((a, b) => a + b, 0) - 1));
      for (let j = 0; j <= t; j++) {
        const expanded = seen.q[h][t].reduce((sum, v, i) => sum + v * seen.kNope[h][j][i], 0);
        const absorbed = seen.absorbedQ[h][t].reduce((sum, v, i) => sum + v * seen.latent[j][i], 0);
        apart = Math.max(apart, Math.abs(expanded - absorbed), Math.abs(expanded - seen.content[h][t][j]));
        const together = (seen.content[h][t][j] + seen.rope[h][t][j]) * seen.scale;
        apart = Math.max(apart, Math.abs(together - seen.scores[h][t][j]));
      }
    }));
  }
  return {
    sums, apart,
    states: trace.layers.map(({output}) => pack(output)),
    latents: trace.layers.map(({attention}) => pack(attention.latent)),
    ropeKeys: trace.layers.map(({attention}) => pack(attention.kRope)),
  };
}

const job = readJob(), results = [];
for (const {folder, texts, drafts} of job.models) {
  const model = await loadModel(async (name) => {
    const bytes = await readFile(`${folder}/${name}`);
    return bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
  });
  const ids = model.tokenizer.encode(texts[0]);
  results.push({texts: texts.map((text) => readText(model, text, drafts, job.tokens)), trace: checkTrace(model, ids)});
}
answer(results);
