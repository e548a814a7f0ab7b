// Ids of many strings, and what comes back.

import {readFileSync} from 'node:fs';
import {Tokenizer} from '../../explorer/model/tokenizer.js';
import {answer, readJob} from './talk.mjs';

const job = readJob(), results = [];
for (const file of job.files) {
  const tokenizer = new Tokenizer(JSON.parse(readFileSync(file, 'utf8')));
  results.push(job.texts.map((text) => {
    const ids = tokenizer.encode(text), special = tokenizer.encode(text, {special: true});
    return {ids, special, back: tokenizer.decode(ids), shown: tokenizer.decode(special, {skipSpecial: false}),
      pieces: tokenizer.pieces(ids).length};
  }));
}
const refused = job.refused.map((description) => {
  try {
    return new Tokenizer(description).size;
  } catch (error) {
    return error.message;
  }
});
answer({results, refused});
