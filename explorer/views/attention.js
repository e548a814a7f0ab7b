// View 2, attention: content + rope = score, per head; the latent in its two forms with what each costs; the cache in bytes.
import {block, bytes, dot, fill, grouped, h, number, percent, prepare, rule, say, tell, visible, write} from './draw.js';
import {bars, card, choice, slider, viewHead} from './bars.js';
import {heatmap} from './heatmap.js';
import {productPanel} from './product.js';

export function attentionView(app) {
  const heads = h('div.heads', {role: 'group', 'aria-label': say('attention.heads')});
  const maps = ['content', 'rope', 'scores', 'probs'].map((part) => [part, heatmap(say(`attention.${part}`))]);
  const signs = {content: '', rope: '+', scores: '=', probs: '→'};
  const equation = h('div.maps', {}, maps.map(([part, map]) => h('div.map', {}, h(`p.map-name.is-${KINDS[part]}`, {},
    h('span.sign', {'aria-hidden': 'true'}, signs[part]), tell(`attention.${part}Short`)), map.node)));
  const begin = app.bos && say('attention.begin', {begin: app.piece(app.model.config.bos_token_id)}), product = productPanel(app);
  const node = h('div.view', {}, viewHead('attention'), heads, h('p.note', {}, say('attention.headsNote'), begin), equation, product.node);
  const latent = latentCard(app), cache = cacheCard(app);
  node.append(latent.node, cache.node);
  const thumbs = [];

  function drawHeads() {
    const {probs} = attentionOf(app), n = probs.length;
    while (thumbs.length > n) thumbs.pop().remove();
    for (let i = 0; i < n; i++) {
      if (!thumbs[i]) {
        thumbs[i] = h('button.head', {type: 'button', onclick: () => app.set({head: i})}, h('canvas', {'aria-hidden': 'true'}),
          h('span', {}, say('attention.head', {head: i})));
        heads.append(thumbs[i]);
      }
      thumbs[i].setAttribute('aria-pressed', String(i === app.state.head));
      paintHead(thumbs[i].firstChild, probs[i]);
    }
  }
  return {node, update() {
    drawHeads();
    const {token, head, key} = app.state, {scale, ...parts} = attentionOf(app), names = app.data.pieces;
    const at = (part, r, c) => c > r ? null : parts[part][head][r][c] * (part === 'content' || part === 'rope' ? scale : 1);
    const n = names.length;
    const most = Math.max(...['content', 'rope'].map((part) => farthest(parts[part][head]) * scale));
    for (const [part, map] of maps) {
      const share = part === 'probs', words = (value) => share ? percent(value, 1) : number(value);
      map.draw({rows: n, columns: n, kind: KINDS[part], most: share ? 1 : most, at: (r, c) => at(part, r, c), picked: [token, key],
        gutter: part === 'content' ? 66 : 0, tallest: 26, onpick: (r, c) => app.set({token: r, key: c}),
        rowName: (r) => visible(names[r]), columnName: (c) => visible(names[c]),
        read: (r, c) => say('attention.cell', {reader: visible(names[r]), read: visible(names[c]), value: words(at(part, r, c))})});
    }
    drawProduct(app, product);
    latent.update();
    cache.update();
  }, tint(i) {
    const {token, head} = app.state;
    return i <= token ? {kind: 'content', strength: attentionOf(app).probs[head][token][i]} : null;
  }};
}

const KINDS = {content: 'content', rope: 'rope', scores: 'text', probs: 'content'};
const attentionOf = (app) => app.data.trace.layers[app.state.layer].attention;
const farthest = (rows) => rows.reduce((top, row, r) => row.subarray(0, r + 1).reduce((most, x) => Math.max(most, Math.abs(x)), top), 1e-9);

function paintHead(canvas, probs) {
  const n = probs.length, size = 64, cell = size / n, pen = prepare(canvas, size, size);
  canvas.style.width = `${size}px`;
  for (let r = 0; r < n; r++) {
    for (let c = 0; c <= r; c++) {
      block(pen, 'content', c * cell, r * cell, cell - (cell > 4 ? 0.5 : 0), cell - (cell > 4 ? 0.5 : 0), 0.06 + 0.94 * probs[r][c] ** 0.6);
    }
  }
}

// One score: content part and rope part, added, scaled, and the share that softmax makes of it.
function drawProduct(app, panel) {
  const {token, head, key, layer} = app.state, seen = attentionOf(app), names = app.data.pieces;
  const [q, k, qr, kr] = [seen.q[head][token], seen.kNope[head][key], seen.qRope[head][token], seen.kRope[key]];
  const content = dot(q, k), rope = dot(qr, kr);
  panel.draw({title: say('attention.product', {reader: visible(names[token]), read: visible(names[key])}),
    lead: say('attention.productLead', {layer, head}),
    segments: [{kind: 'content', left: ['*q*', q], right: ['*k*', k]}, {kind: 'rope', left: ['*q*_{rope}', qr], right: ['*k*_{rope}', kr]}],
    steps: [[say('attention.sumContent', {n: q.length}), content, 'content'], [say('attention.sumRope', {n: qr.length}), rope, 'rope'],
      [say('attention.scaled', {scale: number(seen.scale, 4)}), (content + rope) * seen.scale],
      [say('attention.share', {n: token + 1}), percent(seen.probs[head][token][key], 1)]]});
}

