// View 5, FP8: format, granularity and an outlier of the reader's making; where the error goes; one number in eight bits.
import {block, dot, fill, grouped, h, largest, norm, number, percent, prepare, rule, say, softmax, tell, visible, write} from './draw.js';
import {bars, card, choice, slider, viewHead} from './bars.js';
import {heatmap} from './heatmap.js';
import {productPanel} from './product.js';
import {FORMATS} from '../model/fp8.js';

const TILE = 128;

export function fp8View(app) {
  const format = choice(say('fp8.format'), [['e4m3', 'E4M3'], ['e5m2', 'E5M2']], (value) => app.set({format: value}));
  const grain = choice(say('fp8.granularity'), ['tile', 'block', 'tensor'].map((name) => [name, say(`fp8.${name}`)]), (value) => app.set({grain: value}));
  const outlier = slider(say('fp8.outlier'), {min: 0, max: 18, step: 1}, (value) => app.set({outlier: value}));
  const error = heatmap(say('fp8.errors')), where = bars(say('fp8.where')), verdict = h('p.verdict', {});
  const bits = h('div.bits', {}), line = h('canvas', {role: 'img', 'aria-label': say('fp8.line')}), linePlace = h('div', {}, line), steps = h('dl.steps', {});
  const product = productPanel(app), next = nextCard(app);
  const node = h('div.view', {}, viewHead('fp8'), h('div.controls.wide', {}, format.node, grain.node, outlier.node),
    card('fp8.matrix', error.node, verdict, h('h4', {}, say('fp8.where')), where.node),
    h('div.two', {}, card('fp8.number', bits, linePlace, steps), product.node), next.node);
  new ResizeObserver(() => { if (node.isConnected && app.data) drawNumber(); }).observe(linePlace);
  let made = null;

  function drawNumber() {
    const {token, entry} = app.state, at = token * made.columns + Math.min(entry, made.columns - 1);
    const scale = made.scales[scaleIndex(made, token, at % made.columns, app.state.grain)], x = made.exact[at], back = made.values[at];
    const shape = FORMATS[app.state.format];
    fill(bits, bitBoxes(made.codes[at], shape));
    paintLine(line, linePlace.clientWidth, shape, x / scale, back / scale);
    const lines = [['fp8.exact', number(x, 5)], ['fp8.scale', number(scale, 4), {most: grouped(shape.values[shape.largestCode])}],
      ['fp8.scaled', number(x / scale, 5)], ['fp8.rounded', number(back / scale, 5)], ['fp8.back', number(back, 5)],
      ['fp8.off', x ? percent(Math.abs(back - x) / Math.abs(x), 1) : '–']];
    fill(steps, lines.map(([key, value, values]) => h('div', {}, h('dt', {}, tell(key, values)), h('dd', {}, value))));
  }
  return {node, update() {
    const {format: f, grain: g, outlier: o, token, entry, atToken, atEntry} = app.state;
    format.draw(f);
    grain.draw(g);
    outlier.draw(o, say('fp8.times', {n: grouped(2 ** o)}));
    made = quantizeRows(app);
    const {columns, rows, exact, values} = made, off = (r, c) => Math.abs(values[r * columns + c] - exact[r * columns + c]);
    const typical = norm(made.before) / Math.sqrt(made.before.length);
    const column = Math.min(entry, columns - 1);
    const name = (r) => visible(app.data.pieces[r]);
    const cell = (r, c) => ({token: name(r), d: c + 1, exact: number(exact[r * columns + c], 4), back: number(values[r * columns + c], 4), off: number(off(r, c), 2)});
    error.draw({rows, columns, kind: 'bias', most: typical * 0.12, at: off, rowHeight: 11, inset: 1, gutter: 66, picked: [token, column], mark: o ? [atToken, atEntry] : null,
      onpick: (r, c) => app.set({token: r, entry: c}), rowName: name, columnName: (c) => String(c + 1), read: (r, c) => say('fp8.cell', cell(r, c))});
    const places = o ? shareOfError(made, atToken, atEntry) : shareOfError(made, token, column), most = Math.max(...places.map((place) => place.rms), typical * 0.06);
    where.draw(places.map(({name, rms, n}) => ({name: say(`fp8.${name}`), value: rms, kind: 'bias', words: n ? number(rms / typical, 2) : '–'})), most);
    let lost = 0;
    for (let i = 0; i < exact.length; i++) lost += exact[i] !== 0 && values[i] === 0;
    fill(verdict, tell('fp8.verdict', {lost: percent(lost / exact.length, 1), scales: grouped(made.scales.length), n: grouped(exact.length)}));
    drawNumber();
    drawProduct(app, product, made);
    next.update();
  }};
}

