// View 3, routing: scores, bias, groups, the chosen and their weights; load over the text; drag a bias and watch.
import {block, colour, dot, fill, h, largest, number, percent, prepare, rule, say, signed, softmax, tell, visible, write} from './draw.js';
import {bars, card, slider, viewHead} from './bars.js';
import {heatmap} from './heatmap.js';
import {productPanel} from './product.js';

export function routingView(app) {
  const dense = h('p.verdict', {});
  const board = h('canvas', {tabindex: 0, role: 'application', 'aria-roledescription': say('routing.board'), 'aria-label': say('routing.board')});
  const boardPlace = h('div.board', {}, board), readout = h('p.readout', {}), said = h('p.verdict', {});
  const map = heatmap(say('routing.map')), load = h('canvas', {role: 'img', 'aria-label': say('routing.load')}), loadPlace = h('div', {}, load);
  const weights = bars(say('routing.weights')), counts = h('p.note', {});
  const product = productPanel(app), moved = movedCard(app);
  const body = h('div', {}, card('routing.token', boardPlace, readout, said, counts, weights.node), product.node,
    card('routing.text', map.node, h('h4', {}, say('routing.load')), loadPlace), moved.node);
  const node = h('div.view', {}, viewHead('routing'), dense, body);
  let grid = null;

  const expertAt = (event) => {
    const x = event.clientX - board.getBoundingClientRect().left;
    return grid.places.findIndex(([left, right]) => x >= left && x < right);
  };
  let dragging = null;
  board.addEventListener('pointerdown', (event) => {
    const expert = expertAt(event);
    if (expert < 0) return;
    dragging = {y: event.clientY, from: biasOf(app, expert), expert, unit: grid.unit, moved: false};
    board.setPointerCapture(event.pointerId);
    app.set({expert});
  });
  board.addEventListener('pointermove', (event) => {
    if (!dragging) return;
    const change = (dragging.y - event.clientY) / dragging.unit;
    if (!dragging.moved && Math.abs(dragging.y - event.clientY) < 4) return;
    dragging.moved = true;
    setBias(app, dragging.expert, dragging.from + change);
  });
  for (const kind of ['pointerup', 'pointercancel']) board.addEventListener(kind, () => { dragging = null; });
  board.addEventListener('keydown', (event) => {
    const step = {ArrowLeft: -1, ArrowRight: 1}[event.key], turn = {ArrowUp: 0.01, ArrowDown: -0.01}[event.key];
    if (!step && !turn) return;
    event.preventDefault();
    if (step) app.set({expert: Math.max(0, Math.min(app.model.config.n_routed_experts - 1, app.state.expert + step))});
    else setBias(app, app.state.expert, biasOf(app, app.state.expert) + turn);
  });
  new ResizeObserver(() => { if (routingOf(app)) paint(); }).observe(boardPlace);

  function paint() {
    grid = paintBoard(board, boardPlace.clientWidth, routingOf(app), app) ?? grid;
    paintLoad(load, loadPlace.clientWidth, app);
  }
  return {node, update() {
    const routing = routingOf(app), {token, expert} = app.state, names = app.data.pieces;
    body.hidden = !routing;
    dense.hidden = Boolean(routing);
    if (!routing) return fill(dense, tell('routing.dense', {layer: app.state.layer}));
    paint();
    const place = routing.chosen[token].indexOf(expert);
    fill(readout, tell(place < 0 ? 'routing.notChosen' : 'routing.chosen', {expert, score: number(routing.scores[token][expert]),
      biased: number(routing.biased[token][expert]), bias: signed(routing.bias?.[expert] ?? 0), weight: number(routing.weights[token][place])}));
    const shared = app.model.config.n_shared_experts ?? 0, experts = routing.chosen[token].join(', ');
    fill(said, say(shared ? 'routing.readShared' : 'routing.read', {token: visible(names[token]), layer: app.state.layer, experts}));
    fill(counts, tell('routing.counts', {sum: number(routing.weights[token].reduce((a, b) => a + b, 0))}));
    weights.draw([...routing.chosen[token].map((e, i) => ({name: say('routing.expert', {expert: e}), value: routing.weights[token][i], kind: 'routed',
      words: number(routing.weights[token][i]), picked: e === expert, onpick: () => app.set({expert: e})})),
    ...(shared ? [{name: say('routing.shared'), value: 1, kind: 'shared', words: '1'}] : [])]);
    const weightAt = (r, c) => { const i = routing.chosen[r].indexOf(c); return i < 0 ? 0 : routing.weights[r][i]; };
    const cell = (r, c) => ({token: visible(names[r]), expert: c, weight: number(weightAt(r, c)), score: number(routing.scores[r][c])});
    map.draw({rows: names.length, columns: routing.scores[0].length, kind: 'routed', most: app.model.config.routed_scaling_factor / 2, at: weightAt, picked: [token, expert],
      gutter: 66, tallest: 60, rowHeight: Math.max(10, Math.min(20, 640 / names.length)), onpick: (r, c) => app.set({token: r, expert: c}),
      rowName: (r) => visible(names[r]), columnName: (c) => say('routing.expert', {expert: c}),
      read: (r, c) => say(weightAt(r, c) ? 'routing.cell' : 'routing.cellNot', cell(r, c))});
    drawProduct(app, product, routing);
    moved.update(routing);
  }, tint(i) {
    const routing = routingOf(app), place = routing ? routing.chosen[i].indexOf(app.state.expert) : -1;
    return place < 0 ? null : {kind: 'routed', strength: routing.weights[i][place] / app.model.config.routed_scaling_factor + 0.15};
  }};
}

