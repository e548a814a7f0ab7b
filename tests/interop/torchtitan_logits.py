"""Logits of every head by torchtitan on the CPU, in float32: torchtitan_logits.py [--normed] FOLDER '[1, 2, 3]'.

Prints one JSON array: the main model's logits at every position, then those of each MTP depth. Config and weights come
from a checkpoint folder, the weights through torchtitan's own table of released names. Three things are set so that
float32 on a CPU can be compared, and none of them is the model's mathematics:

- attention by `scaled_dot_product_attention`, which torchtitan has, instead of a compiled kernel;
- experts in float32: torchtitan casts them to bfloat16;
- its kernels for expert parallelism, which import Triton, are left out.

With `--normed`, the last layer's output passes the final norm before the MTP modules see it, as in the serving engines;
torchtitan itself hands on the state before that norm.
"""

import json
import sys
from pathlib import Path
from unittest.mock import MagicMock

import torch
from safetensors.torch import load_file
from torch.nn.functional import grouped_mm

sys.modules["torchtitan.distributed.minimal_async_ep"] = MagicMock()

from torchtitan.models import deepseek_v3 as titan  # noqa: E402
from torchtitan.models.common.attention import ScaledDotProductAttention  # noqa: E402
from torchtitan.models.common.moe import GroupedExperts  # noqa: E402
from torchtitan.models.common.rope import ComplexRoPE  # noqa: E402


def build_config(c: dict) -> titan.DeepSeekV3Model.Config:
    """Return torchtitan's config of a config.json."""
    dim, vocab_size, groups = c["hidden_size"], c["vocab_size"], c["n_group"] > 1
    yarn = c.get("rope_scaling") or {}
    rope = ComplexRoPE.Config(dim=c["qk_rope_head_dim"], max_seq_len=256, theta=c["rope_theta"])
    if yarn:
        rope.scaling, rope.rope_factor = "yarn", float(yarn["factor"])
        rope.beta_fast, rope.beta_slow = yarn["beta_fast"], yarn["beta_slow"]
        rope.original_seq_len = yarn["original_max_position_embeddings"]
    layers = titan.build_mla_moe_layers(
        n_layers=c["num_hidden_layers"],
        n_dense_layers=c["first_k_dense_replace"],
        dim=dim,
        n_heads=c["num_attention_heads"],
        q_lora_rank=c["q_lora_rank"] or 0,
        kv_lora_rank=c["kv_lora_rank"],
        qk_nope_head_dim=c["qk_nope_head_dim"],
        qk_rope_head_dim=c["qk_rope_head_dim"],
        v_head_dim=c["v_head_dim"],
        mscale=yarn.get("mscale_all_dim", 1.0),
        dense_hidden_dim=c["intermediate_size"],
        moe_hidden_dim=c["moe_intermediate_size"],
        num_experts=c["n_routed_experts"],
        num_shared_experts=c["n_shared_experts"],
        router_top_k=c["num_experts_per_tok"],
        router_score_func=c["scoring_func"],
        router_num_expert_groups=c["n_group"] if groups else None,
        router_num_limited_groups=c["topk_group"] if groups else None,
        router_route_scale=c["routed_scaling_factor"],
        router_route_norm=c["norm_topk_prob"],
        attn_backend="flex",
        moe_comm_backend="standard",
        non_blocking_capacity_factor=None,
        linear_init={},
        norm_init={},
        depth_init=lambda layer: {},
        depth_experts_init=lambda layer: {},
        rope=rope,
    )
    for layer in layers:
        layer.attention.inner_attention = ScaledDotProductAttention.Config()
        if layer.moe and c["topk_method"] != "noaux_tc":
            layer.moe.load_balance_coeff = None  # no selection bias
    depths = c["num_nextn_predict_layers"]
    return titan.DeepSeekV3Model.Config(
        dim=dim,
        vocab_size=vocab_size,
        tok_embeddings=titan.Embedding.Config(num_embeddings=vocab_size, embedding_dim=dim),
        norm=titan.RMSNorm.Config(normalized_shape=dim),
        lm_head=titan.Linear.Config(in_features=dim, out_features=vocab_size),
        layers=layers,
        mtp_layers=titan._build_mtp_layers(layers[-1], dim=dim, num_mtp_layers=depths),
    )


def load_model(folder: Path) -> titan.DeepSeekV3Model:
    """Build the model of a checkpoint folder and read its weights."""
    config = json.loads((folder / "config.json").read_text())
    built = build_config(config)
    model = built.build()
    for module in model.modules():
        if isinstance(module, torch.nn.RMSNorm):
            module.eps = config["rms_norm_eps"]  # its builders leave 1e-5
    tensors: dict[str, torch.Tensor] = {}
    for shard in folder.glob("model*.safetensors"):
        tensors |= load_file(shard)
    copies = (".embed_tokens.weight", ".shared_head.head.weight")  # of an MTP layer; torchtitan shares the main model's
    tensors = {name: value for name, value in tensors.items() if "layers" not in name or not name.endswith(copies)}
    named = titan.DeepSeekV3StateDictAdapter(built, None).from_hf(tensors)
    model.load_state_dict(named, strict=True)
    return model.eval()


def run_experts_in_float32(experts: GroupedExperts, x_RD: torch.Tensor, load_E: torch.Tensor) -> torch.Tensor:
    """torchtitan's GroupedExperts.forward without its casts to bfloat16."""
    ends_E = load_E.cumsum(0, dtype=torch.int32)
    gate_RF, up_RF = (grouped_mm(x_RD, w.transpose(-2, -1), offs=ends_E) for w in (experts.w1_EFD, experts.w3_EFD))
    return grouped_mm(torch.nn.functional.silu(gate_RF) * up_RF, experts.w2_EDF.transpose(-2, -1), offs=ends_E)


def hand_on_normed(model: titan.DeepSeekV3Model) -> None:
    """Move the final norm to the end of the last layer, so that the MTP modules get its output too."""
    norm, last = model.norm, model.layers[str(len(model.layers) - 1)]
    last.register_forward_hook(lambda layer, inputs, output: norm(output))
    model.norm = None


if __name__ == "__main__":
    GroupedExperts.forward = run_experts_in_float32
    *flags, folder, tokens = sys.argv[1:]
    model = load_model(Path(folder))
    if "--normed" in flags:
        hand_on_normed(model)
    with torch.no_grad():
        print(json.dumps([logits[0].tolist() for logits in model(torch.tensor([json.loads(tokens)]))]))
