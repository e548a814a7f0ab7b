// The end of every zoom: the numbers of a single product. Two vectors, entry times entry, the sum, and what is made of it.
import {block, colour, dot, fill, h, number, percent, prepare, rich, say, signed, tableBehind, tell, visible, write} from './draw.js';

const GUTTER = 52, STRIPE = 15;

// productPanel(app) -> {node, draw(spec)}; spec: {title, lead, segments: [{kind, left: [name, values], right: [name, values]}],
//   steps: [[words, value, kind]]}. `app.state.entry` is the entry that is read out.
export function productPanel(app) {
  const title = h('h3', {}), lead = h('p', {}), stripes = h('div.stripes', {}), readout = h('p.readout', {});
  const steps = h('dl.steps', {}), table = tableBehind(say('product.table'));
  const node = h('div.product', {}, h('p.eyebrow', {}, say('product.name')), title, lead, stripes, readout, steps, table.node);
  let spec = null, pictures = [], pairs = []; // pairs: [entry, entry, their names] over all segments

  function show(entry) {
    const [a, b, left, right] = pairs[entry], sum = pairs.slice(0, entry + 1).reduce((all, [x, y]) => all + x * y, 0);
    fill(readout, tell('product.entry', {i: entry + 1, of: pairs.length, left, right, a: number(a), b: number(b), ab: number(a * b), sum: number(sum)}));
  }
  function stripe(index, first) {
    const canvas = h('canvas', {tabindex: 0, role: 'application', 'aria-roledescription': say('draw.vectors')});
    let grid = null, held = null;
    const at = (event) => {
      const {left, top} = canvas.getBoundingClientRect();
      const column = Math.floor((event.clientX - left - GUTTER) / grid.cell), row = Math.floor((event.clientY - top) / grid.block);
      const i = row * grid.columns + column;
      return column >= 0 && column < grid.columns && i < grid.n ? first + i : null;
    };
    canvas.addEventListener('pointermove', (event) => { const i = at(event); held = i; paint(); show(i ?? app.state.entry); });
    canvas.addEventListener('pointerleave', () => { held = null; paint(); show(app.state.entry); });
    canvas.addEventListener('click', (event) => { const i = at(event); if (i !== null) app.set({entry: i}); });
    canvas.addEventListener('keydown', (event) => {
      const step = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -grid.columns, ArrowDown: grid.columns}[event.key];
      if (!step) return;
      event.preventDefault();
      app.set({entry: Math.max(0, Math.min(pairs.length - 1, app.state.entry + step))});
    });
    function paint() {
      const width = canvas.parentNode?.clientWidth;
      if (!width || !spec?.segments[index]) return;
      const {kind, left, right} = spec.segments[index], n = left[1].length;
      const most = Math.max(1, Math.floor((width - GUTTER) / (n > 128 ? 9 : 14)));
      const columns = Math.min(n, most), rows = Math.ceil(n / columns), block = 3 * STRIPE + 12;
      const cell = Math.min(26, (width - GUTTER) / columns);
      grid = {n, columns, block, cell};
      const pen = prepare(canvas, width, rows * block);
      const stacks = [left[1], right[1], left[1].map((a, i) => a * right[1][i])];
      const scales = stacks.map((values) => values.reduce((top, x) => Math.max(top, Math.abs(x)), 1e-9));
      for (let row = 0; row < rows; row++) {
        const names = [left[0], right[0], '×'];
        stacks.forEach((values, s) => {
          const y = row * block + s * (STRIPE + (s === 2 ? 2 : 0));
          const words = names[s].replace(/_\{(.+?)\}|\*/g, (_, sub) => sub ? ` ${sub}` : '');
          write(pen, words, 0, y + STRIPE - 4, {align: 'left', font: 'italic 12px ui-serif, Georgia, serif'});
          for (let c = 0; c < columns && row * columns + c < n; c++) paintEntry(pen, values[row * columns + c] / scales[s], kind, c, y, cell);
        });
        for (const [entry, name] of [[app.state.entry, 'text'], [held, 'soft']]) {
          const i = entry === null ? -1 : entry - first - row * columns;
          if (i < 0 || i >= columns || entry - first >= n) continue;
          pen.strokeStyle = colour(name);
          pen.lineWidth = 1.5;
          pen.strokeRect(GUTTER + i * cell - 0.5, row * block - 0.5, cell, 3 * STRIPE + 2);
        }
      }
    }
    return {canvas, paint};
  }
  function paintEntry(pen, value, kind, c, y, cell) {
    block(pen, 'cell', GUTTER + c * cell, y, cell - 1, STRIPE - 1);
    block(pen, value < 0 ? 'ink' : kind, GUTTER + c * cell, y, cell - 1, STRIPE - 1, Math.min(1, Math.abs(value)) ** 0.75);
  }
  new ResizeObserver(() => pictures.forEach((one) => one.paint())).observe(stripes);

  return {node, draw(next) {
    spec = next;
    pairs = spec.segments.flatMap(({left, right}) => Array.from(left[1], (a, i) => [a, right[1][i], left[0], right[0]]));
    fill(title, rich(spec.title));
    fill(lead, rich(spec.lead ?? ''));
    if (pictures.length !== spec.segments.length) {
      pictures = [];
      fill(stripes);
    }
    let first = 0;
    spec.segments.forEach((part, index) => {
      if (pictures[index]?.first !== first) {
        pictures[index]?.canvas.remove();
        pictures[index] = {...stripe(index, first), first};
        stripes.append(pictures[index].canvas);
      }
      pictures[index].canvas.setAttribute('aria-label', say('product.picture', {left: plain(part.left[0]), right: plain(part.right[0]),
        n: part.left[1].length}));
      first += part.left[1].length;
    });
    if (app.state.entry >= pairs.length) app.state.entry = 0;
    pictures.forEach((one) => one.paint());
    show(app.state.entry);
    fill(steps, spec.steps.map(([words, value, kind]) => h('div', {}, h('dt', {}, rich(words)),
      h(`dd${kind ? `.is-${kind}` : ''}`, {}, typeof value === 'number' ? number(value, 4) : value))));
    table.draw(() => entries(pairs));
  }};
}

const plain = (words) => words.replace(/[*{}]/g, '').replace(/_/g, ' ');

function entries(pairs) {
  let sum = 0;
  const row = ([a, b], i) => [`${i + 1}`, number(a, 4), number(b, 4), signed(a * b, 4), number(sum += a * b, 4)];
  return {head: [say('product.i'), plain(pairs[0][2]), plain(pairs[0][3]), say('product.times'), say('product.sum')], rows: pairs.map(row)};
}

// The last product of all: the finished row of the chosen token times a token's row in the head, and its share.
export function drawLogit(app, panel, id) {
  const {token} = app.state, final = app.data.trace.final[token], logits = app.data.logits[token], row = app.headRow(id);
  const top = logits.reduce((most, x) => Math.max(most, x)), sum = logits.reduce((all, x) => all + Math.exp(x - top), 0);
  const words = {token: app.piece(id), here: visible(app.data.pieces[token])};
  panel.draw({title: say('product.logitOf', words), lead: say('product.logitLead', words),
    segments: [{kind: 'latent', left: ['*h*', final], right: ['*w*', row]}],
    steps: [[say('product.logit'), dot(final, row)], [say('product.above', {top: number(top, 4)}), Math.exp(logits[id] - top)],
      [say('product.over', {n: logits.length.toLocaleString('en-US'), sum: number(sum, 4)}), percent(Math.exp(logits[id] - top) / sum, 2)]]});
}
