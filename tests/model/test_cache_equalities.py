"""Four ways to the same logits, FP32, to 1e-5: whole, cached, in chunks, in a padded batch; absorbed and expanded."""

import itertools

import pytest
import torch

import deepseek_v3.ops as ops
from deepseek_v3.config import ModelConfig
from deepseek_v3.model.cache import LatentCache
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.ops import choice
from tests.tiny import tiny_config

YARN = {
    "type": "yarn", "factor": 40.0, "original_max_position_embeddings": 32, "beta_fast": 32, "beta_slow": 1,
    "mscale": 1.0, "mscale_all_dim": 1.0,
}  # fmt: skip
# V3 in small, and V2-Lite in small: no query low-rank, softmax gate, no YaRN
CONFIGS = {
    "v3": tiny_config(rope_scaling=YARN),
    "v2-lite": ModelConfig.preset("demo").replace(
        vocab_size=53, hidden_size=40, intermediate_size=56, moe_intermediate_size=24, num_hidden_layers=3,
        num_attention_heads=5, q_lora_rank=None, kv_lora_rank=17, qk_nope_head_dim=11, qk_rope_head_dim=2,
        v_head_dim=13, initializer_range=0.1, n_routed_experts=7, n_group=1, topk_group=1, num_experts_per_tok=3,
        model_type="deepseek_v2", scoring_func="softmax", topk_method="greedy", norm_topk_prob=False,
        num_nextn_predict_layers=0,
    ),
}  # fmt: skip
TOLERANCE = 1e-5  # FP32 sums in another order


@pytest.fixture(params=CONFIGS, ids=str)
def model(request):
    torch.manual_seed(8)
    model = DeepseekV3(CONFIGS[request.param])
    for name, parameter in model.named_parameters():
        if "norm" in name:  # a norm of ones would hide a norm that is missing
            parameter.data.normal_(1, 0.3)
    return model


def tokens_of(batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, 53, (batch, length), generator=torch.Generator().manual_seed(length))


