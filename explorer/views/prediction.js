// View 4, prediction: the best tokens layer by layer; text being written with drafts that stand or fall; one logit.
import {bytes, fill, h, largest, number, percent, say, softmax, tell, visible} from './draw.js';
import {bars, card, choice, slider, viewHead} from './bars.js';
import {drawLogit, productPanel} from './product.js';

const SHOWN = 5, LONGEST = 160;

export function predictionView(app) {
  const table = h('table.lens', {}), place = h('div.scroll', {tabindex: 0, role: 'region', 'aria-label': say('prediction.lens')}, table);
  const writing = writingCard(app), product = productPanel(app), tops = bars(say('prediction.tops'));
  const node = h('div.view', {}, viewHead('prediction'), card('prediction.layers', place),
    h('div.two', {}, card('prediction.next', tops.node), product.node), writing.node);
  let drawnFor = '';
  return {node, update() {
    const {token, layer} = app.state, {trace, logits, ids} = app.data;
    const share = softmax(logits[token]), best = largest(share, 8), candidate = app.state.candidate ?? best[0].id;
    const key = [app.data.version, token, layer, candidate].join();
    if (key !== drawnFor) {
      const held = table.contains(document.activeElement) ? document.activeElement.dataset.at : null;
      drawLens(app, table, [trace.embed[token], ...trace.layers.map((one) => one.output[token])], candidate);
      if (held) table.querySelector(`[data-at="${held}"]`)?.focus();
      drawnFor = key;
    }
    const listed = best.some((one) => one.id === candidate) ? best : [...best.slice(0, 7), {id: candidate, value: share[candidate]}];
    tops.draw(listed.map(({id, value}) => ({name: app.piece(id), mono: true, value, kind: 'content', words: percent(value, 1), picked: id === candidate,
      onpick: () => app.set({candidate: id})})), 1);
    drawLogit(app, product, candidate);
    writing.update();
    const words = {token: visible(app.data.pieces[token]), next: token + 1 < ids.length ? visible(app.data.pieces[token + 1]) : '…'};
    place.setAttribute('aria-label', say('prediction.lensOf', words));
  }, tint(i) {
    if (!i) return null;
    const {logits, ids} = app.data;
    return {kind: 'content', strength: softmax(logits[i - 1])[ids[i]]};
  }};
}

// What every layer's row would say, if it were the last: rows are layers, columns the first, second, ... token.
function drawLens(app, table, rows, candidate) {
  const places = Array.from({length: SHOWN}, (_, i) => h('th', {scope: 'col'}, `${i + 1}`));
  const head = h('thead', {}, h('tr', {}, h('th', {scope: 'col'}, say('prediction.after')), places));
  const button = (kind, at, picked, onclick, ...more) => h(`button.${kind}`, {type: 'button', 'data-at': at, 'aria-pressed': String(picked), onclick}, ...more);
  const body = rows.map((row, i) => {
    const share = softmax(app.model.lens(row)), layer = i - 1, picked = layer === app.state.layer;
    const name = i ? say('prediction.layer', {layer}) : say('prediction.embedding');
    const cells = largest(share, SHOWN).map(({id, value}, c) => {
      const guess = button('guess', `${i}.${c}`, id === candidate, () => app.set({candidate: id}), h('span.token', {}, app.piece(id)), h('small', {}, percent(value)));
      guess.style.setProperty('--strength', `${Math.round(100 * value ** 0.7)}%`);
      return h('td', {}, guess);
    });
    const first = button('plain', `${i}`, picked, () => app.set({layer: Math.max(0, layer)}), name);
    return h(`tr${picked ? '.picked' : ''}`, {}, h('th', {scope: 'row'}, first), cells);
  });
  fill(table, h('caption.unseen', {}, say('prediction.lens')), head, h('tbody', {}, body));
}