// The rows that attention reads in the chosen layer, after the norm; one entry of them is made larger.
function quantizeRows(app) {
  const {atToken, atEntry, outlier, format, grain} = app.state, source = app.data.trace.layers[app.state.layer].normed;
  const rows = source.length, columns = source[0].length, before = new Float32Array(rows * columns);
  source.forEach((row, r) => before.set(row, r * columns));
  const exact = before.slice(), at = atToken * columns + atEntry;
  if (outlier) exact[at] = outlierValue(exact[at], outlier);
  return {rows, columns, before, exact, ...app.quantize(exact, rows, columns, {format, granularity: grain})};
}

// The outlier of the reader's making: rows are normed, so an entry is about one in size, and never less here.
const outlierValue = (x, power) => Math.fround((x < 0 ? -1 : 1) * Math.max(Math.abs(x), 1) * 2 ** power);

function scaleIndex({columns}, r, c, grain) {
  const across = Math.ceil(columns / TILE);
  return grain === 'tensor' ? 0 : (grain === 'block' ? Math.floor(r / TILE) : r) * across + Math.floor(c / TILE);
}

// Root mean square error in the tile of the outlier, in the rest of its row, and in all other rows.
function shareOfError({rows, columns, exact, values}, token, entry) {
  const tile = Math.floor(entry / TILE), places = ['thisTile', 'thisRow', 'otherRows'].map((name) => ({name, sum: 0, n: 0}));
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) {
      if (r === token && c === entry) continue; // the outlier itself
      const place = places[r !== token ? 2 : Math.floor(c / TILE) === tile ? 0 : 1];
      place.sum += (values[r * columns + c] - exact[r * columns + c]) ** 2;
      place.n++;
    }
  }
  return places.map(({name, sum, n}) => ({name, n, rms: n ? Math.sqrt(sum / n) : 0}));
}

function bitBoxes(code, {exponentBits: exponent, mantissaBits: mantissa}) {
  const text = code.toString(2).padStart(8, '0');
  const parts = [['sign', text.slice(0, 1), 'ink'], ['exponent', text.slice(1, 1 + exponent), 'rope'], ['mantissa', text.slice(8 - mantissa), 'latent']];
  return parts.map(([name, digits, kind]) => h('div.bit-part', {},
    h('div.bit-row', {}, [...digits].map((digit) => h(`span.bit.kind-${kind}`, {}, digit))), h('small', {}, say(`fp8.${name}`))));
}

// Every value that the format can say around x, and where x falls between two of them.
function paintLine(canvas, width, {values}, x, rounded) {
  if (!width) return;
  const all = [...new Set(values.filter(Number.isFinite))].sort((a, b) => a - b), away = (value) => Math.abs(value - rounded);
  const middle = all.reduce((best, value, i) => (away(value) < away(all[best]) ? i : best), 0), reach = 6;
  const near = all.slice(Math.max(0, middle - reach), middle + reach + 1), pad = (near.at(-1) - near[0]) / 20;
  const at = (value) => (value - near[0] + pad) / (near.at(-1) - near[0] + 2 * pad) * width, pen = prepare(canvas, width, 76);
  rule(pen, 'soft', [0, 40], [width, 40]);
  near.forEach((value, i) => {
    const hit = value === all[middle];
    block(pen, hit ? 'latent' : 'soft', at(value) - (hit ? 1.5 : 0.5), hit ? 28 : 34, hit ? 3 : 1, hit ? 24 : 12);
    if (hit || i % 4 === 0) write(pen, number(value, 4), at(value), 66, {kind: hit ? 'latent-text' : 'soft'});
  });
  block(pen, 'bias', at(x) - 1, 24, 2, 14);
  write(pen, number(x, 5), Math.max(24, Math.min(width - 24, at(x))), 18, {kind: 'text'});
}