// The same content score twice: from a key made of the latent, and from the latent itself.
function latentCard(app) {
  const form = {taken: 'expanded'};
  const pick = choice(say('attention.form'), [['expanded', say('attention.expanded')], ['absorbed', say('attention.absorbed')]],
    (value) => { form.taken = value; update(); });
  const lead = h('p.equation', {}), product = productPanel(app);
  const equal = h('p.verdict', {}), work = bars(say('attention.work'));
  const reach = {tokens: 0};
  const context = slider(say('attention.keys'), {min: 0, max: 17, step: 1}, (value) => { reach.tokens = value; update(); });
  const node = card('attention.latent', h('div.two', {}, h('div', {}, pick.node, lead, product.node, equal),
    h('div', {}, h('h4', {}, say('attention.work')), context.node, work.node, h('p.note', {}, tell('attention.workNote')))));
  function update() {
    const {token, head, key} = app.state, seen = attentionOf(app), c = app.model.config;
    const sides = {expanded: [seen.q[head][token], seen.kNope[head][key], '*q*', '*k*', 'content'],
      absorbed: [seen.absorbedQ[head][token], seen.latent[key], '*q*′', '*c*', 'latent']};
    pick.draw(form.taken);
    const [left, right, a, b, kind] = sides[form.taken];
    fill(lead, tell(`attention.${form.taken}Lead`, {K: c.qk_nope_head_dim, C: c.kv_lora_rank}));
    const sum = (name) => dot(sides[name][0], sides[name][1]);
    product.draw({title: say(`attention.${form.taken}Title`), lead: '', segments: [{kind, left: [a, left], right: [b, right]}],
      steps: [[say('attention.sumExpanded', {K: c.qk_nope_head_dim}), number(sum('expanded'), 6), 'content'],
        [say('attention.sumAbsorbed', {C: c.kv_lora_rank}), number(sum('absorbed'), 6), 'latent']]});
    const apart = Math.abs(sum('expanded') - sum('absorbed'));
    fill(equal, say('attention.equal', {apart: number(apart, 2)}));
    const n = reach.tokens ? 2 ** reach.tokens : token + 1;
    context.draw(reach.tokens, reach.tokens ? say('attention.keysOf', {n: grouped(n)}) : say('attention.keysHere', {n}));
    const cost = workOf(c, n);
    work.draw([['expanded', 'content'], ['absorbed', 'latent']].map(([name, kind]) => ({name: say(`attention.${name}`), value: cost[name], kind,
      words: say('attention.products', {n: grouped(cost[name])}), picked: form.taken === name, onpick: () => { form.taken = name; update(); }})));
  }
  return {node, update};
}

// Multiplications of one layer for one new token with n tokens in the cache (chapter 02, absorbed_attention).
export function workOf(config, n) {
  const {num_attention_heads: H, qk_nope_head_dim: K, qk_rope_head_dim: R, v_head_dim: U, kv_lora_rank: C} = config;
  const up = C * H * (K + U);
  return {expanded: n * up + H * n * (K + R + U), absorbed: up + H * n * (2 * C + R)};
}

// The cache growing in bytes, token by token, beside what other kinds of attention would keep.
function cacheCard(app) {
  const canvas = h('canvas', {role: 'img', 'aria-label': say('attention.cacheGrowth')}), place = h('div', {}, canvas);
  const rows = bars(say('attention.cacheBytes')), said = h('p.verdict', {});
  const reach = {power: 0};
  const context = slider(say('attention.context'), {min: 0, max: 17, step: 1}, (value) => { reach.power = value; update(); });
  const node = card('attention.cache', h('div.two', {}, h('div', {}, place), h('div', {}, context.node, rows.node, said)));
  new ResizeObserver(() => update()).observe(place);
  function update() {
    if (!app.data) return;
    const size = app.sizes(app.model.config), t = app.state.token;
    const n = reach.power ? 2 ** reach.power : app.data.ids.length, now = reach.power ? n : t + 1;
    const kinds = [['mha', size.mhaBytesPerToken, 'ink'], ['gqa', size.gqaBytesPerToken, 'content'], ['mla', size.cacheBytesPerToken, 'latent']];
    context.draw(reach.power, reach.power ? say('attention.keysOf', {n: grouped(n)}) : say('attention.keysHere', {n}));
    rows.draw(kinds.map(([name, each, kind]) => ({name: say(`attention.${name}`), value: each * now, kind, words: bytes(each * now)})));
    const times = number(size.mhaBytesPerToken / size.cacheBytesPerToken, 2);
    fill(said, tell('attention.cacheSaid', {n: grouped(now), times, each: grouped(size.cacheBytesPerToken), all: bytes(size.cacheBytesPerToken * now)}));
    paintGrowth(canvas, kinds, n, now);
  }
  return {node, update};
}

function paintGrowth(canvas, kinds, n, now) {
  const width = canvas.parentNode.clientWidth, height = 200, foot = 22;
  if (!width) return;
  const pen = prepare(canvas, width, height), top = kinds[0][1] * n;
  const x = (t) => 4 + t / n * (width - 12), y = (b) => height - foot - b / top * (height - foot - 20);
  for (const [name, each, kind] of kinds) {
    rule(pen, kind, [x(0), y(0)], [x(n), y(each * n)], 2);
    block(pen, kind, x(now) - 4, y(each * now) - 4, 8, 8);
    const words = `${say(`attention.${name}Short`)}  ${bytes(each * n)}`;
    write(pen, words, x(n) - 4, y(each * n) + (name === 'mla' ? 24 : -7), {kind: `${kind}-text`, align: 'right'});
  }
  write(pen, '0', x(0), height - 6, {align: 'left'});
  write(pen, say('attention.tokens', {n: grouped(n)}), x(n), height - 6, {align: 'right'});
}
