// The router and the experts (chapter 03).
//
//   s = sigmoid(W x)     choose by  s + bias,  within the best groups     weight by  s  alone, normalized, then scaled
//
// The bias only picks experts: the weights never see it. V2's router (softmax, no bias, a group is worth its best
// expert, weights not normalized) is here too. Shared experts read every token, unweighted.
//
// Letters: N tokens, E experts, G groups, A experts a token. Source: arXiv:2412.19437, Eqs. (12) to (16).

import {isMoeLayer} from './config.js';
import {best, multiply, sigmoid, softmax, swiglu} from './numbers.js';

/** The weights of a feed-forward half: one dense network, or a gate with its experts. */
export function takeFeedForward(take, config, layer) {
  const network = (at) => ({
    gate: take(`${at}gate_proj.weight`), up: take(`${at}up_proj.weight`), down: take(`${at}down_proj.weight`),
  });
  if (!isMoeLayer(config, layer)) return {dense: network('')};
  const sigmoidal = config.scoring_func === 'sigmoid';
  return {
    gate: take('gate.weight'),
    bias: sigmoidal ? take('gate.e_score_correction_bias').values : null,
    experts: Array.from({length: config.n_routed_experts}, (_, e) => network(`experts.${e}.`)),
    shared: config.n_shared_experts ? network('shared_experts.') : null,
  };
}

/** Route one token: everything that leads to its experts and their weights. */
export function route(gate, x, config, bias) {
  const logits = multiply(gate, x), sigmoidal = config.scoring_func === 'sigmoid';
  const scores = sigmoidal ? logits.map(sigmoid) : softmax(logits); // V3 Eq. (15)
  const biased = bias ? scores.map((s, e) => s + bias[e]) : scores.slice(); // V3 Eq. (16)
  const grouped = config.topk_method !== 'greedy' && config.n_group > 1;
  let groupScores = null, groupsChosen = null, open = biased;
  if (grouped) {
    const size = biased.length / config.n_group;
    groupScores = Float32Array.from({length: config.n_group}, (_, g) => {
      const members = biased.subarray(g * size, (g + 1) * size);
      return best(members, sigmoidal ? 2 : 1).reduce((sum, e) => sum + members[e], 0); // the best two, V2: the best
    });
    groupsChosen = best(groupScores, config.topk_group);
    open = biased.map((s, e) => (groupsChosen.includes(Math.floor(e / size)) ? s : -Infinity));
  }
  const chosen = best(open, config.num_experts_per_tok); // V3 Eq. (14)
  let weights = Float32Array.from(chosen, (e) => scores[e]); // the raw score: the bias must not leak in here
  if (config.norm_topk_prob) {
    const sum = weights.reduce((a, b) => a + b, 1e-20);
    weights = weights.map((w) => w / sum); // V3 Eq. (13)
  }
  weights = weights.map((w) => w * config.routed_scaling_factor);
  return {scores, biased, groupScores, groupsChosen, chosen, weights};
}

/** Apply the feed-forward half of a layer; `seen` is filled with the routing, if there is one. */
export function feedForward(layer, rows, config, {linear, bias, seen}) {
  if (layer.dense) return swiglu(layer.dense, rows, linear);
  const used = bias ?? layer.bias;
  const routed = rows.map((x) => route(layer.gate, x, config, used));
  const out = rows.map((x) => new Float32Array(x.length));
  layer.experts.forEach((expert, e) => {
    const tokens = rows.map((_, t) => t).filter((t) => routed[t].chosen.includes(e));
    if (!tokens.length) return; // nobody chose it: it costs nothing
    const results = swiglu(expert, tokens.map((t) => rows[t]), linear);
    tokens.forEach((t, i) => {
      const weight = routed[t].weights[routed[t].chosen.indexOf(e)];
      results[i].forEach((v, d) => { out[t][d] += weight * v; });
    });
  });
  const routedOut = seen && out.map((row) => row.slice());
  const sharedOut = layer.shared && swiglu(layer.shared, rows, linear); // V3 Eq. (12)
  sharedOut?.forEach((row, t) => row.forEach((v, d) => { out[t][d] += v; }));
  if (seen) {
    const columns = Object.keys(routed[0]).map((name) => [name, routed[0][name] && routed.map((r) => r[name])]);
    Object.assign(seen, Object.fromEntries(columns), {bias: used, routedOut, sharedOut});
  }
  return out;
}
