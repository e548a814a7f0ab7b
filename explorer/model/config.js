// The shape of a model: the keys of the released config.json, with the defaults of DeepSeek-V3's class.

const DEFAULTS = {
  q_lora_rank: null, moe_intermediate_size: 0, n_routed_experts: null, n_shared_experts: 1, num_experts_per_tok: 1,
  first_k_dense_replace: 0, n_group: 1, topk_group: 1, scoring_func: 'sigmoid', topk_method: 'noaux_tc',
  norm_topk_prob: true, routed_scaling_factor: 1, num_nextn_predict_layers: 0, max_position_embeddings: 4096,
  rope_theta: 10000, rope_scaling: null, rms_norm_eps: 1e-6, tie_word_embeddings: false,
  bos_token_id: 0, eos_token_id: 1, quantization_config: null,
};
const NEEDED = [
  'vocab_size', 'hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads', 'kv_lora_rank',
  'qk_nope_head_dim', 'qk_rope_head_dim', 'v_head_dim',
];

/** Check and complete the keys of a config.json; Transformers 5 writes `rope_parameters` for `rope_scaling`. */
export function readConfig(values) {
  const config = {...DEFAULTS, ...values};
  const missing = NEEDED.find((key) => !(config[key] >= 1));
  if (missing) throw new Error(`config.json is none of a DeepSeek-V3 or V2 model: ${missing} is ${config[missing]}`);
  const rope = values.rope_parameters;
  if (rope && !values.rope_scaling) {
    config.rope_theta = rope.rope_theta ?? config.rope_theta;
    config.rope_scaling = (rope.rope_type ?? rope.type ?? 'default') === 'default' ? null : rope;
  }
  const kind = config.rope_scaling && (config.rope_scaling.rope_type ?? config.rope_scaling.type ?? 'yarn');
  if (kind && kind !== 'yarn') throw new Error(`rope_scaling of type ${kind} is not known here; yarn is`);
  return config;
}

/** Whether a layer has routed experts; the layers from `num_hidden_layers` on are the MTP modules. */
export const isMoeLayer = (config, layer) =>
  config.n_routed_experts != null && layer >= config.first_k_dense_replace;

/** Every token that ends a text. */
export const endTokens = ({eos_token_id: end}) => (end == null ? [] : [end].flat());
