"""The package against `DeepseekV3ForCausalLM` of transformers: logits and expert choices on 20 random configs."""

import random

import pytest
import torch

import deepseek_v3.ops as ops
from deepseek_v3.config import ModelConfig
from deepseek_v3.model.router import RoutingRecord
from deepseek_v3.model.transformer import DeepseekV3

transformers = pytest.importorskip("transformers")


def random_config(seed: int) -> ModelConfig:
    """Draw a small config; over the seeds every option is on and off several times."""
    draw = random.Random(seed)
    groups = draw.choice([1, 2, 4])
    kept = draw.randint(1, groups)
    per_group = draw.choice([3, 4, 5])
    yarn = {
        "type": "yarn",
        "factor": draw.choice([4.0, 40.0]),
        "original_max_position_embeddings": 32,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": draw.choice([0.707, 1.0]),
    }
    return ModelConfig(
        vocab_size=101,
        hidden_size=draw.choice([40, 56]),
        intermediate_size=72,
        moe_intermediate_size=24,
        num_hidden_layers=3,
        first_k_dense_replace=seed % 3,
        num_attention_heads=draw.choice([2, 3, 5]),
        q_lora_rank=None if seed % 4 == 3 else 28,
        kv_lora_rank=draw.choice([16, 20]),
        qk_nope_head_dim=draw.choice([8, 12]),
        qk_rope_head_dim=draw.choice([4, 8]),
        v_head_dim=draw.choice([6, 12, 24]),
        n_routed_experts=groups * per_group,
        n_shared_experts=draw.choice([1, 2]),
        num_experts_per_tok=draw.randint(1, min(4, kept * per_group)),
        n_group=groups,
        topk_group=kept,
        norm_topk_prob=bool(seed % 5),
        routed_scaling_factor=draw.choice([1.0, 2.5]),
        rope_scaling=yarn if seed % 2 else None,
        max_position_embeddings=256,
        initializer_range=0.08,
    )


def to_hugging_face(model: DeepseekV3):
    """Build the peer with the same weights; its tensors are named as ours, under `model.`."""
    config = model.config
    values = config.to_dict()
    hf_config = transformers.DeepseekV3Config(
        **{k: v for k, v in values.items() if k not in ("architectures", "torch_dtype")}
    )
    hf_config._attn_implementation = "eager"
    peer = transformers.DeepseekV3ForCausalLM(hf_config).eval()
    state = {
        k if k.startswith("lm_head") else f"model.{k}": v
        for k, v in model.state_dict().items()
        if not k.startswith("mtp.")
    }
    result = peer.load_state_dict(state, strict=False)
    assert not result.unexpected_keys
    assert all(".layers.3." in k or "mtp" in k for k in result.missing_keys), result.missing_keys
    return peer


def make_pair(seed: int):
    torch.manual_seed(seed)
    model = DeepseekV3(random_config(seed)).eval()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(0, 0.2)  # also negative biased scores, where a zero-filled mask would choose wrongly
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.normal_(1, 0.2)
    return model, to_hugging_face(model)


@pytest.mark.parametrize("kernels", ["1", "0"], ids=["own kernels", "PyTorch operations"])
@pytest.mark.parametrize("seed", range(20))
@torch.no_grad()
def test_logits_and_expert_choices_equal_hugging_face(seed, kernels, monkeypatch):
    monkeypatch.setenv("DEEPSEEK_V3_NATIVE", kernels)
    model, peer = make_pair(seed)
    tokens = torch.randint(0, 101, (2, 61))
    record, chosen = RoutingRecord(), []
    for layer in peer.model.layers:
        if hasattr(layer.mlp, "gate"):
            layer.mlp.gate.register_forward_hook(lambda _m, _i, out: chosen.append(out[2]))
    difference = (model(tokens, record=record) - peer(tokens).logits).abs().max()
    assert difference <= 1e-5
    assert len(record.choices) == len(chosen) > 0
    for ours, theirs in zip(record.choices.values(), chosen):
        assert torch.equal(ours.sort(-1).values, theirs.sort(-1).values)


@torch.no_grad()
def test_the_control_without_the_pair_permutation_differs(monkeypatch):
    """Half-split rotation on interleaved weights: the mistake that this comparison must be able to see."""

    def rotate_halves(x, rotation):
        cos, sin = rotation.cos.unsqueeze(-2), rotation.sin.unsqueeze(-2)
        a, b = x.chunk(2, -1)
        return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)

    model, peer = make_pair(0)
    tokens = torch.randint(0, 101, (2, 61))
    want = peer(tokens).logits
    assert (model(tokens) - want).abs().max() <= 1e-5
    monkeypatch.setattr(ops, "rotate_pairs", rotate_halves)
    assert (model(tokens) - want).abs().max() > 1e-3
