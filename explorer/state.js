// The state of the page: what is chosen, kept in the address so that a view can be sent to somebody.

export const VIEWS = ['flow', 'attention', 'routing', 'prediction', 'fp8', 'sizes'];

// What an address that says nothing means.
export const START = {
  view: 'flow', text: '', token: -1, layer: 1, head: 0, expert: -1, key: -1, entry: 0, candidate: null, bias: {},
  format: 'e4m3', grain: 'tile', outlier: 0, atToken: -1, atEntry: -1, shape: 'own', knobs: {}, context: 12, tour: null,
};

const isNumber = ['token', 'layer', 'head', 'expert', 'key', 'entry', 'candidate', 'outlier', 'atToken', 'atEntry', 'context', 'tour'];
const isTable = ['bias', 'knobs']; // name:value, name:value

// The state as the part of an address behind #; what is as at the start is left out.
export function writeAddress(state) {
  const said = new URLSearchParams();
  for (const [key, usual] of Object.entries(START)) {
    const value = isTable.includes(key) ? Object.entries(state[key]).map((pair) => pair.join(':')).join(',') || usual : state[key];
    if (value !== usual && value !== null) said.set(key, value);
  }
  return said.toString();
}

export function readAddress(hash) {
  const said = new URLSearchParams(hash.replace(/^#/, '')), state = {};
  for (const key of Object.keys(START)) {
    if (!said.has(key)) continue;
    const value = said.get(key);
    if (isNumber.includes(key)) { if (/^-?\d{1,7}$/.test(value)) state[key] = Number(value); }
    else if (isTable.includes(key)) state[key] = readTable(value);
    else state[key] = value;
  }
  if (!VIEWS.includes(state.view)) delete state.view;
  if (!['e4m3', 'e5m2'].includes(state.format)) delete state.format;
  if (!['tile', 'block', 'tensor'].includes(state.grain)) delete state.grain;
  if (!['own', 'v3', 'v2lite'].includes(state.shape)) delete state.shape;
  return state;
}

function readTable(text) {
  const pairs = text.split(',').map((pair) => pair.split(':')).filter((pair) => /^[\w.]+$/.test(pair[0]) && Number.isFinite(Number(pair[1])));
  return Object.fromEntries(pairs.map(([name, value]) => [name, Number(value)]));
}

// Choices that lie outside of this model or text come back to its edge; without a choice the last token, what it reads most, and its best expert.
export function settle(state, config, n, usual = {expert: 0, key: 0}) {
  const within = (value, top) => Math.max(0, Math.min(top, value));
  state.token = state.token < 0 ? n - 1 : within(state.token, n - 1);
  state.key = within(state.key < 0 ? usual.key : state.key, state.token);
  state.layer = within(state.layer, config.num_hidden_layers - 1);
  state.head = within(state.head, config.num_attention_heads - 1);
  state.expert = within(state.expert < 0 ? usual.expert : state.expert, (config.n_routed_experts ?? 1) - 1);
  state.entry = within(state.entry, config.hidden_size - 1);
  state.outlier = within(state.outlier, 18);
  if (!state.outlier) state.atToken = state.atEntry = -1; // an outlier stays where it was made
  else if (state.atToken < 0 || state.atToken >= n) [state.atToken, state.atEntry] = [state.token, state.entry];
  state.context = Math.max(7, within(state.context, 17));
  if (state.candidate !== null && !(state.candidate >= 0 && state.candidate < config.vocab_size)) state.candidate = null;
}
