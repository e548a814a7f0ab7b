// The page: opens the model, keeps text and choice, draws the view that is open. Reading order: state, views, tour.
import {loadModel} from './model/load.js';
import {quantize} from './model/fp8.js';
import {sizes} from './model/sizes.js';
import {fetchFile} from './model/source.js';
import {START, VIEWS, readAddress, settle, writeAddress} from './state.js';
import {EXAMPLES} from './strings.js';
import {makeTour} from './tour.js';
import {colour, fill, forgetColours, grouped, h, large, largest, say, tell, visible} from './views/draw.js';
import {flowView} from './views/flow.js';
import {attentionView} from './views/attention.js';
import {routingView} from './views/routing.js';
import {predictionView} from './views/prediction.js';
import {fp8View} from './views/fp8.js';
import {sizesView} from './views/sizes.js';

const MAKERS = {flow: flowView, attention: attentionView, routing: routingView, prediction: predictionView, fp8: fp8View, sizes: sizesView};
const MOST_TOKENS = 96;
const $ = (id) => document.getElementById(id);

const app = {
  state: {...START, text: EXAMPLES[0][1], ...readAddress(location.hash)}, model: null, data: null, quantize, sizes, pieces: new Map(),
  // Choose something: every view that shows it is drawn again, in the next frame.
  set(changes) {
    const stale = 'text' in changes || 'bias' in changes;
    if ('token' in changes && changes.token !== this.state.token && !('candidate' in changes)) this.state.candidate = null;
    Object.assign(this.state, changes);
    if (stale) this.stale = true;
    this.refresh();
    if (['token', 'layer', 'head', 'expert', 'view', 'key', 'entry'].some((key) => key in changes)) this.announce();
  },
  refresh() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => { this.waiting = null; render(); });
  },
  // A token's text, as a reader can see it.
  piece(id) {
    if (!this.pieces.has(id)) this.pieces.set(id, visible(this.model.tokenizer.pieces([id])[0]));
    return this.pieces.get(id);
  },
  headRow(id) { return rowOf(this.model.head, id); },
  routerRow(layer, expert) { return rowOf(this.model.layers[layer].feedForward.gate, expert); },
  // The biases of every layer in which the reader moved one; undefined when none was moved.
  biases() {
    const made = {};
    for (const [name, change] of Object.entries(this.state.bias)) {
      const [layer, expert] = name.split('.').map(Number), trained = this.model.layers[layer]?.feedForward.bias;
      if (!trained || !change || expert >= trained.length) continue;
      made[layer] ??= Float32Array.from(trained);
      made[layer][expert] += change;
    }
    return Object.keys(made).length ? made : undefined;
  },
  announce() {
    clearTimeout(this.telling);
    const read = () => document.activeElement?.closest('.heat, .product, .card')?.querySelector('.readout')?.textContent;
    const words = () => read() || say('main.chosen', {...this.state, token: visible(this.data.pieces[this.state.token])});
    this.telling = setTimeout(() => { if (this.data) $('live').textContent = words(); }, 400);
  },
};

const rowOf = (matrix, i) => matrix.values.subarray(i * matrix.columns, (i + 1) * matrix.columns);

// Read the text: the trained model, and once more where the reader has moved a bias.
function readText() {
  const {model, state} = app, bos = model.config.bos_token_id;
  app.bos = bos != null;
  const all = [...(app.bos ? [bos] : []), ...model.tokenizer.encode(state.text)], most = Math.min(MOST_TOKENS, model.config.max_position_embeddings);
  const ids = all.length ? all.slice(0, most) : [0];
  $('cut').textContent = all.length > most ? say('main.cut', {n: all.length, most}) : '';
  const same = app.data && app.data.text === state.text;
  const first = same ? {trace: app.data.base, logits: app.data.baseLogits} : model.read(ids, {trace: true});
  const bias = app.biases(), now = bias ? model.read(ids, {trace: true, bias}) : first;
  const pieces = model.tokenizer.pieces(ids);
  const version = (app.data?.version ?? 0) + 1;
  app.data = {text: state.text, ids, pieces, version, trace: now.trace, logits: now.logits, base: first.trace, baseLogits: first.logits};
  app.stale = false;
}

// What is chosen when nothing is: what the last token reads most, and its best expert.
function usualChoice() {
  const {attention, routing} = app.data.trace.layers[app.state.layer] ?? app.data.trace.layers[0];
  return {expert: routing?.chosen.at(-1)[0] ?? 0, key: largest(attention.probs[0].at(-1), 1)[0].id};
}

const views = {};
function render() {
  if (!app.model) return;
  if (app.stale) readText();
  const {state, data} = app;
  settle(state, app.model.config, data.ids.length, usualChoice());
  const view = views[state.view] ??= MAKERS[state.view](app);
  if ($('view').firstChild !== view.node) {
    fill($('view'), view.node);
    $('view').setAttribute('aria-labelledby', `tab-${state.view}`);
  }
  for (const name of VIEWS) {
    const tab = $(`tab-${name}`);
    tab.setAttribute('aria-selected', String(name === state.view));
    tab.tabIndex = name === state.view ? 0 : -1;
  }
  if (document.activeElement !== $('text')) $('text').value = state.text;
  drawTokens(view);
  drawChoices();
  view.update();
  tour.update();
  clearTimeout(app.writing);
  const last = state.token === data.ids.length - 1; // stays the last one when the text grows
  app.writing = setTimeout(() => history.replaceState(null, '', `#${writeAddress({...state, token: last ? -1 : state.token})}`), 150);
}