// The product of two quantized vectors beside the exact one: the row of the token and the first row of W_DKV.
function drawProduct(app, panel, made) {
  const {token, layer, format} = app.state, {columns} = made, matrix = app.model.layers[layer].attention.kvA;
  const weight = matrix.values.slice(0, columns);
  const small = app.quantize(matrix.values, matrix.rows, columns, {format, granularity: 'block'}).values.slice(0, columns);
  const row = made.values.slice(token * columns, (token + 1) * columns), exact = made.exact.slice(token * columns, (token + 1) * columns);
  const [right, wrong] = [dot(exact, weight), dot(row, small)];
  panel.draw({title: say('fp8.product'), lead: say('fp8.productLead', {layer, token: visible(app.data.pieces[token])}),
    segments: [{kind: 'latent', left: ['*x̂*', row], right: ['*ŵ*', small]}],
    steps: [[say('fp8.sum8'), wrong, 'latent'], [say('fp8.sum32'), right],
      [say('fp8.apart'), percent(Math.abs(wrong - right) / (norm(exact) * norm(weight) || 1), 2)]]});
}

// The whole model in that format, outlier included: what it says next, beside the same in FP32.
function nextCard(app) {
  const before = bars(say('fp8.in32')), after = bars(say('fp8.in8')), verdict = h('p.verdict', {role: 'status'});
  const sides = [['fp8.in32', before], ['fp8.in8', after]].map(([key, side]) => h('div', {}, h('h4', {}, say(key)), side.node));
  const node = card('fp8.next', h('div.two', {}, sides), verdict);
  let asked = '', found = null, timer = null;
  const list = (logits) => largest(softmax(logits), 5).map(({id, value}) => ({name: app.piece(id), mono: true, value, kind: 'content', words: percent(value, 1)}));
  function show() {
    const {token} = app.state;
    node.classList.toggle('waiting', !found);
    if (!found) return fill(verdict, say('fp8.computing'));
    const [exact, small] = found;
    before.draw(list(exact[token]), 1);
    after.draw(list(small[token]), 1);
    const p = softmax(exact[token]), q = softmax(small[token]);
    const apart = p.reduce((sum, x, i) => sum + (x > 1e-9 ? x * Math.log(x / Math.max(q[i], 1e-12)) : 0), 0);
    const moved = app.data.ids.filter((_, t) => largest(small[t], 1)[0].id !== largest(exact[t], 1)[0].id).length;
    fill(verdict, tell('fp8.moved', {nats: number(Math.max(0, apart), 2), moved, n: app.data.ids.length}));
  }
  function read() {
    const {format, grain, outlier: power, layer, atToken, atEntry} = app.state;
    const value = power ? outlierValue(app.data.trace.layers[layer].normed[atToken][atEntry], power) : 0;
    const outlier = power ? {layer, token: atToken, channel: atEntry, value} : null, bias = app.biases();
    const exact = power ? app.model.read(app.data.ids, {outlier, bias}).logits : app.data.logits;
    found = [exact, app.model.read(app.data.ids, {fp8: {format, granularity: grain}, outlier, bias}).logits];
    show();
  }
  return {node, update() {
    const {format, grain, outlier, layer, atToken, atEntry} = app.state;
    const key = [app.data.version, format, grain, outlier, outlier ? [layer, atToken, atEntry] : ''].join();
    if (key !== asked) {
      asked = key;
      found = null;
      clearTimeout(timer);
      timer = setTimeout(read, 150);
    }
    show();
  }};
}