def in_chunks(model: DeepseekV3, tokens: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    cache = LatentCache.dense(model.config, tokens.shape[0], tokens.shape[1])
    logits = torch.cat([model(chunk, cache=cache) for chunk in tokens.split(sizes, 1)], 1)
    assert cache.lengths == [tokens.shape[1]] * tokens.shape[0]
    return logits


def chunk_sizes(total: int, size: int) -> list[int]:
    return [min(size, total - done) for done in range(0, total, size)]


@pytest.mark.parametrize("size", [1, 7, 64, 131])
@torch.no_grad()
def test_chunked_is_whole_and_cached_is_uncached(model, size):
    tokens = tokens_of(2, 131)
    difference = (in_chunks(model, tokens, chunk_sizes(131, size)) - model(tokens)).abs().max()
    assert difference <= TOLERANCE


@torch.no_grad()
def test_every_split_in_two_is_one_shot(model):
    tokens = tokens_of(1, 37)
    want = model(tokens)
    for first in range(1, 37):
        assert (in_chunks(model, tokens, [first, 37 - first]) - want).abs().max() <= TOLERANCE


@pytest.mark.parametrize("absorb_up_to", [0, 10**9], ids=["expanded", "absorbed"])
@torch.no_grad()
def test_absorbed_is_expanded(model, absorb_up_to, monkeypatch):
    tokens = tokens_of(2, 41)
    want = model(tokens)  # without a cache: always expanded
    monkeypatch.setattr(choice, "ABSORB_UP_TO", absorb_up_to)
    for sizes in ([41], [29, 12], [1] * 41):
        assert (in_chunks(model, tokens, sizes) - want).abs().max() <= TOLERANCE


@torch.no_grad()
def test_both_forms_are_plain_attention_over_joined_heads(model):
    """Scores of the joined key and query, one softmax, one scale; written out with no trick."""
    layer, config = model.layers[1].self_attn, model.config
    x = torch.randn(1, 11, model.config.hidden_size)
    rotation, _ = model.place_tokens(11, None)
    raw = layer.make_queries(x)
    content, rope = raw.split([config.qk_nope_head_dim, config.qk_rope_head_dim], -1)
    rope = ops.rotate_pairs(rope, rotation)
    latent = layer.make_latent(x, rotation)
    up = layer.kv_b_proj(latent[..., : config.kv_lora_rank]).unflatten(-1, (layer.heads, -1))
    want = torch.empty(1, 11, layer.heads, config.v_head_dim)
    scale = config.qk_head_dim**-0.5 * (
        1.0 if config.rope_scaling is None else (0.1 * torch.tensor(40.0).log() + 1) ** 2
    )
    for head, query in itertools.product(range(layer.heads), range(11)):
        q = torch.cat((content[0, query, head], rope[0, query, head]))
        keys = torch.cat(
            (up[0, : query + 1, head, : config.qk_nope_head_dim], latent[0, : query + 1, config.kv_lora_rank :]), -1
        )
        weight = (keys @ q * scale).softmax(0)
        want[0, query, head] = weight @ up[0, : query + 1, head, config.qk_nope_head_dim :]
    causal = torch.ones(11, 11, dtype=torch.bool).tril()
    assert (layer.attend_expanded(raw, rotation, latent, None) - want).abs().max() <= TOLERANCE
    assert (layer.attend_expanded(raw, rotation, latent, causal) - want).abs().max() <= TOLERANCE
    assert (layer.attend_absorbed(raw, rotation, latent, causal) - want).abs().max() <= TOLERANCE


@torch.no_grad()
def test_a_padded_batch_is_each_prompt_alone(model):
    lengths = [5, 31, 2, 17]
    prompts = [tokens_of(1, n) for n in lengths]
    padded = torch.full((4, 31), 7)
    for row, prompt in enumerate(prompts):
        padded[row, : lengths[row]] = prompt
    cache = LatentCache.dense(model.config, 4, 31 + 9)
    logits = model(padded, cache=cache)
    cache.truncate(lengths)
    further = tokens_of(4, 9)
    rest = torch.cat([model(step, cache=cache) for step in further.split([1, 1, 4, 3], 1)], 1)
    for row, (prompt, n) in enumerate(zip(prompts, lengths)):
        want = model(torch.cat((prompt, further[row : row + 1]), 1))[0]
        assert (logits[row, :n] - want[:n]).abs().max() <= TOLERANCE
        assert (rest[row] - want[n:]).abs().max() <= TOLERANCE


@torch.no_grad()
def test_with_a_cache_no_token_changes_what_came_before(model):
    tokens = tokens_of(1, 29)
    changed = tokens.clone()
    changed[0, 19] = (changed[0, 19] + 1) % 53
    for sizes in ([29], [11, 18], [17, 12]):  # the last one reads token 19 behind 17 and 18 in one absorbed step
        before, after = in_chunks(model, tokens, sizes), in_chunks(model, changed, sizes)
        assert (before[:, :19] - after[:, :19]).abs().max() <= TOLERANCE
        assert (before[:, 19:] - after[:, 19:]).abs().max() > 1e-3


@torch.no_grad()
def test_rejected_tokens_leave_no_trace(model):
    tokens, wrong = tokens_of(1, 23), tokens_of(1, 5)
    cache = LatentCache.dense(model.config, 1, 40)
    model(tokens[:, :13], cache=cache)
    model(wrong, cache=cache)
    cache.truncate([13])
    assert (model(tokens[:, 13:], cache=cache) - model(tokens)[:, 13:]).abs().max() <= TOLERANCE


def test_the_cache_is_the_latent_and_one_rope_key(model):
    cache = LatentCache.dense(model.config, 3, 11, dtype=torch.bfloat16)
    width = model.config.kv_lora_rank + model.config.qk_rope_head_dim
    assert cache.store.latent_LPTW.shape == (3, 3, 11, width)
    assert cache.store.bytes_per_token == 3 * width * 2 == cache.store.latent_LPTW.nbytes // (3 * 11)


def test_the_cache_refuses_what_does_not_fit(model):
    cache = LatentCache.dense(model.config, 1, 11)
    model(tokens_of(1, 7), cache=cache)
    with pytest.raises(ValueError, match="7 cached \\+ 5 new tokens exceed the cache's capacity of 11"):
        model(tokens_of(1, 5), cache=cache)
    with pytest.raises(ValueError, match="cannot truncate"):
        cache.truncate([8])
    with pytest.raises(ValueError, match="capacity=0"):
        LatentCache.dense(model.config, 1, 0)