const routingOf = (app) => app.data?.trace.layers[app.state.layer].routing;
const biasOf = (app, expert) => routingOf(app).bias?.[expert] ?? 0;

// A bias of the reader's making: kept as the change against the trained one, so that the address can hold it.
function setBias(app, expert, value) {
  const trained = app.data.base.layers[app.state.layer].routing.bias?.[expert] ?? 0;
  const change = Math.max(-2, Math.min(2, value - trained));
  app.set({bias: {...app.state.bias, [`${app.state.layer}.${expert}`]: Math.round(change * 1000) / 1000}});
}

export function loadsOf(routing) {
  const loads = new Float32Array(routing.scores[0].length);
  for (const experts of routing.chosen) for (const e of experts) loads[e]++;
  return loads;
}

// Every expert as a column: its score, its bias on top, its group around it; the chosen are filled.
function paintBoard(canvas, width, routing, app) {
  if (!width) return null;
  const {token, expert} = app.state, E = routing.scores[0].length, G = routing.groupScores ? routing.groupScores[token].length : 1;
  const height = 240, head = 30, foot = 24, gap = G > 1 ? Math.min(14, width / G / 6) : 0;
  const step = (width - gap * (G - 1)) / E, size = E / G;
  const scores = routing.scores[token], biased = routing.biased[token];
  const low = Math.min(0, ...biased), high = Math.max(...scores, ...biased, 0.1);
  const unit = (height - head - foot) / (high - low), y = (value) => head + (high - value) * unit;
  const pen = prepare(canvas, width, height);
  const places = Array.from({length: E}, (_, e) => { const left = e * step + Math.floor(e / size) * gap; return [left, left + step]; });
  for (let g = 0; g < G && G > 1; g++) {
    const open = routing.groupsChosen[token].includes(g), left = places[g * size][0], right = places[(g + 1) * size - 1][1];
    pen.fillStyle = colour(open ? 'group' : 'cell');
    pen.beginPath();
    pen.roundRect(left, 2, right - left, height - 4, 8);
    pen.fill();
    const words = say('routing.group', {score: number(routing.groupScores[token][g])});
    if (right - left > 58) write(pen, words, (left + right) / 2, 17, {kind: open ? 'routed-text' : 'soft'});
  }
  for (let e = 0; e < E; e++) {
    const chosen = routing.chosen[token].includes(e);
    paintExpert(pen, e, places[e], y, {score: scores[e], biased: biased[e], chosen, picked: e === expert, foot: height - 9});
  }
  return {places, unit};
}

function paintExpert(pen, e, [left, right], y, {score, biased, chosen, picked, foot}) {
  const pad = right - left > 8 ? Math.min(6, (right - left) * 0.18) : 0.5, x = left + pad, w = right - left - 2 * pad;
  block(pen, 'routed', x, y(score), w, y(0) - y(score), chosen ? 1 : 0.32);
  block(pen, 'bias', x, Math.min(y(score), y(biased)), Math.max(1, w / 3), Math.abs(y(score) - y(biased)), 0.75);
  rule(pen, 'text', [x, y(biased)], [x + w, y(biased)], 2);
  if (picked) pen.strokeRect(left + 1, 22, right - left - 2, foot - 14);
  if (w > 9) write(pen, `${e}`, (left + right) / 2, foot, {kind: chosen ? 'routed-text' : 'soft', font: `${chosen ? 700 : 400} 11px system-ui, sans-serif`});
}

// Tokens that every expert reads over this text; the outline is what it was before the reader moved a bias.
function paintLoad(canvas, width, app) {
  const routing = routingOf(app);
  if (!width || !routing) return;
  const loads = loadsOf(routing), before = loadsOf(app.data.base.layers[app.state.layer].routing), E = loads.length;
  const left = width > 300 ? 66 : 0, step = Math.min(60, (width - left) / E), height = 96, top = Math.max(...loads, ...before, 1);
  const pen = prepare(canvas, width, height), y = (n) => height - 18 - n / top * (height - 34);
  const mean = loads.reduce((a, b) => a + b, 0) / E;
  for (let e = 0; e < E; e++) {
    const x = left + e * step + 1, w = step - 3;
    block(pen, 'routed', x, y(loads[e]), w, y(0) - y(loads[e]), e === app.state.expert ? 1 : 0.6);
    pen.strokeStyle = colour('soft');
    if (loads[e] !== before[e]) pen.strokeRect(x + 0.5, y(before[e]) + 0.5, w - 1, y(0) - y(before[e]));
    if (step > 15) for (const [words, at] of [[loads[e], y(loads[e]) - 4], [e, height - 4]]) write(pen, `${words}`, x + w / 2, at);
  }
  pen.setLineDash([3, 3]);
  rule(pen, 'soft', [left, y(mean)], [left + E * step, y(mean)]);
}

