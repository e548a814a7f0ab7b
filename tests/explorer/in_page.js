// What test_in_chromium.py runs inside the page: every control is used once; pictures that are empty; what axe finds.

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

// Let the frames pass that were asked for.
async function settle() {
  await pause(220);
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
}

function say(node, type, more = {}) {
  const kind = type.startsWith('key') ? KeyboardEvent : type.startsWith('pointer') ? PointerEvent : MouseEvent;
  node.dispatchEvent(new kind(type, {bubbles: true, cancelable: true, pointerId: 1, ...more}));
}

function useCanvas(node) {
  node.focus();
  for (const key of ['ArrowRight', 'ArrowDown', 'ArrowLeft', 'ArrowUp']) say(node, 'keydown', {key});
  const {left, top, width, height} = node.getBoundingClientRect();
  const at = {clientX: left + width * 0.6, clientY: top + height * 0.6};
  for (const type of ['pointermove', 'click', 'pointerleave']) say(node, type, at);
}

async function useInput(node) {
  for (const value of [node.max, node.min]) {
    node.value = value;
    say(node, 'input');
    await pause(20);
  }
}

// Returns how many controls of each kind were used.
async function useEveryControl() {
  const used = {};
  const all = () => [...document.querySelectorAll('button, select, input, canvas[tabindex], details')];
  for (let i = 0; i < all().length && i < 400; i++) {
    const node = all()[i], kind = node.localName;
    if (node.disabled || node.closest('[hidden]') || node.matches('.tab, .chip, #tour-start')) continue;
    used[kind] = (used[kind] ?? 0) + 1;
    if (kind === 'button') node.click();
    if (kind === 'details') node.open = true;
    if (kind === 'canvas') useCanvas(node);
    if (kind === 'input') await useInput(node);
    if (kind === 'select') {
      node.selectedIndex = node.length - 1;
      say(node, 'change');
    }
    await pause(20);
  }
  await settle();
  return used;
}

function emptyPictures() {
  const shown = [...document.querySelectorAll('#view canvas')].filter((node) => node.clientWidth);
  const painted = (node) => node.getContext('2d').getImageData(0, 0, node.width, node.height).data.some((x) => x);
  return shown.filter((node) => !painted(node)).map((node) => node.getAttribute('aria-label'));
}

async function axeFindings() {
  const {violations} = await axe.run(document);
  return violations.map(({id, nodes}) => [id, nodes.slice(0, 3).map((node) => `${node.html} ${node.failureSummary}`)]);
}

const numbersOf = (selector) => [...document.querySelectorAll(selector)].map((node) => parseFloat(node.textContent));
