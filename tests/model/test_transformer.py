"""The whole model: causal, relative, with MTP modules that read the right token and are all used."""

import math

import pytest
import torch
from torch.nn import functional as F

from deepseek_v3.config import ModelConfig
from deepseek_v3.model.rope import mscale, rope_frequencies, rotation_at, softmax_scale
from deepseek_v3.model.transformer import DeepseekV3
from tests.tiny import tiny_config

TINY = tiny_config(num_nextn_predict_layers=2)


@pytest.fixture
def model():
    torch.manual_seed(6)
    return DeepseekV3(TINY)


@torch.no_grad()
def test_a_token_changes_only_what_comes_after(model):
    tokens = torch.randint(0, 53, (2, 31))
    changed = tokens.clone()
    changed[:, 17] = (changed[:, 17] + 1) % 53
    before, after = model(tokens), model(changed)
    assert torch.allclose(before[:, :17], after[:, :17], atol=1e-5)
    assert not torch.allclose(before[:, 17:], after[:, 17:], atol=1e-3)


@torch.no_grad()
def test_shifting_every_position_changes_nothing(model):
    tokens = torch.randint(0, 53, (1, 19))
    want = model(tokens)
    place = model.place_tokens
    model.place_tokens = lambda count, *_: (rotation_at(torch.arange(1000, 1000 + count), model.frequency_R), None)
    assert torch.allclose(model(tokens), want, atol=1e-5)
    model.place_tokens = lambda count, *_: (rotation_at(2 * torch.arange(count), model.frequency_R), None)
    assert not torch.allclose(model(tokens), want, atol=1e-3)
    model.place_tokens = place


def test_the_rope_key_is_one_for_all_heads():
    attention = DeepseekV3(TINY).layers[0].self_attn
    assert attention.kv_a_proj_with_mqa.weight.shape == (22 + 10, 38)


@torch.no_grad()
def test_row_i_of_depth_k_reads_token_i_plus_k_and_nothing_later(model):
    tokens = torch.randint(0, 53, (1, 23))
    _, before = model(tokens, mtp=True)
    changed = tokens.clone()
    changed[0, 11] = (changed[0, 11] + 1) % 53
    _, after = model(changed, mtp=True)
    for k, (a, b) in enumerate(zip(before, after), 1):
        rows = ((a - b).abs() > 1e-4).any(-1)[0].nonzero().flatten()  # another load rounds differently
        assert rows[0] == 11 - k, f"depth {k} first notices token 11 in row {rows[0]}"


def test_every_mtp_parameter_has_a_gradient_and_the_loss_tells_the_input_token(model):
    tokens = torch.randint(0, 53, (2, 29))
    _, depths = model(tokens, mtp=True)
    loss = sum(
        F.cross_entropy(d[:, : -1 - k].flatten(0, 1), tokens[:, 1 + k :].flatten()) for k, d in enumerate(depths, 1)
    )
    loss.backward()
    idle = [n for n, p in model.mtp.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not idle


def test_the_embedding_comes_first_in_eh_proj(model):
    """With the embedding's columns of eh_proj at zero, the input token must not matter (the released order)."""
    tokens = torch.randint(0, 53, (1, 7))
    hidden = torch.randn(1, 7, 38)
    rotation, _ = model.place_tokens(7, None)
    module = model.mtp[0]
    with torch.no_grad():
        module.eh_proj.weight[:, :38] = 0
        a = module(hidden, model.embed_tokens(tokens), rotation)
        b = module(hidden, model.embed_tokens((tokens + 1) % 53), rotation)
    assert torch.equal(a, b)


def test_mtp_shares_embedding_and_head(model):
    names = [n for n, _ in model.named_parameters()]
    assert not [n for n in names if n.startswith("mtp.") and ("embed" in n or "lm_head" in n or "head.head" in n)]


def test_golden_yarn_frequencies_and_scale():
    v3 = ModelConfig.preset("v3-671b")
    frequency = rope_frequencies(v3)
    golden = {10: 5.62341325e-2, 11: 3.90069266e-2, 16: 5.5e-3, 22: 1.77827941e-4, 23: 3.33380358e-5, 31: 3.33380358e-6}
    for pair, want in golden.items():
        assert frequency[pair].item() == pytest.approx(want, rel=1e-8)
    assert softmax_scale(v3) == pytest.approx(0.1352338, rel=1e-6)
    assert softmax_scale(ModelConfig.preset("v2-lite-16b")) == pytest.approx(0.1147214, rel=1e-6)
    assert softmax_scale(v3.replace(rope_scaling=None)) == pytest.approx(192**-0.5)
    assert mscale(40, 1.0) == pytest.approx(0.1 * math.log(40) + 1)


def test_far_positions_stay_exact_when_the_model_is_cast():
    model = DeepseekV3(TINY).to(torch.bfloat16)
    assert model.frequency_R.dtype == torch.float64
    cos = rotation_at(torch.tensor([160_000]), model.frequency_R).cos[0]
    want = torch.tensor([math.cos(160_000 * 10000 ** (-i / 5)) for i in range(5)])
    assert torch.allclose(cos, want, atol=1e-6)


@torch.no_grad()
def test_bfloat16_stays_near_float32(model):
    tokens = torch.randint(0, 53, (2, 17))
    want = model(tokens)
    got = model.to(torch.bfloat16)(tokens).float()
    assert (got - want).abs().mean() / want.abs().mean() < 0.1


@pytest.mark.parametrize("tokens", [torch.zeros(3, dtype=torch.long), torch.zeros(1, 0, dtype=torch.long)])
def test_tokens_of_the_wrong_shape_are_refused(model, tokens):
    with pytest.raises(ValueError, match=r"must be \[B, S\]"):
        model(tokens)


@torch.no_grad()
def test_tied_embeddings_share_one_matrix():
    model = DeepseekV3(TINY.replace(tie_word_embeddings=True))
    assert model.lm_head.weight is model.embed_tokens.weight


@torch.no_grad()
def test_v2_lite_runs_without_query_low_rank_and_without_bias():
    config = ModelConfig.preset("v2-lite-16b").replace(
        vocab_size=53, hidden_size=40, intermediate_size=56, moe_intermediate_size=24, num_hidden_layers=2,
        kv_lora_rank=20, num_attention_heads=3, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=10,
        n_routed_experts=8,
        bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    assert DeepseekV3(config)(torch.arange(10)[None]).shape == (1, 10, 53)
