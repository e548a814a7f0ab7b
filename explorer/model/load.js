// Open a model: the door that the page uses.
//
//   const model = await loadModel(fetchFile)         fetchFile(name) -> ArrayBuffer, of a folder that `export` wrote

import {readConfig} from './config.js';
import {Model} from './model.js';
import {openTensors} from './safetensors.js';
import {Tokenizer} from './tokenizer.js';

/** Read config.json, tokenizer.json and the weights of a folder. */
export async function loadModel(fetchFile) {
  const readJson = async (name) => JSON.parse(new TextDecoder().decode(await fetchFile(name)));
  const config = readConfig(await readJson('config.json'));
  const take = await openTensors(fetchFile, config.quantization_config?.weight_block_size);
  return new Model(config, take, new Tokenizer(await readJson('tokenizer.json')));
}
