// Formulas are written while the site is built: every page carries finished HTML and MathML, and no script for them.
//
//     node formulas.mjs HTML KATEX        every .html below HTML; KATEX is the folder of the package
//
// A formula that KaTeX cannot read ends the build with its page and its text.
import {cpSync, mkdirSync, readFileSync, readdirSync, writeFileSync} from 'node:fs';
import {createRequire} from 'node:module';
import {dirname, join, relative} from 'node:path';

const [html, package_] = process.argv.slice(2);
const katex = createRequire(import.meta.url)(join(package_, 'dist', 'katex.js'));
const FORMULA = /<(span|div) class="arithmatex">([\s\S]*?)<\/\1>/g;
const LETTERS = {'&lt;': '<', '&gt;': '>', '&quot;': '"', '&#39;': "'", '&amp;': '&'};
const faults = [];
let count = 0;

const at = join(html, 'assets', 'katex');
mkdirSync(at, {recursive: true});
cpSync(join(package_, 'dist', 'katex.min.css'), join(at, 'katex.min.css'));
cpSync(join(package_, 'dist', 'fonts'), join(at, 'fonts'), {recursive: true});

for (const name of readdirSync(html, {recursive: true}).filter((file) => file.endsWith('.html'))) {
  const path = join(html, name);
  const text = readFileSync(path, 'utf8');
  if (!text.includes('class="arithmatex"')) continue;
  const written = text.replace(FORMULA, (_, tag, held) => {
    const formula = held.replace(/&(lt|gt|quot|#39|amp);/g, (letter) => LETTERS[letter]).trim().slice(2, -2);
    count += 1;
    try {
      return katex.renderToString(formula, {displayMode: tag === 'div', strict: 'ignore', throwOnError: true});
    } catch (error) {
      faults.push(`${name}: ${error.message}\n  ${formula.trim()}`);
      return held;
    }
  });
  const style = `<link rel="stylesheet" href="${relative(dirname(path), join(at, 'katex.min.css'))}">\n</head>`;
  writeFileSync(path, written.replace('</head>', style));
}
console.log(`${count} formulas`);
if (faults.length) {
  console.error(faults.join('\n'));
  process.exit(1);
}
