// The writer on a model of three tokens whose distributions are known: p of the model, q of its one module.

import {Writer, probabilities} from '../../explorer/model/writer.js';
import {answer, readJob} from './talk.mjs';

const {p, q, runs, steps, rule} = readJob();

const model = {
  config: {max_position_embeddings: 10 ** 6},
  layers: [{}], modules: [{layer: 1}],
  emptyCaches: () => [{latent: [], kRope: []}, {latent: [], kRope: []}],
  hiddenStates: (ids, [cache]) => ids.map(() => { cache.latent.push(0); return p; }),
  moduleStates: (depth, hidden, ids, [, cache]) => ids.map(() => { cache.latent.push(0); return q; }),
  logits: (rows) => rows.map((row) => Float32Array.from(row, Math.log)),
};

const counts = [0, 0, 0];
let tried = 0, stood = 0;
for (let seed = 0; seed < runs; seed++) {
  const writer = new Writer(model, [0], {temperature: 1, drafts: 1, seed});
  for (let i = 0; i < steps; i++) {
    const {accepted, rejected, next} = writer.step();
    [...accepted, next].forEach((id) => { counts[id]++; });
    tried += accepted.length + rejected.length;
    stood += accepted.length;
  }
}
const one = (seed) => { const w = new Writer(model, [0], {temperature: 1, seed}); w.step(); w.step(); return w.ids; };
const greedy = new Writer(model, [0], {temperature: 0, drafts: 1}), [, {guesses: [fell], next, share}] = [greedy.step(), greedy.step()];
answer({reason: [fell.id, fell.share, next, share], counts, tried, stood, cut: rule.map((r) => Array.from(probabilities(Float32Array.from(r.logits), r))),
  again: [one(5), one(5)]});