// Text being written: own tokens, drafts that stood, drafts that fell; what that saves, and the same text without drafts.
function writingCard(app) {
  const deepest = app.model.config.num_nextn_predict_layers ?? 0;
  const set = {drafts: deepest, temperature: 0, topP: 1, seed: 1};
  let writer = null, run = null, written = null;
  const depths = Array.from({length: deepest + 1}, (_, i) => [i, say(i ? 'prediction.draftsOf' : 'prediction.noDrafts', {n: i})]);
  const drafts = choice(say('prediction.drafts'), depths, (value) => change({drafts: value}));
  const heat = slider(say('prediction.temperature'), {min: 0, max: 1.5, step: 0.1}, (value) => change({temperature: value}));
  const nucleus = slider(say('prediction.topP'), {min: 0.1, max: 1, step: 0.05}, (value) => change({topP: value}));
  const seed = h('input.number', {type: 'number', min: 0, max: 99999, value: 1, oninput: () => change({seed: Number(seed.value) || 0})});
  const go = h('button.act.main', {type: 'button', onclick: () => (run ? stop() : start())}, say('prediction.write'));
  const one = h('button.act', {type: 'button', onclick: () => { stop(); step(); }}, say('prediction.step'));
  const again = h('button.act.quiet', {type: 'button', onclick: () => change({})}, say('prediction.clear'));
  const check = h('button.act.quiet', {type: 'button', onclick: () => compare()}, say('prediction.check'));
  const paper = h('p.paper', {'aria-label': say('prediction.paper'), role: 'group', tabindex: 0}), verdict = h('p.verdict', {role: 'status'});
  const fallen = h('ol.fallen', {'aria-label': say('prediction.fallen')}), falls = h('p.legend.falls', {role: 'status'}), facts = h('dl.facts', {});
  const node = card('prediction.writing', h('div.controls', {}, drafts.node, heat.node, nucleus.node, h('label.slider', {}, h('span', {}, say('prediction.seed')), seed),
    h('div.buttons', {}, go, one, again, check)), paper, verdict, h('p.legend', {}, tell('prediction.legend')), falls, fallen, facts);

  function change(values) { stop(); Object.assign(set, values); clear(); update(); }
  function clear() {
    writer = null;
    written = {ids: [], steps: 0, drafted: 0, stood: 0, falls: 0, ms: 0, cache: 0, version: app.data.version};
    for (const place of [verdict, fallen]) fill(place);
    fill(paper, h('span.given', {}, app.data.pieces.slice(app.bos ? 1 : 0).join('')));
  }
  function span(kind, id) { // what fell breaks no line; a control token, which decodes to nothing, has its name
    const text = app.model.tokenizer.decode([id]) || app.piece(id);
    return h(`span.${kind}`, {title: say(`prediction.${kind}`)}, kind === 'fell' ? text.replace(/\n/g, '↵') : text);
  }
  // Why the first draft of a step fell; those behind it stood on it.
  function reason({accepted, rejected, next, share, guesses}) {
    const {id, p, q, share: its} = guesses[accepted.length], words = {draft: app.piece(id), own: app.piece(next), its: percent(its, 1), share: percent(share, 1)};
    const drawn = {p: percent(p, 1), q: percent(q[id], 1), chance: percent(Math.min(1, p / q[id]), 1)};
    const more = rejected.length > 1 ? ` ${say('prediction.behind')}` : '';
    return h('li', {}, say(set.temperature ? 'prediction.fellDrawn' : 'prediction.fellGreedy', {...words, ...drawn}), more);
  }
  function step() {
    writer ??= app.model.writer(app.data.ids, {...set});
    const made = writer.step();
    if (!made) return stop(); // the context is full
    const {accepted, rejected, next, cacheLength} = made;
    Object.assign(written, {steps: written.steps + 1, drafted: written.drafted + accepted.length + rejected.length, stood: written.stood + accepted.length,
      ms: written.ms + made.milliseconds, cache: cacheLength});
    written.ids.push(...accepted, next);
    paper.append(...accepted.map((id) => span('stood', id)), ...rejected.map((id) => span('fell', id)), span('own', next));
    paper.scrollTop = paper.scrollHeight;
    if (rejected.length) { fallen.prepend(reason(made)); written.falls++; }
    if (fallen.children.length > 4) fallen.lastChild.remove();
    const ends = [app.model.config.eos_token_id].flat();
    if (written.ids.length >= LONGEST || written.ids.some((id) => ends.includes(id))) stop();
    update();
  }
  function start() {
    if (written.ids.length >= LONGEST) clear();
    const loop = () => { if (!run || !node.isConnected) return stop(); step(); if (run) run = setTimeout(loop, 0); };
    run = setTimeout(loop, 0);
    update();
  }
  function stop() { clearTimeout(run); run = null; fill(go, say('prediction.write')); }
  function compare() {
    stop();
    const plain = app.model.writer(app.data.ids, {temperature: 0, topP: 1, seed: set.seed, drafts: 0}), ids = [];
    while (ids.length < written.ids.length) ids.push(plain.step().next);
    const same = ids.every((id, i) => id === written.ids[i]);
    fill(verdict, say(same ? 'prediction.same' : 'prediction.differs', {n: ids.length}));
  }
  function update() {
    if (written?.version !== app.data.version) { stop(); clear(); }
    drafts.draw(set.drafts);
    heat.draw(set.temperature, set.temperature ? number(set.temperature, 2) : say('prediction.greedy'));
    nucleus.draw(set.topP, number(set.topP, 2));
    nucleus.input.disabled = seed.disabled = !set.temperature;
    check.disabled = set.temperature > 0 || !written.ids.length || Boolean(run);
    fill(go, say(run ? 'prediction.stop' : 'prediction.write'));
    const {ids, steps, drafted, stood, ms, cache} = written;
    const each = app.sizes(app.model.config).cacheBytesPerToken, told = {shown: fallen.children.length, n: written.falls};
    fill(falls, drafted ? say(written.falls ? 'prediction.falls' : 'prediction.noFall', told) : '');
    fill(facts, [['perStep', steps ? number(ids.length / steps, 3) : '–'], ['accepted', drafted ? percent(stood / drafted) : '–'],
      ['rate', ms ? number(Math.round(ids.length / ms * 1000)) : '–'], ['cache', cache ? `${cache} · ${bytes(cache * each)}` : '–']]
      .map(([name, value]) => h('div', {}, h('dt', {}, say(`prediction.${name}`)), h('dd', {}, value))));
  }
  return {node, update};
}
