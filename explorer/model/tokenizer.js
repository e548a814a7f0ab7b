// Byte-level BPE from an ordinary tokenizer.json (chapter 00).
//
//   text -> pieces, cut by the rules of the pre-tokenizer -> bytes, each a printable character -> merges, best first
//
// Text never turns into an added token by accident: encode reads <｜User｜> as characters unless told otherwise.

/** The printable character that byte-level BPE writes for each byte. */
function byteCharacters() {
  const shown = (b) => (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
  let hidden = 0;
  return Array.from({length: 256}, (_, b) => String.fromCharCode(shown(b) ? b : 0x100 + hidden++));
}

const CHARACTERS = byteCharacters();
const BYTES = new Map(CHARACTERS.map((character, byte) => [character, byte]));
const GPT2_SPLIT = String.raw`'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`;
const CLASSES = { // what these mean to the library's engine, which counts in Unicode
  s: String.raw`\p{White_Space}`, S: String.raw`\P{White_Space}`, d: String.raw`\p{Nd}`, D: String.raw`\P{Nd}`,
};

/** Turn a rule of the library's regular expressions into one of JavaScript's. */
function translateRule(pattern) {
  const translated = pattern.replace(/\\([pP])\{(\w+)\}|\\(.)/gsu, (whole, kind, name, letter) => {
    if (kind) return name.length > 2 ? `\\${kind}{Script=${name}}` : whole;
    if (CLASSES[letter]) return CLASSES[letter];
    if (/[rntfvxu\^$\\.*+?()[\]{}|/-]/.test(letter)) return whole;
    if (/\w/.test(letter)) throw new Error(`the rule \\${letter} of the pre-tokenizer is not known here`);
    return whole.slice(1); // an escape that JavaScript refuses, such as \"
  });
  return new RegExp(translated, 'gu');
}

/** Cut a piece at every match, which becomes a piece of its own. */
function cutAt(rule, piece) {
  const pieces = [];
  let end = 0;
  for (const match of piece.matchAll(rule)) {
    if (!match[0]) continue;
    if (match.index > end) pieces.push(piece.slice(end, match.index));
    pieces.push(match[0]);
    end = match.index + match[0].length;
  }
  if (end < piece.length) pieces.push(piece.slice(end));
  return pieces;
}

/** The rules of a pre-tokenizer, in order. */
function readRules(part) {
  if (!part) return [];
  if (part.type === 'Sequence') return part.pretokenizers.flatMap(readRules);
  if (part.type === 'ByteLevel' && !part.add_prefix_space) return part.use_regex ? [translateRule(GPT2_SPLIT)] : [];
  if (part.type === 'Digits') return [translateRule(part.individual_digits ? String.raw`\p{N}` : String.raw`\p{N}+`)];
  if (part.type === 'Split' && part.behavior === 'Isolated' && !part.invert && part.pattern.Regex) {
    return [translateRule(part.pattern.Regex)];
  }
  throw new Error(`the pre-tokenizer ${JSON.stringify(part).slice(0, 90)} is not known here`);
}

export class Tokenizer {
  /** description: what tokenizer.json holds. */
  constructor(description) {
    const {model, normalizer} = description, added = description.added_tokens ?? [];
    if (model.type !== 'BPE' || !JSON.stringify(description.decoder ?? '').includes('ByteLevel')) {
      throw new Error('the tokenizer is not byte-level BPE');
    }
    if (normalizer && !(normalizer.type === 'Sequence' && !normalizer.normalizers.length)) {
      throw new Error('the tokenizer changes text before it reads it; the explorer shows text as it is');
    }
    this.added = new Map(added.map((token) => [token.content, token.id]));
    this.special = new Set(added.filter((token) => token.special).map((token) => token.id));
    this.vocabulary = new Map(Object.entries(model.vocab));
    const words = [...this.vocabulary].filter(([word]) => model.ignore_merges && !this.added.has(word));
    this.whole = new Map(words); // pieces that are one token whatever the merges say
    this.ranks = new Map(model.merges.map((pair, rank) => [Array.isArray(pair) ? pair.join(' ') : pair, rank]));
    this.rules = readRules(description.pre_tokenizer);
    this.words = [];
    for (const [word, id] of [...this.vocabulary, ...this.added]) this.words[id] = word;
    this.known = new Map(); // words read before
  }

  get size() { return this.words.length; }

  /** Ids of a text; added tokens written in it count as such only with `special`. */
  encode(text, {special = false} = {}) {
    if (!special || !this.added.size) return this.#encodePlain(text);
    const names = [...this.added.keys()].sort((a, b) => b.length - a.length); // the longest first
    const rule = new RegExp(names.map((name) => name.replace(/[\^$\\.*+?()[\]{}|/]/g, '\\$&')).join('|'), 'gu');
    return cutAt(rule, text).flatMap((part) => this.added.get(part) ?? this.#encodePlain(part));
  }

  #encodePlain(text) {
    const whole = text.toWellFormed?.() ?? text; // half a surrogate pair is no character
    const pieces = this.rules.reduce((cut, rule) => cut.flatMap((piece) => cutAt(rule, piece)), whole ? [whole] : []);
    return pieces.flatMap((piece) => this.#encodePiece(piece));
  }

  #encodePiece(piece) {
    if (!this.known.has(piece)) {
      if (this.known.size > 20000) this.known.clear();
      const word = Array.from(new TextEncoder().encode(piece), (byte) => CHARACTERS[byte]);
      const one = this.whole.get(word.join(''));
      this.known.set(piece, one === undefined ? this.#merge(word).map((part) => this.vocabulary.get(part)) : [one]);
    }
    return this.known.get(piece);
  }

  /** Join the neighbours whose merge was learned first, the leftmost of equals, until none is left. */
  #merge(parts) {
    for (;;) {
      let least = Infinity, at = -1;
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = this.ranks.get(`${parts[i]} ${parts[i + 1]}`);
        if (rank < least) [least, at] = [rank, i];
      }
      if (at < 0) return parts;
      parts.splice(at, 2, parts[at] + parts[at + 1]);
    }
  }

  /** The bytes that a token stands for; of an added token, its name's. */
  bytes(id) {
    const word = this.words[id];
    if (word === undefined) return new Uint8Array();
    if (this.added.get(word) === id) return new TextEncoder().encode(word);
    return Uint8Array.from(word, (character) => BYTES.get(character));
  }

  /** The text of ids; bytes that form no character become U+FFFD, control tokens nothing. */
  decode(ids, {skipSpecial = true} = {}) {
    const kept = Array.from(ids).filter((id) => !(skipSpecial && this.special.has(id)));
    const bytes = kept.flatMap((id) => [...this.bytes(id)]);
    return new TextDecoder('utf-8', {ignoreBOM: true}).decode(Uint8Array.from(bytes));
  }

  /** Each token as a string to show: its text, or its bytes in hexadecimal where they are part of a character. */
  pieces(ids) {
    return Array.from(ids, (id) => {
      const bytes = this.bytes(id);
      try {
        return new TextDecoder('utf-8', {fatal: true, ignoreBOM: true}).decode(bytes);
      } catch {
        return `<${Array.from(bytes, (byte) => byte.toString(16).toUpperCase().padStart(2, '0')).join(' ')}>`;
      }
    });
  }
}
