// A matrix as tinted cells: hover reads a cell, click or arrow keys choose it, a table stands behind it.
import {block, colour, fill, h, number, prepare, say, tableBehind, write} from './draw.js';

// heatmap(name) -> {node, draw(spec)}; spec: {rows, columns, at(r, c) -> number | null, kind, most, picked and mark: [r, c],
//   onpick(r, c), read(r, c) -> words, rowName(r), columnName(c), tallest, rowHeight, inset, gutter}
// Above zero a cell has the colour of its kind, below zero it is grey; null is masked.
export function heatmap(name) {
  const canvas = h('canvas', {tabindex: 0, role: 'application', 'aria-roledescription': say('draw.matrix')});
  const readout = h('figcaption.readout', {});
  const table = tableBehind(name);
  const node = h('figure.heat', {}, canvas, readout, table.node);
  let spec = null, hover = null, box = {cell: 0, height: 0, left: 0};

  function place(event) {
    const {left, top} = canvas.getBoundingClientRect();
    const c = Math.floor((event.clientX - left - box.left) / box.cell), r = Math.floor((event.clientY - top) / box.height);
    return spec && r >= 0 && r < spec.rows && c >= 0 && c < spec.columns && spec.at(r, c) !== null ? [r, c] : null;
  }
  function show() {
    const [r, c] = hover ?? spec.picked ?? [];
    fill(readout, r === undefined || spec.at(r, c) === null ? '\u00a0' : spec.read(r, c));
  }
  canvas.addEventListener('pointermove', (event) => { hover = place(event); if (spec) { paint(); show(); } });
  canvas.addEventListener('pointerleave', () => { hover = null; if (spec) { paint(); show(); } });
  canvas.addEventListener('click', (event) => { const at = place(event); if (at) spec.onpick?.(...at); });
  canvas.addEventListener('keydown', (event) => {
    const step = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[event.key];
    if (!step || !spec?.picked) return;
    event.preventDefault();
    const [r, c] = [spec.picked[0] + step[0], spec.picked[1] + step[1]];
    if (r < 0 || c < 0 || r >= spec.rows || c >= spec.columns) return;
    if (spec.at(r, c) !== null) spec.onpick?.(r, c);
    else if (step[0] < 0) spec.onpick?.(r, Math.min(c, r)); // along the edge of the mask
  });

  function paint() {
    const width = node.clientWidth;
    if (!width || !spec) return;
    const left = spec.gutter && width > 300 ? spec.gutter : 0;
    const cell = Math.min(spec.tallest ?? 34, (width - left) / spec.columns);
    const height = spec.rowHeight ?? cell;
    box = {cell, height, left};
    const pen = prepare(canvas, width, Math.max(1, Math.round(height * spec.rows)));
    const gap = cell > 7 ? 1 : 0, inset = spec.inset ?? (height > 7 ? 1 : 0);
    for (let r = 0; r < spec.rows; r++) {
      for (let c = 0; c < spec.columns; c++) paintCell(pen, r, c, gap, inset);
      if (left) label(pen, spec.rowName(r), left, (r + 0.5) * height, r === spec.picked?.[0]);
    }
    for (const [at, name] of [[spec.mark, 'rope'], [spec.picked, 'text'], [hover, 'soft']]) if (at) frame(pen, at, name);
  }
  function paintCell(pen, r, c, gap, inset) {
    const value = spec.at(r, c);
    const x = box.left + c * box.cell, y = r * box.height;
    if (value === null) return;
    block(pen, 'cell', x, y + inset / 2, box.cell - gap, box.height - inset);
    const strength = Math.min(1, Math.abs(value) / spec.most) ** 0.75;
    block(pen, value < 0 ? 'ink' : spec.kind, x, y + inset / 2, box.cell - gap, box.height - inset, strength);
  }
  function label(pen, words, right, y, strong) {
    const font = `${strong ? 600 : 400} 11px ui-monospace, Menlo, Consolas, monospace`;
    if (box.height >= 10) write(pen, words.slice(0, 9), right - 7, y + 4, {kind: strong ? 'text' : 'soft', align: 'right', font});
  }
  function frame(pen, [r, c], name) {
    pen.lineWidth = name === 'text' ? 2 : 1;
    pen.strokeStyle = colour(name);
    pen.strokeRect(box.left + c * box.cell - 0.5, r * box.height + 0.5, Math.max(box.cell, 3), box.height - 1);
  }
  new ResizeObserver(() => paint()).observe(node);
  return {node, draw(next) {
    spec = next;
    canvas.setAttribute('aria-label', `${name}. ${spec.picked && spec.at(...spec.picked) !== null ? spec.read(...spec.picked) : ''}`);
    paint();
    show();
    const columns = Array.from({length: spec.columns}, (_, c) => c), rows = Array.from({length: spec.rows}, (_, r) => r);
    table.draw(() => ({head: ['', ...columns.map((c) => spec.columnName(c))],
      rows: rows.map((r) => [spec.rowName(r), ...columns.map((c) => number(spec.at(r, c)))])}));
  }};
}
