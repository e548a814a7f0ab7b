// Writing: the modules draft, the model verifies in one pass, and what comes out is as without drafts (chapter 04).
//
//   known tokens t_0 .. t_n-1, of which the model has read all but the last
//   draft    module k reads (h_i of the depth below, t_{i+k}) at position i; its last row, n - 2, predicts t_{n-1+k}
//   verify   the model reads t_n-1 and the drafts; row j judges draft j + 1
//   accept   greedy: a draft that is the likeliest token. Sampled: draft d with probability min(1, p(d) / q(d)), else a
//            draw from max(0, p - q) takes its place; when all stand, one more token is drawn from the last row
//
// A module's row stays in its cache only if all that it read are known tokens. Source: arXiv:2412.19437, 2.2 and 5.4.3;
// the rule of acceptance is that of arXiv:2211.17192.

import {cutCache} from './attention.js';
import {argmax, best, softmax} from './numbers.js';

/** A small generator of numbers in [0, 1): the same for the same seed (mulberry32). */
export function seededRandom(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let x = Math.imul(state ^ (state >>> 15), state | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** What a token is drawn from: temperature first, then the likeliest tokens that together reach topP. */
export function probabilities(logits, {temperature, topP}) {
  if (!(temperature > 0)) {
    const sure = new Float32Array(logits.length);
    sure[argmax(logits)] = 1;
    return sure;
  }
  const top = logits[argmax(logits)]; // taken off first, so that a tiny temperature cannot overflow
  const probs = softmax(logits.map((x) => (x - top) / temperature));
  if (!(topP < 1)) return probs;
  const kept = new Float32Array(probs.length);
  let mass = 0;
  for (const i of best(probs, probs.length)) {
    if (mass >= topP && mass > 0) break; // the first one always stays
    mass += kept[i] = probs[i];
  }
  return kept.map((p) => p / mass);
}

/** Draw an index from a distribution. */
export function draw(probs, random) {
  let left = random() * probs.reduce((a, b) => a + b, 0), last = 0;
  for (let i = 0; i < probs.length; i++) {
    if (probs[i] > 0) {
      if (left < probs[i]) return i;
      [left, last] = [left - probs[i], i];
    }
  }
  return last; // rounding has left a crumb
}

export class Writer {
  /** ids: the text so far, at least one token; drafts: tokens guessed a step, none without modules. */
  constructor(model, ids, {temperature = 0, topP = 1, seed = 0, drafts = model.modules.length} = {}) {
    if (!ids.length) throw new Error('there must be one token at least to go on from');
    Object.assign(this, {model, rule: {temperature, topP}, random: seededRandom(seed)});
    this.ids = [...ids];
    this.drafts = model.modules.length ? drafts : 0;
    this.caches = model.emptyCaches();
    this.hidden = [[], ...model.modules.map(() => [])]; // rows by depth, 0 the main model's: kept where they are known
    this.room = model.config.max_position_embeddings;
  }

  get cacheLength() { return this.caches[0].latent.length; }

  /** One decoding step; null when the context is full. The first one reads the text and drafts nothing. */
  step() {
    const begun = performance.now(), {model, ids} = this;
    if (ids.length >= this.room) return null;
    const first = !this.cacheLength, wanted = Math.min(this.drafts, this.room - ids.length - 1);
    const guesses = first ? [] : this.#draft(wanted);
    const unread = [...ids.slice(this.cacheLength), ...guesses.map(({id}) => id)];
    const rows = model.hiddenStates(unread, this.caches, {absorbed: !first});
    const judges = model.logits(rows.slice(rows.length - guesses.length - 1));
    const {count, next} = this.#judge(judges, guesses);
    const accepted = guesses.slice(0, count).map(({id}) => id), rejected = guesses.slice(count).map(({id}) => id);
    const read = ids.length + count; // what the cache may keep: known tokens
    this.hidden[0].push(...rows.slice(0, rows.length - rejected.length));
    model.layers.forEach((_, i) => cutCache(this.caches[i], read));
    ids.push(...accepted, next);
    const milliseconds = performance.now() - begun, share = softmax(judges[count])[next]; // what the model gives its own token
    return {accepted, rejected, next, share, cacheLength: this.cacheLength, guesses, milliseconds};
  }

  /** Let the modules guess what comes: [{id, q}], q what it was drawn from. */
  #draft(wanted) {
    const {model, ids, caches, hidden} = this, known = ids.length, depths = model.modules.length, guesses = [];
    const guess = (row) => {
      const q = probabilities(model.logits([row])[0], this.rule);
      guesses.push({id: this.rule.temperature > 0 ? draw(q, this.random) : argmax(q), q});
    };
    for (let depth = 0; depth < Math.min(wanted, depths); depth++) {
      const from = caches[model.modules[depth].layer].latent.length; // rows that it has read for good
      const tokens = [...ids, ...guesses.map(({id}) => id)].slice(from + depth + 1, known + depth);
      const below = hidden[depth].slice(from, known - 1);
      hidden[depth + 1].push(...model.moduleStates(depth, below, tokens, caches, {absorbed: from > 0}));
      guess(hidden[depth + 1].at(-1));
    }
    while (guesses.length < wanted) { // beyond the modules the last one reads on from its own output
      const row = hidden[depths].at(-1);
      hidden[depths].push(...model.moduleStates(depths - 1, [row], [guesses.at(-1).id], caches, {absorbed: true}));
      guess(hidden[depths].at(-1));
    }
    for (let depth = 0; depth < depths; depth++) { // rows that were fed a guess are read again once it is known
      const sure = Math.min(hidden[depth + 1].length, Math.max(0, known - 1 - depth));
      cutCache(caches[model.modules[depth].layer], sure);
      hidden[depth + 1].length = sure;
    }
    return guesses;
  }

  /** Say how many guesses stand, and the token that follows them; notes p, what it had to hold against q, and share, what the model gave it. */
  #judge(logits, guesses) {
    const targets = logits.map((row) => probabilities(row, this.rule));
    guesses.forEach((guess, j) => Object.assign(guess, {p: targets[j][guess.id], share: softmax(logits[j])[guess.id]}));
    for (const [j, {id, q}] of guesses.entries()) {
      if (this.random() * q[id] < targets[j][id]) continue; // greedy: p and q are 0 or 1
      const missing = targets[j].map((p, i) => Math.max(0, p - q[i]));
      const some = missing.some((p) => p > 0); // p = q leaves rounding alone: then p itself is the distribution
      return {count: j, next: draw(some ? missing : targets[j], this.random)};
    }
    return {count: guesses.length, next: draw(targets.at(-1), this.random)};
  }
}
