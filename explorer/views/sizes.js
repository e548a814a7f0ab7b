// View 6, sizes: parameters, cache and FLOPs of any config up to 671B, each as the product that it is.
import {bytes, fill, grouped, h, large, number, percent, say, tell} from './draw.js';
import {bars, card, choice, slider, viewHead} from './bars.js';

const V3 = {
  vocab_size: 129280, hidden_size: 7168, intermediate_size: 18432, moe_intermediate_size: 2048, num_hidden_layers: 61,
  first_k_dense_replace: 3, num_attention_heads: 128, q_lora_rank: 1536, kv_lora_rank: 512, qk_nope_head_dim: 128,
  qk_rope_head_dim: 64, v_head_dim: 128, n_routed_experts: 256, n_shared_experts: 1, num_experts_per_tok: 8,
  scoring_func: 'sigmoid', num_nextn_predict_layers: 1,
};
const V2_LITE = {
  ...V3, vocab_size: 102400, hidden_size: 2048, intermediate_size: 10944, moe_intermediate_size: 1408,
  num_hidden_layers: 27, first_k_dense_replace: 1, num_attention_heads: 16, q_lora_rank: null, n_routed_experts: 64,
  n_shared_experts: 2, num_experts_per_tok: 6, scoring_func: 'softmax', num_nextn_predict_layers: 0,
};
// A key of the config, and the values that its slider goes through.
const KNOBS = {
  num_hidden_layers: [2, 61, 1], hidden_size: [64, 7168, 64], num_attention_heads: [1, 128, 1], kv_lora_rank: [16, 1024, 16],
  n_routed_experts: [4, 256, 4], num_experts_per_tok: [1, 16, 1], moe_intermediate_size: [32, 2048, 32],
};
const KIND = {attention: 'content', routers: 'routed', routedExperts: 'routed', sharedExperts: 'shared', mtp: 'draft'}; // others: ink

