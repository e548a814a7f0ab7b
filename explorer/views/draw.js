// What every view is drawn with: elements, words, numbers, colours, and short mathematics turned into nodes.
import {STRINGS} from '../strings.js';

// An element: h('button.pill.on', {onclick, 'aria-label': 'x'}, 'text', node, null)
export function h(tag, attributes = {}, ...kids) {
  const [name, ...classes] = tag.split('.');
  const node = document.createElement(name);
  if (classes.length) node.className = classes.join(' ');
  for (const [key, value] of Object.entries(attributes)) put(node, key, value);
  node.append(...kids.flat(3).filter((kid) => kid !== null && kid !== undefined && kid !== false));
  return node;
}

function put(node, key, value) {
  if (key.startsWith('on')) node.addEventListener(key.slice(2), value);
  else if (key === 'value') node.value = value;
  else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? '' : value);
}

// The words of a key, with {names} filled in. All text of the page stands in strings.js.
export function say(key, values = {}) {
  const found = STRINGS[key];
  if (found === undefined) throw new Error(`no words for ${key}`);
  return found.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

// Nodes of a text with marks: *variable*, **strong**, `code`, a_{sub}, a^{sup}, [words](address).
export function rich(text) {
  const nodes = [];
  const marks = /\*\*(.+?)\*\*|\*(.+?)\*|`(.+?)`|_\{(.+?)\}|\^\{(.+?)\}|\[(.+?)\]\((.+?)\)/g;
  let from = 0;
  for (const found of text.matchAll(marks)) {
    nodes.push(text.slice(from, found.index));
    from = found.index + found[0].length;
    const [, strong, variable, code, sub, sup, words, address] = found;
    if (strong) nodes.push(h('strong', {}, strong));
    else if (variable) nodes.push(h('i', {}, variable));
    else if (code) nodes.push(h('code', {}, code));
    else if (sub) nodes.push(h('sub', {}, rich(sub)));
    else if (sup) nodes.push(h('sup', {}, rich(sup)));
    else nodes.push(h('a', {href: address}, words));
  }
  return [...nodes, text.slice(from)];
}

export const tell = (key, values) => rich(say(key, values));

// Replace what a node holds.
export function fill(node, ...kids) { node.replaceChildren(...kids.flat(3).filter((kid) => kid !== null && kid !== undefined)); }

// ---- numbers
export function number(x, digits = 3) {
  if (x === null || x === undefined || Number.isNaN(x)) return '–';
  if (!Number.isFinite(x)) return x > 0 ? '∞' : '−∞';
  if (x === 0) return '0';
  const size = Math.abs(x), raised = (_, power) => `·10⁻${[...power].map((digit) => '⁰¹²³⁴⁵⁶⁷⁸⁹'[digit]).join('')}`;
  const text = size >= 1000 ? grouped(size) : size < 1e-4 ? size.toExponential(1).replace(/e-(\d+)/, raised) : String(+size.toPrecision(digits));
  return (x < 0 ? '−' : '') + text;
}
export const grouped = (n) => Math.round(n).toLocaleString('en-US');
export const percent = (x, digits = 0) => `${x > 0 && x < 0.001 ? number(100 * x, 1) : (100 * x).toFixed(x && x < 0.01 && !digits ? 1 : digits)} %`;
export const signed = (x, digits = 3) => (x < 0 ? '' : '+') + number(x, digits);

// 671,026,404,352 -> 671.0 B; 70,272 bytes -> 68.6 KiB
const measured = (n, base, units) => {
  const power = Math.min(units.length - 1, Math.max(0, Math.floor(Math.log(n) / Math.log(base) + 1e-9))), value = n / base ** power;
  return `${power ? value.toFixed(value >= 100 ? 1 : 2) : grouped(n)} ${units[power]}`.trim();
};
export const large = (n) => measured(n, 1000, ['', 'K', 'M', 'B', 'T']);
export const bytes = (n) => measured(n, 1024, ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB']);

// ---- vectors
export const dot = (a, b) => { let sum = 0; for (let i = 0; i < a.length; i++) sum += a[i] * b[i]; return sum; };
export const norm = (a) => Math.sqrt(dot(a, a));
export function softmax(logits) {
  let top = -Infinity;
  for (const x of logits) if (x > top) top = x;
  const out = Float32Array.from(logits, (x) => Math.exp(x - top));
  let sum = 0;
  for (const x of out) sum += x;
  return out.map((x) => x / sum);
}
// The `n` largest: [{id, value}], largest first.
export function largest(values, n) {
  const best = [];
  for (let id = 0; id < values.length; id++) {
    if (best.length === n && values[id] <= best[n - 1].value) continue;
    best.push({id, value: values[id]});
    best.sort((a, b) => b.value - a.value);
    best.length = Math.min(n, best.length);
  }
  return best;
}

// ---- colours: the chapters' language, kept in style.css; canvases ask for them by name
const colours = new Map();
export function colour(name) {
  if (!colours.has(name)) colours.set(name, getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim());
  return colours.get(name);
}
export const forgetColours = () => colours.clear();

// A piece of text as a reader can see it: spaces, line ends and tabs have signs.
export const visible = (piece) => piece.replace(/^<｜(\p{L}+).*｜>$/u, '‹$1›').replace(/ {4,}/g, (run) => `·×${run.length}`)
  .replace(/ /g, '·').replace(/\n/g, '↵').replace(/\t/g, '⇥') || '∅';

// A canvas as wide as its place and crisp on any screen; `paint(pen, width)` returns nothing, `height` is in CSS pixels.
export function prepare(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const pen = canvas.getContext('2d');
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  return pen;
}

// Words, a rectangle and a line on a canvas, in a colour of the language.
export function write(pen, words, x, y, {kind = 'soft', align = 'center', font = '11px system-ui, sans-serif'} = {}) {
  Object.assign(pen, {font, textAlign: align, fillStyle: colour(kind)});
  pen.fillText(words, x, y);
}
export function block(pen, kind, x, y, width, height, strength = 1) {
  Object.assign(pen, {globalAlpha: strength, fillStyle: colour(kind)});
  pen.fillRect(x, y, width, height);
  pen.globalAlpha = 1;
}
export function rule(pen, kind, from, to, lineWidth = 1) {
  Object.assign(pen, {lineWidth, strokeStyle: colour(kind)});
  pen.beginPath();
  pen.moveTo(...from);
  pen.lineTo(...to);
  pen.stroke();
}

// Numbers behind a picture: a table that is made when somebody opens it. `ask()` -> {head: [...], rows: [[...]]}
export function tableBehind(name) {
  let ask = null;
  const place = h('div.scroll', {tabindex: 0, role: 'region', 'aria-label': name});
  const node = h('details.table', {ontoggle: () => build()}, h('summary', {}, say('draw.table')), place);
  function build() {
    if (!node.open || !ask) return;
    const {head, rows} = ask();
    const first = h('tr', {}, head.map((cell) => h('th', {scope: 'col'}, cell)));
    const rest = rows.map(([top, ...cells]) => h('tr', {}, h('th', {scope: 'row'}, top), cells.map((cell) => h('td', {}, cell))));
    fill(place, h('table', {}, h('caption.unseen', {}, name), h('thead', {}, first), h('tbody', {}, rest)));
  }
  return {node, draw(next) { ask = next; build(); }};
}
