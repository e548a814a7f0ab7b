// A source page is dark when the rest of the site is: by the reader's choice there, else by the system.
const key = new URL('.', document.currentScript.src).pathname + '.__palette';
let chosen = null;
try {
  chosen = JSON.parse(localStorage.getItem(key));
} catch {} // a page from a file may have no storage
const own = chosen?.color?.media === '(prefers-color-scheme)' ? null : chosen?.color?.scheme;
const scheme = own ?? (matchMedia('(prefers-color-scheme: dark)').matches ? 'slate' : 'default');
document.documentElement.classList.toggle('dark', scheme === 'slate');