export function sizesView(app) {
  const own = app.model.config, named = {own, v3: V3, v2lite: V2_LITE};
  const pick = choice(say('sizes.config'), [['own', say('sizes.own')], ['v2lite', 'V2-Lite 16B'], ['v3', 'V3 671B']], (name) => app.set({shape: name, knobs: {}}));
  const knobs = Object.entries(KNOBS).map(([key, [min, max, step]]) => [key,
    slider(`\`${key}\``, {min, max, step}, (value) => app.set({knobs: {...app.state.knobs, [key]: value}}))]);
  const context = slider(say('sizes.context'), {min: 7, max: 17, step: 1}, (value) => app.set({context: value}));
  const figures = h('dl.figures', {}), strip = h('div.strip', {role: 'img'}), parts = bars(say('sizes.parts'));
  const products = h('ol.products', {'aria-label': say('sizes.products')}), cacheProduct = h('ol.products', {});
  const cache = bars(say('sizes.cache')), said = h('p.verdict', {}), flops = bars(say('sizes.flops'));
  const knobsNode = h('div.knobs', {}, knobs.map((pair) => pair[1].node));
  const node = h('div.view', {}, viewHead('sizes'), h('div.controls.wide', {}, pick.node, knobsNode), figures,
    card('sizes.parameters', strip, parts.node, h('h4', {}, say('sizes.products')), products),
    h('div.two', {}, card('sizes.cacheCard', context.node, cache.node, cacheProduct, said), card('sizes.flopsCard', flops.node)));
  return {node, update() {
    const {shape, context: power} = app.state, moved = withinReach(app.state.knobs), config = {...named[shape] ?? own, ...moved};
    config.num_experts_per_tok = Math.min(config.num_experts_per_tok, config.n_routed_experts ?? 1);
    const n = 2 ** power, size = app.sizes(config, {context: n});
    pick.draw(Object.keys(moved).length ? '' : shape);
    for (const [key, knob] of knobs) knob.draw(config[key] ?? 0, grouped(config[key] ?? 0));
    context.draw(power, say('sizes.tokens', {n: grouped(n)}));
    const shown = [['parameters', large(size.parameters)], ['active', large(size.active), percent(size.active / size.parameters, 1)],
      ['cachePerToken', bytes(size.cacheBytesPerToken)], ['flopsPerToken', large(size.flopsPerToken)]];
    fill(figures, shown.map(([name, value, more]) => h('div', {}, h('dt', {}, say(`sizes.${name}`)), h('dd', {}, value, more ? h('small', {}, ` ${more}`) : null))));
    const shares = Object.entries({...size.parts, mtp: size.mtp}).filter(([, value]) => value > 0).sort((a, b) => b[1] - a[1]);
    strip.setAttribute('aria-label', shares.map(([name, value]) => `${say(`sizes.part.${name}`)} ${percent(value / size.parameters, 1)}`).join(', '));
    fill(strip, shares.map(([name, value]) => h(`span.kind-${KIND[name] ?? 'ink'}`, {style: `flex:${value / size.parameters}`})));
    parts.draw(shares.map(([name, value]) => ({name: say(`sizes.part.${name}`), value, kind: KIND[name] ?? 'ink',
      words: name === 'mtp' ? large(value) : `${large(value)} · ${percent(value / size.parameters, 1)}`})));
    fill(products, productsOf(config).map(([name, value, factors]) => equation(`sizes.part.${name}`, 'sizes.equals', {factors, value: grouped(value)})));
    drawCache(config, size, n);
    flops.draw([['flopsMla', size.flopsPerToken, 'content'], ['flopsDense', size.flopsPerToken + 2 * (size.parameters - size.active), 'ink']]
      .map(([name, value, kind]) => ({name: say(`sizes.${name}`), value, kind, words: large(value)})));
  }};

  function drawCache(config, size, n) {
    const kinds = [['mha', size.mhaBytesPerToken, 'ink'], ['gqa', size.gqaBytesPerToken, 'content'], ['mla', size.cacheBytesPerToken, 'latent']];
    cache.draw(kinds.map(([name, each, kind]) => ({name: say(`attention.${name}`), value: each, kind, words: bytes(each * n)})));
    const C = config.kv_lora_rank, R = config.qk_rope_head_dim, L = config.num_hidden_layers, each = size.cacheBytesPerToken;
    fill(cacheProduct, equation('sizes.cachePerToken', 'sizes.cacheProduct', {C, R, L, width: each / L / (C + R), value: grouped(each)}));
    fill(said, tell('sizes.cacheSaid', {n: grouped(n), bytes: bytes(each * n), times: number(size.mhaBytesPerToken / each, 2)}));
  }
}

const equation = (name, words, values) => h('li', {}, h('span', {}, say(name)), h('span.factors', {}, tell(words, values)));

// What an address may say of the shape: known keys, within what their sliders can reach.
function withinReach(moved) {
  const known = Object.entries(moved).filter((pair) => pair[0] in KNOBS);
  return Object.fromEntries(known.map(([key, value]) => [key, Math.round(Math.max(KNOBS[key][0], Math.min(KNOBS[key][1], value)))]));
}

// The large parts as products of numbers of the config: [name, value, the factors in words].
export function productsOf(config) {
  const {vocab_size: V, hidden_size: D, num_hidden_layers: L, kv_lora_rank: C, q_lora_rank: Q} = config;
  const {num_attention_heads: H, qk_nope_head_dim: K, qk_rope_head_dim: R, v_head_dim: U} = config;
  const dense = config.n_routed_experts ? config.first_k_dense_replace : L, moe = L - dense, E = config.n_routed_experts ?? 0, F = config.moe_intermediate_size;
  const times = (...factors) => [factors.reduce((a, b) => a * b, 1), factors.map(grouped).join(' × ')];
  const query = Q ? D * Q + Q * H * (K + R) : D * H * (K + R);
  const one = query + D * (C + R) + C * H * (K + U) + H * U * D;
  const rows = [['routedExperts', ...times(moe, E, 3, D, F)], ['sharedExperts', ...times(moe, config.n_shared_experts ?? 0, 3, D, F)],
    ['attention', ...times(L, one)], ['dense', ...times(dense, 3, D, config.intermediate_size)], ['embedding', ...times(V, D)], ['routers', ...times(moe, E, D)]];
  return rows.filter((row) => row[1] > 0);
}
