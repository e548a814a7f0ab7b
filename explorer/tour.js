// The guided tour: ten stops that follow the chapters. A stop chooses a view and a state, points at a part, and asks a question.
import {fill, h, say, tell} from './views/draw.js';

// [what is chosen, the part that is pointed at]
const STOPS = [
  [{view: 'flow', layer: 0}, '#tokens'],
  [{view: 'flow', layer: 1}, '.flow'],
  [{view: 'attention', layer: 0}, '.heads'],
  [{view: 'attention', layer: 1}, '.maps'],
  [{view: 'attention', layer: 1}, '[data-part="attention.latent"]'],
  [{view: 'attention', layer: 1}, '[data-part="attention.cache"]'],
  [{view: 'routing'}, '[data-part="routing.token"]'],
  [{view: 'routing'}, '[data-part="routing.moved"]'],
  [{view: 'prediction'}, '[data-part="prediction.writing"]'],
  [{view: 'fp8', outlier: 16}, '[data-part="fp8.matrix"]'],
];

export function makeTour(app, node, startButton) {
  const eyebrow = h('p.eyebrow', {}), title = h('h2', {tabindex: -1}), text = h('p', {}), task = h('p.task', {});
  const back = h('button.act.quiet', {type: 'button', onclick: () => go(app.state.tour - 1)}, say('tour.back'));
  const next = h('button.act.main', {type: 'button', onclick: () => go(app.state.tour + 1)}, say('tour.next'));
  const end = h('button.act.quiet', {type: 'button', onclick: () => leave()}, say('tour.end'));
  const dots = h('p.dots', {'aria-hidden': 'true'});
  node.append(eyebrow, title, text, task, h('div.buttons', {}, back, dots, end, next));
  node.addEventListener('keydown', (event) => { if (event.key === 'Escape') leave(); });
  startButton.addEventListener('click', () => go(1));
  let shown = null;

  function go(stop) {
    if (stop > STOPS.length) return leave();
    const [chosen] = STOPS[stop - 1], dense = app.model.config.first_k_dense_replace ?? 0;
    const layer = chosen.view === 'routing' ? {layer: Math.max(dense, app.state.layer)} : {};
    app.set({tour: stop, outlier: 0, ...chosen, ...layer});
  }
  function leave() {
    app.set({tour: null});
    startButton.focus();
  }
  function point(stop) {
    for (const old of document.querySelectorAll('.pointed')) old.classList.remove('pointed');
    const target = stop && document.querySelector(STOPS[stop - 1][1]);
    if (!target) return;
    target.classList.add('pointed');
    target.scrollIntoView({block: 'start', behavior: matchMedia('(prefers-reduced-motion: reduce)').matches ? 'auto' : 'smooth'});
  }
  return {update() {
    const stop = STOPS[app.state.tour - 1] ? app.state.tour : null;
    if (stop === shown) return;
    shown = stop;
    node.hidden = !stop;
    document.body.classList.toggle('touring', Boolean(stop));
    point(stop);
    if (!stop) return;
    const words = (name) => tell(`tour.${stop}.${name}`);
    fill(eyebrow, say('tour.stop', {stop, n: STOPS.length}), ' · ', words('chapter'));
    fill(title, words('title'));
    fill(text, words('text'));
    fill(task, words('task'));
    fill(dots, STOPS.map((_, i) => h(`span${i < stop ? '.done' : ''}`)));
    back.disabled = stop === 1;
    fill(next, say(stop === STOPS.length ? 'tour.finish' : 'tour.next'));
    title.focus({preventScroll: true});
  }};
}
