// Multi-head latent attention, in its two equal forms, with the latent cache (chapters 01 and 02).
//
//   latent = RMSNorm(W_DKV x)        key_h, value_h = W_UK,h latent, W_UV,h latent        one rope key for all heads
//   score  = (q_content . key + q_rope . k_rope) * scale
//
// Expanded: keys and values of every head are made from the latent. Absorbed: W_UK moves to the query and W_UV to the
// output, so that every head attends to the cached latents themselves:   q . (W_UK latent) = (W_UK^T q) . latent
//
// Letters: T tokens, H heads, K content, R rotary, U value, C latent. Source: arXiv:2412.19437, Eqs. (1) to (11).

import {dot, multiplyRows, multiplyTurned, rmsNorm, softmax} from './numbers.js';
import {rotate} from './rope.js';

const LATENT_NORM_EPS = 1e-6; // the released code takes its default for the two latent norms, whatever the config says

/** The weights of one attention layer; `take` gives a tensor by its released name. */
export function takeAttention(take, config) {
  const low = config.q_lora_rank != null;
  return {
    low,
    qA: low && take('q_a_proj.weight'),
    qNorm: low && take('q_a_layernorm.weight').values,
    q: take(low ? 'q_b_proj.weight' : 'q_proj.weight'), // V2-Lite has the plain one
    kvA: take('kv_a_proj_with_mqa.weight'),
    kvNorm: take('kv_a_layernorm.weight').values,
    kvB: take('kv_b_proj.weight'),
    o: take('o_proj.weight'),
  };
}

/** An empty cache of one layer: a latent and a rope key a token, nothing else. */
export const emptyCache = () => ({latent: [], kRope: []});

/** Forget all but the first `length` tokens. */
export function cutCache(cache, length) {
  cache.latent.length = cache.kRope.length = length;
}

/** Queries of every token, by head: content [H][S], and rope [H][S], turned. */
function makeQueries(layer, rows, start, shape, linear) {
  const {heads, K, R, rope} = shape;
  const low = layer.low ? linear(layer.qA, rows).map((x) => rmsNorm(x, layer.qNorm, LATENT_NORM_EPS)) : rows;
  const wide = linear(layer.q, low); // V3 Eqs. (6), (7)
  const part = (x, h) => x.subarray(h * (K + R), (h + 1) * (K + R));
  return {
    q: heads.map((h) => wide.map((x) => part(x, h).slice(0, K))),
    qRope: heads.map((h) => wide.map((x, s) => rotate(part(x, h).subarray(K), start + s, rope))),
  };
}

/** Append what the cache holds of every token: the normed latent, and the rope key, turned and not normed. */
function appendLatents(layer, rows, start, cache, {C, rope}, linear) {
  linear(layer.kvA, rows).forEach((x, s) => {
    cache.latent.push(rmsNorm(x.subarray(0, C), layer.kvNorm, LATENT_NORM_EPS)); // V3 Eq. (1)
    cache.kRope.push(rotate(x.subarray(C), start + s, rope)); // V3 Eq. (3)
  });
}

/** Scores of one head and query: content and rope products, their scaled sum, its softmax; 0 behind the query. */
function scoreKeys({query, qRope}, {keys, from, kRope}, {position, n, scale}) {
  const content = new Float32Array(n), rope = new Float32Array(n), scores = new Float32Array(n);
  for (let j = 0; j <= position; j++) {
    content[j] = dot(query, 0, keys[j], from, query.length);
    rope[j] = dot(qRope, 0, kRope[j], 0, qRope.length);
    scores[j] = (content[j] + rope[j]) * scale;
  }
  return {content, rope, scores, probs: softmax(scores, position + 1)};
}

/** Sum over the tokens of weight * part of a row. */
function blend(probs, rows, from, width, n) {
  const sums = new Float64Array(width);
  for (let j = 0; j < n; j++) {
    for (let i = 0; i < width; i++) sums[i] += probs[j] * rows[j][from + i];
  }
  return new Float32Array(sums);
}

/**
 * Attend causally from rows at positions cache length, cache length + 1, ...; the cache grows by them.
 *
 * Returns the rows behind o_proj; `seen`, an object, is filled with what there is to look at, by head and token.
 */
export function attend(layer, rows, cache, shape, {linear, absorbed, seen}) {
  const {heads, K, U, C, scale} = shape, start = cache.latent.length, n = start + rows.length, {latent, kRope} = cache;
  const {q, qRope} = makeQueries(layer, rows, start, shape, linear);
  appendLatents(layer, rows, start, cache, shape, linear);
  const keyValue = absorbed && !seen ? null : linear(layer.kvB, latent); // V3 Eqs. (2), (5)
  const out = rows.map(() => new Float32Array(heads.length * U));
  const all = heads.map((h) => {
    const first = h * (K + U); // rows of kv_b_proj, and columns of keyValue: per head K of keys, then U of values
    const held = absorbed ? {keys: latent, from: 0, kRope} : {keys: keyValue, from: first, kRope};
    return rows.map((_, s) => {
      const position = start + s, both = absorbed || seen;
      const absorbedQ = both && multiplyTurned(layer.kvB, first, q[h][s]);
      const query = absorbed ? absorbedQ : q[h][s];
      const found = scoreKeys({query, qRope: qRope[h][s]}, held, {position, n, scale});
      const absorbedContext = both && blend(found.probs, latent, 0, C, position + 1);
      const head = absorbed
        ? multiplyRows(layer.kvB, first + K, U, absorbedContext)
        : blend(found.probs, keyValue, first + K, U, position + 1); // V3 Eq. (10)
      out[s].set(head, h * U);
      return {...found, absorbedQ, absorbedContext, head};
    });
  });
  if (seen) Object.assign(seen, describe(all, q, qRope, keyValue, cache, shape));
  return linear(layer.o, out); // V3 Eq. (11)
}

/** Arrange what was computed by quantity, then head, then token. */
function describe(all, q, qRope, keyValue, cache, {heads, K, U, scale}) {
  const by = (name) => all.map((head) => head.map((token) => token[name]));
  const part = (from, width) =>
    heads.map((h) => keyValue.map((x) => x.slice(h * (K + U) + from, h * (K + U) + from + width)));
  return {
    content: by('content'), rope: by('rope'), scores: by('scores'), probs: by('probs'), scale,
    latent: [...cache.latent], kRope: [...cache.kRope],
    q, qRope, kNope: part(0, K), values: part(K, U),
    absorbedQ: by('absorbedQ'), absorbedContext: by('absorbedContext'), headOut: by('head'),
  };
}
