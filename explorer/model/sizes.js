// Parameters, cache and FLOPs of any config, by arithmetic alone (chapters 02, 03 and 06).
//
// Letters: D width, H heads, K content, R rotary, U value, C latent, E experts, F expert hidden.

import {isMoeLayer} from './config.js';

function attentionParameters(c) {
  const D = c.hidden_size, H = c.num_attention_heads, K = c.qk_nope_head_dim, R = c.qk_rope_head_dim;
  const U = c.v_head_dim, C = c.kv_lora_rank, low = c.q_lora_rank;
  const queries = low == null ? D * H * (K + R) : D * low + low + low * H * (K + R);
  return queries + D * (C + R) + C + C * H * (K + U) + H * U * D;
}

/** Count one layer by its parts; `used` experts of all. */
function layerParts(c, layer, used) {
  const D = c.hidden_size, network = (width) => 3 * D * width, expert = network(c.moe_intermediate_size);
  const parts = {attention: attentionParameters(c), norms: 2 * D};
  if (!isMoeLayer(c, layer)) return {...parts, dense: network(c.intermediate_size)};
  const bias = c.scoring_func === 'sigmoid' ? c.n_routed_experts : 0;
  return {
    ...parts,
    routedExperts: used * expert,
    sharedExperts: (c.n_shared_experts ?? 0) * expert,
    routers: c.n_routed_experts * D + bias,
  };
}

/** Sum the parts of layers from..to. */
function sumLayers(c, from, to, used) {
  const sum = {attention: 0, dense: 0, routedExperts: 0, sharedExperts: 0, routers: 0, norms: 0};
  for (let layer = from; layer < to; layer++) {
    for (const [name, count] of Object.entries(layerParts(c, layer, used))) sum[name] += count;
  }
  return sum;
}

const total = (parts) => Object.values(parts).reduce((a, b) => a + b, 0);

/**
 * Count what a config stores, what one token uses, what it caches and computes.
 *
 * context: tokens that a decoded token sees; cacheBytes: bytes of one cached value (2 for BF16).
 * Returns parameters and active (of the main model: what is stored, and what one token uses, embedding and head
 * included) with their parts, mtp (of the modules), the bytes that a token caches over all layers as MLA and as others
 * would, and the FLOPs of one decoded token in the absorbed form.
 */
export function sizes(config, {context = 4096, cacheBytes = 2} = {}) {
  const c = config, D = c.hidden_size, L = c.num_hidden_layers, M = c.num_nextn_predict_layers;
  const H = c.num_attention_heads, C = c.kv_lora_rank, R = c.qk_rope_head_dim;
  const pair = c.qk_nope_head_dim + c.v_head_dim; // a key and a value of one head, without rope
  const matrix = c.vocab_size * D, ends = {embedding: matrix, head: c.tie_word_embeddings ? 0 : matrix};
  const count = (used) => {
    const parts = {...ends, ...sumLayers(c, 0, L, used)};
    return {...parts, norms: parts.norms + D};
  };
  const module = 3 * D + 2 * D * D; // enorm, hnorm, shared_head.norm, eh_proj
  const parts = count(c.n_routed_experts), activeParts = count(c.num_experts_per_tok), active = total(activeParts);
  const weights = active - ends.head; // an embedding is looked up; a tied one is multiplied, as the head
  const groups = Math.min(8, Math.max(1, H >> 1));
  return {
    parameters: total(parts),
    active,
    mtp: M * module + total(sumLayers(c, L, L + M, c.n_routed_experts)),
    parts,
    activeParts,
    cacheBytesPerToken: L * (C + R) * cacheBytes,
    mhaBytesPerToken: L * H * pair * cacheBytes,
    gqaGroups: groups,
    gqaBytesPerToken: L * groups * pair * cacheBytes,
    mqaBytesPerToken: L * pair * cacheBytes,
    flopsPerToken: 2 * weights + 2 * L * H * (C + R + C) * context,
    attentionFlopsPerToken: 2 * L * H * (C + R + C) * context,
  };
}