// The text as tokens: one choice, moved by arrow keys; their tint says what the open view says about them.
function drawTokens(view) {
  const {data, state} = app, row = $('tokens');
  if (row.dataset.version !== String(data.version)) {
    const held = row.contains(document.activeElement);
    const chip = (piece, i) => h('button.chip.token', {type: 'button', role: 'option', id: `token-${i}`, onclick: () => app.set({token: i})}, visible(piece));
    fill(row, data.pieces.map(chip));
    row.dataset.version = data.version;
    if (held) row.children[state.token].focus();
  }
  for (const [i, chip] of [...row.children].entries()) {
    const tint = view.tint?.(i), picked = i === state.token;
    chip.setAttribute('aria-selected', String(picked));
    chip.tabIndex = picked ? 0 : -1;
    chip.style.background = tint ? `color-mix(in srgb, ${colour(tint.kind)} ${Math.round(Math.min(1, tint.strength) * 46)}%, transparent)` : '';
    chip.classList.toggle('key', state.view === 'attention' && i === state.key);
  }
  if (row.dataset.shown !== String(state.token)) {
    const chip = row.children[state.token];
    if (chip.offsetLeft < row.scrollLeft || chip.offsetLeft + chip.offsetWidth > row.scrollLeft + row.clientWidth) row.scrollLeft = chip.offsetLeft - row.clientWidth / 2;
    if (chip.offsetTop < row.scrollTop || chip.offsetTop + chip.offsetHeight > row.scrollTop + row.clientHeight) row.scrollTop = chip.offsetTop - chip.offsetHeight - 6;
    row.dataset.shown = state.token;
  }
}

function drawChoices() {
  const {num_hidden_layers: L, num_attention_heads: H, n_routed_experts: E} = app.model.config, {layer, head, expert} = app.state;
  for (const [name, n, value] of [['layer', L, layer], ['head', H, head], ['expert', E ?? 1, expert]]) {
    const list = $(`pick-${name}`);
    if (list.length !== n) fill(list, Array.from({length: n}, (_, i) => h('option', {value: i}, String(i))));
    list.value = value;
  }
}

// Keys of a row of choices: left and right move, home and end jump; the moved one is focused.
function rove(row, pick) {
  row.addEventListener('keydown', (event) => {
    const all = [...row.children], at = all.indexOf(document.activeElement);
    const to = {ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: all.length - 1}[event.key];
    if (at < 0 || to === undefined || !all[to]) return;
    event.preventDefault();
    pick(to);
    all[to].tabIndex = 0;
    all[to].focus();
  });
}

function buildFrame() {
  for (const node of document.querySelectorAll('[data-say]')) fill(node, tell(node.dataset.say));
  for (const node of document.querySelectorAll('[data-name]')) node.setAttribute('aria-label', say(node.dataset.name));
  const kinds = ['content', 'rope', 'latent', 'routed', 'shared', 'draft', 'ink'];
  fill($('legend'), kinds.map((kind) => h('li', {}, h(`i.kind-${kind}`), say(`main.${kind}`))));
  const about = (name) => ({type: 'button', role: 'tab', id: `tab-${name}`, 'aria-controls': 'view', onclick: () => app.set({view: name})});
  fill($('tabs'), VIEWS.map((name, i) => h('button.tab', about(name), h('span.tab-number', {'aria-hidden': 'true'}, `${i + 1}`), say(`${name}.name`))));
  rove($('tabs'), (i) => app.set({view: VIEWS[i]}));
  rove($('tokens'), (i) => app.set({token: i}));
  fill($('examples'), h('option', {value: ''}, say('main.examples')), EXAMPLES.map(([name, text]) => h('option', {value: text}, name)));
  $('examples').addEventListener('change', () => {
    if ($('examples').value) app.set({text: $('examples').value, token: -1, bias: {}});
    $('examples').value = '';
  });
  $('text').addEventListener('input', () => {
    clearTimeout(app.typing);
    app.typing = setTimeout(() => app.set({text: $('text').value, token: -1}), 120);
  });
  for (const name of ['layer', 'head', 'expert']) $(`pick-${name}`).addEventListener('change', (event) => app.set({[name]: Number(event.target.value)}));
  $('skip').addEventListener('click', () => $('view').focus());
  $('theme').addEventListener('click', () => dress(document.documentElement.dataset.theme === 'dark' ? 'light' : 'dark'));
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', (event) => dress(event.matches ? 'dark' : 'light'));
  addEventListener('hashchange', () => app.set({...START, text: EXAMPLES[0][1], ...readAddress(location.hash)}));
  addEventListener('resize', () => app.refresh());
}

function dress(theme) {
  document.documentElement.dataset.theme = theme;
  $('theme').setAttribute('aria-label', say(theme === 'dark' ? 'main.light' : 'main.dark'));
  forgetColours();
  app.refresh();
}

const tour = makeTour(app, $('tour'), $('tour-start'));

async function open() {
  buildFrame();
  dress(matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light');
  try {
    app.model = await loadModel(fetchFile);
    const {config} = app.model, parameters = large(sizes(config, {}).parameters);
    fill($('facts'), say('main.facts', {layers: config.num_hidden_layers, experts: config.n_routed_experts ?? 0, parameters, vocabulary: grouped(config.vocab_size)}));
    app.stale = true;
    render();
    document.body.dataset.ready = 'true';
    performance.mark('first view');
  } catch (error) {
    fill($('view'), h('div.problem', {role: 'alert'}, h('h2', {}, say('main.problem')), h('p', {}, error.message), h('p', {}, tell('main.mend'))));
    throw error;
  }
}

open();
