// The whole model: embedding, blocks, final norm, head, and the multi-token prediction modules (chapters 04 and 06).
//
//   x += attention(norm(x))        x += feed_forward(norm(x))        logits = head(norm(x))
//   module k: h' = eh_proj [enorm(Emb(t_{i+k})) ; hnorm(h_i)]        h = norm(block(h'))        logits = head(h)
//
// The released weights put the embedding first, and a module is handed the hidden state after the norm. A pass over
// tokens reads and extends a list of latent caches, one a layer; the modules are further layers of the list.
//
// Source: arXiv:2412.19437, Figures 2 and 3, Eqs. (21) to (25).

import {attend, emptyCache, takeAttention} from './attention.js';
import {feedForward, takeFeedForward} from './experts.js';
import {fp8Linear} from './fp8.js';
import {addRows, project, rmsNorm} from './numbers.js';
import {ropeFrequencies, ropeMagnitude, softmaxScale} from './rope.js';
import {Writer} from './writer.js';

function takeBlock(take, config, layer) {
  const within = (part) => (name) => take(`model.layers.${layer}.${part}${name}`);
  return {
    inputNorm: within('')('input_layernorm.weight').values,
    attention: takeAttention(within('self_attn.'), config),
    afterNorm: within('')('post_attention_layernorm.weight').values,
    feedForward: takeFeedForward(within('mlp.'), config, layer),
  };
}

function takeModule(take, config, layer) {
  const own = (name) => take(`model.layers.${layer}.${name}.weight`);
  return {
    enorm: own('enorm').values, hnorm: own('hnorm').values, joint: own('eh_proj'),
    norm: own('shared_head.norm').values, block: takeBlock(take, config, layer), layer,
  };
}

/** The widths and constants that attention needs, once for all layers. */
function shapeOf(config) {
  return {
    heads: Array.from({length: config.num_attention_heads}, (_, h) => h),
    K: config.qk_nope_head_dim, R: config.qk_rope_head_dim, U: config.v_head_dim, C: config.kv_lora_rank,
    scale: softmaxScale(config),
    rope: {frequencies: ropeFrequencies(config), magnitude: ropeMagnitude(config)},
  };
}

export class Model {
  /** take: gives a tensor by its released name. */
  constructor(config, take, tokenizer) {
    const layers = config.num_hidden_layers;
    Object.assign(this, {config, tokenizer, shape: shapeOf(config)});
    this.embedding = take('model.embed_tokens.weight');
    this.layers = Array.from({length: layers}, (_, i) => takeBlock(take, config, i));
    this.norm = take('model.norm.weight').values;
    this.head = config.tie_word_embeddings ? this.embedding : take('lm_head.weight');
    const modules = {length: config.num_nextn_predict_layers};
    this.modules = Array.from(modules, (_, k) => takeModule(take, config, layers + k));
  }

  emptyCaches() { return [...this.layers, ...this.modules].map(emptyCache); }

  /** Rows of the embedding. */
  embed(ids) {
    const {values, rows, columns} = this.embedding, wrong = ids.find((id) => !(id >= 0 && id < rows));
    if (wrong !== undefined) throw new Error(`token ${wrong} is not below vocab_size=${rows}`);
    return Array.from(ids, (id) => values.slice(id * columns, (id + 1) * columns));
  }

  /** Apply one block to rows; `seen` is filled with what lies between its parts. */
  #applyBlock(block, layer, input, cache, how) {
    const {linear = project, absorbed = false, bias = {}, outlier = null, seen = null} = how;
    const {config, shape} = this, eps = config.rms_norm_eps;
    const attention = seen && {}, routing = seen && {};
    const normed = input.map((x) => rmsNorm(x, block.inputNorm, eps));
    if (outlier?.layer === layer) normed[outlier.token][outlier.channel] = outlier.value;
    const attentionOut = attend(block.attention, normed, cache, shape, {linear, absorbed, seen: attention});
    const afterAttention = addRows(input, attentionOut);
    const normedAfter = afterAttention.map((x) => rmsNorm(x, block.afterNorm, eps));
    const mlpOut = feedForward(block.feedForward, normedAfter, config, {linear, bias: bias[layer], seen: routing});
    const output = addRows(afterAttention, mlpOut);
    if (seen) {
      Object.assign(seen, {input, normed, attentionOut, afterAttention, normedAfter, mlpOut, output, attention});
      seen.routing = block.feedForward.dense ? null : routing;
    }
    return output;
  }

  /** Final-normed hidden states of tokens behind those in the caches: what the head reads, and the first module. */
  hiddenStates(ids, caches, how = {}) {
    let rows = this.embed(ids);
    if (how.trace) Object.assign(how.trace, {ids: [...ids], embed: rows, layers: []});
    this.layers.forEach((block, i) => {
      const seen = how.trace && {};
      rows = this.#applyBlock(block, i, rows, caches[i], {...how, seen});
      if (seen) how.trace.layers.push(seen);
    });
    const final = rows.map((x) => rmsNorm(x, this.norm, this.config.rms_norm_eps));
    if (how.trace) how.trace.final = final;
    return final;
  }

  /** Run one module over hidden states of the depth below and the tokens that go with them. */
  moduleStates(depth, hidden, ids, caches, how = {}) {
    const {enorm, hnorm, joint, norm, block, layer} = this.modules[depth], eps = this.config.rms_norm_eps;
    const joined = this.embed(ids).map((x, i) => {
      const pair = new Float32Array(joint.columns);
      pair.set(rmsNorm(x, enorm, eps));
      pair.set(rmsNorm(hidden[i], hnorm, eps), x.length); // V3 Eq. (21), in the order of the released weights
      return pair;
    });
    const rows = this.#applyBlock(block, layer, project(joint, joined), caches[layer], how);
    return rows.map((x) => rmsNorm(x, norm, eps));
  }

  /** Logits of normed hidden states. */
  logits(rows) { return project(this.head, rows); }

  /** Logits of a hidden state from between the layers, as if it were the last. */
  lens(hidden) { return this.logits([rmsNorm(hidden, this.norm, this.config.rms_norm_eps)])[0]; }

  /**
   * Read a text at once, in the expanded form.
   *
   * options: trace, also return what lies between; ahead, also the logits of the modules, [depth][rows], row i for
   * token i + 2 + depth; absorbed, take the other form; bias, by layer instead of the learned one; fp8, as in fp8.js;
   * outlier, {layer, token, channel, value} put into what that layer's attention reads.
   */
  read(ids, {trace = false, ahead = false, absorbed = false, bias = {}, fp8 = null, outlier = null} = {}) {
    const how = {absorbed, bias, outlier, linear: fp8 ? fp8Linear(fp8) : project}, caches = this.emptyCaches();
    const told = trace ? {} : null;
    let hidden = this.hiddenStates(ids, caches, {...how, trace: told});
    const result = {logits: this.logits(hidden), trace: told};
    if (ahead) {
      result.ahead = this.modules.map((_, depth) => {
        const tokens = ids.slice(depth + 1);
        hidden = this.moduleStates(depth, hidden.slice(0, tokens.length), tokens, caches, how);
        return this.logits(hidden);
      });
    }
    return result;
  }

  /** Continue a text token by token: see writer.js. */
  writer(ids, options) { return new Writer(this, ids, options); }
}