function drawProduct(app, panel, routing) {
  const {token, expert, layer} = app.state, row = app.routerRow(layer, expert), x = app.data.trace.layers[layer].normedAfter[token];
  const logit = dot(x, row), sigmoid = app.model.config.scoring_func !== 'softmax', place = routing.chosen[token].indexOf(expert);
  panel.draw({title: say('routing.product', {expert, token: visible(app.data.pieces[token])}), lead: say('routing.productLead'),
    segments: [{kind: 'routed', left: ['*x*', x], right: ['*e*', row]}],
    steps: [[say('routing.sum'), logit], [say(sigmoid ? 'routing.sigmoid' : 'routing.softmax'), routing.scores[token][expert], 'routed'],
      [say('routing.plusBias', {bias: signed(routing.bias?.[expert] ?? 0)}), routing.biased[token][expert]],
      [say('routing.weight'), place < 0 ? say('routing.none') : number(routing.weights[token][place], 4), 'routed']]});
}

// What a moved bias does: the slider, the rule that moves all of them, and where the model's guesses changed.
function movedCard(app) {
  const state = {speed: 0.02, running: 0};
  const bias = slider(say('routing.bias'), {min: -1, max: 1, step: 0.01}, (value) => setBias(app, app.state.expert, value));
  const speed = slider(say('routing.speed'), {min: 0.001, max: 0.1, step: 0.001}, (value) => { state.speed = value; app.refresh(); });
  const stepButton = h('button.act', {type: 'button', onclick: () => balance()}, say('routing.step'));
  const runButton = h('button.act', {type: 'button', onclick: () => run()}, say('routing.run'));
  const reset = h('button.act.quiet', {type: 'button', onclick: () => { state.running = 0; app.set({bias: {}}); }}, say('routing.reset'));
  const facts = h('p.verdict', {}), guesses = h('ol.guesses', {'aria-label': say('routing.guesses')});
  const node = card('routing.moved', h('div.controls', {}, bias.node, speed.node, h('div.buttons', {}, stepButton, runButton, reset)), facts, guesses);
  function balance() {
    const routing = routingOf(app);
    if (!routing?.bias) return;
    const loads = loadsOf(routing), mean = loads.reduce((a, b) => a + b, 0) / loads.length, next = {...app.state.bias};
    loads.forEach((n, e) => {
      const key = `${app.state.layer}.${e}`;
      next[key] = Math.round(((next[key] ?? 0) + state.speed * Math.sign(mean - n)) * 1000) / 1000;
    });
    app.set({bias: next});
  }
  function run() {
    const idle = state.running <= 0;
    state.running = idle ? 40 : 0;
    const tick = () => { if (state.running-- > 0 && node.isConnected) { balance(); setTimeout(tick, 120); } else { state.running = 0; app.refresh(); } };
    if (idle) tick();
  }
  return {node, update(routing) {
    const value = routing.bias?.[app.state.expert] ?? 0;
    bias.draw(value, say('routing.biasOf', {expert: app.state.expert, bias: signed(value)}));
    speed.draw(state.speed, number(state.speed));
    fill(runButton, say(state.running > 0 ? 'routing.stop' : 'routing.run'));
    for (const input of [bias.input, stepButton, runButton]) input.disabled = !routing.bias;
    const loads = loadsOf(routing), mean = loads.reduce((a, b) => a + b, 0) / loads.length;
    const before = loadsOf(app.data.base.layers[app.state.layer].routing), n = app.data.ids.length;
    const changed = app.data.ids.map((_, t) => t).filter((t) => best(app.data.logits[t]) !== best(app.data.baseLogits[t]));
    const more = (counts) => { const x = Math.max(...counts) / mean - 1; return say('routing.more', {share: percent(x), violation: number(x, 2)}); };
    fill(facts, tell('routing.facts', {before: more(before), after: more(loads), changed: changed.length, n}));
    fill(guesses, changed.slice(0, 12).map((t) => h('li', {}, h('span.token', {}, visible(app.data.pieces[t])), ' → ',
      h('s.token', {}, guess(app.data.baseLogits[t])), ' ', h('span.token.new', {}, guess(app.data.logits[t])))));
  }};
  function guess(logits) { const [top] = largest(softmax(logits), 1); return `${app.piece(top.id)} ${percent(top.value)}`; }
}
const best = (logits) => largest(logits, 1)[0].id;
