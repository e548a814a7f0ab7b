// How fast the explorer's model reads and writes in Node, whose engine is Chromium's:
//
//   deepseek-v3 export runs/demo OUT && node benchmarks/explorer.mjs OUT
//
// Medians of five rounds in turns; a prompt of up to 32 tokens, 64 tokens written greedily. A second is one of the
// processor's, so that neighbours on the machine do not count: on an idle one it is a second of the clock.

import {readFile} from 'node:fs/promises';
import {loadModel} from '../explorer/model/load.js';

const ROUNDS = 5, WRITTEN = 64;
const PROMPT = 'def read_lines(path, encoding=None):\n    """Return the lines of a file."""\n';
const folder = process.argv[2];
const now = () => { const {user, system} = process.cpuUsage(); return (user + system) / 1e6; };
const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1];

async function fetchFile(name) {
  const bytes = await readFile(`${folder}/${name}`);
  return bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
}

const begun = now(), model = await loadModel(fetchFile), opened = now() - begun;
const ids = model.tokenizer.encode(PROMPT).slice(0, 32);

function timeWriting(drafts) {
  const writer = model.writer(ids, {drafts});
  writer.step(); // reads the prompt
  const before = writer.ids.length, start = now();
  let steps = 0;
  while (writer.ids.length < before + WRITTEN) {
    writer.step();
    steps++;
  }
  return {rate: (writer.ids.length - before) / (now() - start), perStep: (writer.ids.length - before) / steps};
}

function timeReading() {
  const start = now();
  model.read(ids, {trace: true});
  return {rate: ids.length / (now() - start)};
}

const kinds = {
  'read, with trace': timeReading,
  'write, plain': () => timeWriting(0),
  'write, drafts': () => timeWriting(model.modules.length),
};
const found = Object.fromEntries(Object.keys(kinds).map((name) => [name, []]));
for (let round = 0; round < ROUNDS; round++) {
  for (const [name, run] of Object.entries(kinds)) found[name].push(run());
}
console.log(`${'opened'.padEnd(18)} ${opened.toFixed(2)} s`);
for (const [name, rounds] of Object.entries(found)) {
  const rate = median(rounds.map((one) => one.rate)), perStep = median(rounds.map((one) => one.perStep ?? 1));
  const steps = perStep > 1 ? `, ${perStep.toFixed(2)} tokens a step` : '';
  console.log(`${name.padEnd(18)} ${rate.toFixed(0)} tokens/s${steps}`);
}
