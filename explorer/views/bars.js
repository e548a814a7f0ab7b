// Bars with names and numbers, choices and sliders: plain HTML, crisp at any width and read out as it stands.
import {fill, h, rich, say} from './draw.js';

// bars(name) -> {node, draw(items, most)}; items: {name, value, words, kind, picked, onpick, hollow, mono}; below zero a bar is grey.
export function bars(name) {
  const list = h('ul.bars', {'aria-label': name});
  const rows = [];
  return {node: list, draw(items, most = Math.max(...items.map((item) => Math.abs(item.value)), 1e-9)) {
    while (rows.length > items.length) rows.pop().row.remove();
    items.forEach((item, i) => {
      if (!rows[i] || rows[i].row.firstChild.matches('button') !== Boolean(item.onpick)) {
        rows[i]?.row.remove();
        rows[i] = newBar(item);
        list.insertBefore(rows[i].row, list.children[i] ?? null);
      }
      const bar = rows[i];
      bar.item = item;
      fill(bar.name, item.mono ? h('span.token', {}, item.name) : rich(item.name));
      bar.fill.className = `bar-fill kind-${item.value < 0 ? 'ink' : item.kind}${item.hollow ? ' hollow' : ''}`;
      bar.fill.style.width = `${Math.min(100, Math.abs(item.value) / most * 100)}%`;
      bar.words.textContent = item.words;
      bar.row.classList.toggle('picked', Boolean(item.picked));
      if (item.onpick) bar.row.firstChild.setAttribute('aria-pressed', String(Boolean(item.picked)));
    });
  }};
}

function newBar(item) {
  const bar = {item, name: h('span.bar-name', {}), fill: h('span.bar-fill', {}), words: h('span.bar-number', {})};
  const inside = [bar.name, h('span.bar-track', {'aria-hidden': 'true'}, bar.fill), bar.words];
  bar.row = h('li', {}, item.onpick ? h('button.bar', {type: 'button', onclick: () => bar.item.onpick()}, inside) : h('div.bar', {}, inside));
  return bar;
}

// A row of choices of which one is taken: {node, draw(taken)}; options: [[value, words]].
export function choice(name, options, onpick) {
  const buttons = options.map(([value, words]) => [value, h('button', {type: 'button', onclick: () => onpick(value)}, rich(words))]);
  const node = h('div.choice', {role: 'group', 'aria-label': name}, buttons.map((pair) => pair[1]));
  return {node, draw(taken) { for (const [value, button] of buttons) button.setAttribute('aria-pressed', String(value === taken)); }};
}

// A slider with its name and its value in words: {node, input, draw(value, words)}.
export function slider(name, {min, max, step}, oninput) {
  const shown = h('output', {});
  const input = h('input', {type: 'range', min, max, step, oninput: () => oninput(Number(input.value))});
  const node = h('label.slider', {}, h('span', {}, rich(name)), input, shown);
  return {node, input, draw(value, words) {
    if (document.activeElement !== input || Number(input.value) !== value) input.value = value;
    shown.textContent = words;
    input.setAttribute('aria-valuetext', words);
  }};
}

// A card: a small title, an explanation, and what is in it.
export function card(key, ...kids) {
  return h('section.card', {'data-part': key}, h('h3', {}, rich(say(`${key}.title`))), h('p.note', {}, rich(say(`${key}.note`))), kids);
}

// The head of a view: its question and one sentence.
export function viewHead(key) {
  return h('header.view-head', {}, h('h2', {}, say(`${key}.question`)), h('p.lead', {}, rich(say(`${key}.lead`))));
}
