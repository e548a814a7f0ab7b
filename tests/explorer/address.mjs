// States of the page through the address and back; wrong addresses; choices beyond a small model.
import {START, readAddress, settle, writeAddress} from '../../explorer/state.js';

const state = {
  ...START, view: 'routing', text: 'a=b&c#d %20\n"é"', token: 3, layer: 2, head: 1, expert: 5, key: 2, entry: 7, candidate: 11,
  bias: {'1.5': -0.25, '2.0': 0.5}, format: 'e5m2', grain: 'tensor', outlier: 8, atToken: 2, atEntry: 3, shape: 'v3', knobs: {hidden_size: 512}, context: 15, tour: 4,
};
const far = {...START, token: 900, key: 900, layer: 900, head: 900, expert: 900, entry: 900, outlier: 900};
settle(far, {num_hidden_layers: 3, num_attention_heads: 2, n_routed_experts: 8, hidden_size: 38, vocab_size: 53}, 5);
const settled = Object.fromEntries(['token', 'key', 'layer', 'head', 'expert', 'entry', 'outlier'].map((key) => [key, far[key]]));
const hostile = readAddress('#view=nothing&token=-1e9&layer=x&format=int8&grain=all&shape=__proto__&constructor=1&entry=99999999999');
console.log(JSON.stringify({state, back: {...START, ...readAddress(`#${writeAddress(state)}`)}, start: writeAddress(START), settled, hostile}));
