// View 1, the flow: one token through the layers. A river that attention and experts add to, and what it would say at each bend.
import {colour, dot, fill, grouped, h, largest, norm, number, percent, prepare, say, signed, softmax} from './draw.js';
import {bars, card, viewHead} from './bars.js';
import {heatmap} from './heatmap.js';
import {drawLogit, productPanel} from './product.js';

const ROW = 58;

// What happens to row `t`, in order: {part, layer, kind, added, after, split}.
export function stagesOf(trace, t) {
  const stages = [{part: 'embedding', layer: -1, kind: 'ink', added: trace.embed[t], after: trace.embed[t]}];
  trace.layers.forEach((one, layer) => {
    stages.push({part: 'attention', layer, kind: 'content', added: one.attentionOut[t], after: one.afterAttention[t]});
    const routing = one.routing;
    const split = routing?.sharedOut ? [['routed', routing.routedOut[t]], ['shared', routing.sharedOut[t]]] : null;
    stages.push({part: routing ? 'experts' : 'mlp', layer, kind: routing ? 'routed' : 'ink', added: one.mlpOut[t], after: one.output[t], split});
  });
  return stages;
}

export function flowView(app) {
  const river = h('canvas.river', {role: 'img', 'aria-label': say('flow.river')});
  const list = h('ol.stages', {'aria-label': say('flow.stages')});
  const stream = heatmap(say('flow.stream'));
  const sum = bars(say('flow.sum'));
  const sumTitle = h('p.equation', {});
  const product = productPanel(app);
  const node = h('div.view', {}, viewHead('flow'),
    h('div.flow', {}, h('div.river-place', {}, river), list, h('div.stream', {}, h('p.eyebrow', {}, say('flow.stream')), stream.node)),
    card('flow.entry', sumTitle, sum.node), product.node);
  let stages = [];
  new ResizeObserver(() => paintRiver(river, stages)).observe(river.parentNode);

  function row(stage, i) {
    const guess = softmax(app.model.lens(stage.after)), [best] = largest(guess, 1);
    const picked = stage.layer === app.state.layer;
    const words = i ? say('flow.adds', {size: number(norm(stage.added)), turn: cosine(stage.added, stages[i - 1].after).toFixed(2).replace('-', '−')})
      : say('flow.starts', {size: number(norm(stage.after))});
    const name = say(`flow.${stage.part}`, {layer: stage.layer});
    return h(`li${picked ? '.picked' : ''}`, {}, h('button.stage', {type: 'button', 'aria-pressed': String(picked),
      onclick: () => app.set({layer: Math.max(0, stage.layer)})},
    h(`span.stage-name.is-${stage.kind}`, {}, name), h('span.stage-adds', {}, words),
    h('span.stage-says', {}, h('span.token', {}, app.piece(best.id)), ' ', percent(best.value))));
  }
  let drawnFor = '';
  return {node, update() {
    const {trace} = app.data, {token, entry} = app.state;
    stages = stagesOf(trace, token);
    const key = [app.data.version, token, app.state.layer].join();
    if (key !== drawnFor) {
      const held = [...list.children].findIndex((li) => li.contains(document.activeElement));
      fill(list, stages.map(row));
      if (held >= 0) list.children[held]?.firstChild.focus();
      drawnFor = key;
    }
    paintRiver(river, stages);
    drawStream(app, stream, stages);
    const d = Math.min(entry, app.model.config.hidden_size - 1);
    fill(sumTitle, say('flow.sumOf', {d: d + 1, value: number(stages.at(-1).after[d], 4), n: stages.length}));
    sum.draw(stages.map((stage) => ({name: say(`flow.${stage.part}`, {layer: stage.layer}), value: stage.added[d],
      words: signed(stage.added[d]), kind: stage.kind, picked: stage.layer === app.state.layer})));
    drawLogit(app, product, app.state.candidate ?? largest(app.data.logits[token], 1)[0].id);
  }};
}

const cosine = (a, b) => dot(a, b) / (norm(a) * norm(b) || 1);

function drawStream(app, stream, stages) {
  const wide = window.innerWidth > 900, d = app.model.config.hidden_size;
  stream.draw({rows: stages.length, columns: d, kind: 'latent', at: (r, c) => stages[r].after[c], rowHeight: wide ? ROW : 16, inset: wide ? 22 : 2,
    most: largest(stages.at(-1).after.map(Math.abs), 8).at(-1).value,
    picked: [Math.min(2 * app.state.layer + 2, stages.length - 1), Math.min(app.state.entry, d - 1)],
    onpick: (r, c) => app.set({layer: Math.max(0, stages[r].layer), entry: c}),
    rowName: (r) => say(`flow.${stages[r].part}`, {layer: stages[r].layer}), columnName: (c) => String(c + 1),
    read: (r, c) => say('flow.cell', {d: c + 1, of: grouped(d), stage: say(`flow.${stages[r].part}`, {layer: stages[r].layer}),
      value: number(stages[r].after[c], 4)})});
}

// The river's width is the length of the stream; what flows in is as wide as what a part adds.
function paintRiver(canvas, stages) {
  const width = canvas.parentNode?.clientWidth;
  if (!width || !stages.length) return;
  const pen = prepare(canvas, width, stages.length * ROW);
  const lengths = stages.map((stage) => norm(stage.after)), most = Math.max(...lengths);
  const half = (i) => Math.max(2, lengths[i] / most * width * 0.27), middle = width * 0.36;
  pen.fillStyle = colour('river');
  pen.beginPath();
  pen.moveTo(middle - half(0), 6);
  for (const side of [-1, 1]) {
    const order = side < 0 ? lengths.keys() : [...lengths.keys()].reverse();
    for (const i of order) {
      const y = i * ROW + ROW / 2, last = side < 0 ? y + ROW / 2 : y - ROW / 2, x = middle + side * half(i);
      const next = Math.max(0, Math.min(lengths.length - 1, i - side)), to = middle + side * half(next);
      if (side > 0 && i === lengths.length - 1) pen.lineTo(x, y + ROW / 2 - 6);
      pen.lineTo(x, y);
      if (next !== i) pen.bezierCurveTo(x, last, to, last, to, last - side * ROW / 2);
      else pen.lineTo(x, side < 0 ? y + ROW / 2 - 6 : 6);
    }
  }
  pen.fill();
  stages.forEach((stage, i) => { if (i) inflow(pen, stage, i, middle + half(i), width, width * 0.54 / most); });
}

function inflow(pen, stage, i, bank, width, scale) {
  const parts = stage.split ?? [[stage.kind, stage.added]];
  const total = parts.reduce((all, [, added]) => all + norm(added), 0) || 1;
  let y = i * ROW + ROW / 2 - Math.min(ROW - 14, norm(stage.added) * scale) / 2;
  for (const [kind, added] of parts) {
    const thick = Math.max(1.5, Math.min(ROW - 14, norm(stage.added) * scale) * norm(added) / total);
    const gap = width - bank;
    pen.fillStyle = colour(kind);
    pen.globalAlpha = 0.85;
    pen.beginPath();
    pen.moveTo(width, y);
    pen.bezierCurveTo(width - gap * 0.6, y, bank + gap * 0.3, y + 7, bank - 3, y + 9);
    pen.lineTo(bank - 3, y + 9 + thick);
    pen.bezierCurveTo(bank + gap * 0.3, y + 7 + thick, width - gap * 0.6, y + thick, width, y + thick);
    pen.fill();
    pen.globalAlpha = 1;
    y += thick;
  }
}
