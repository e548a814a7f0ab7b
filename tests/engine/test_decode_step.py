"""The decoding step is the model: logits, hidden states, cache and expert choices, in every form."""

import copy

import pytest
import torch

from deepseek_v3.config import ModelConfig
from deepseek_v3.engine import native_step
from deepseek_v3.engine.decode_step import SERVES_UP_TO, DecodeStep
from deepseek_v3.engine.generate import generate
from deepseek_v3.model.cache import LatentCache
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.native.build import have_kernels
from deepseek_v3.native.decode_layout import CallAddresses, LayerAddresses, ModelSizes, StackAddresses
from tests.tiny import SIZES, predict

YARN = {"type": "yarn", "factor": 40.0, "original_max_position_embeddings": 32, "mscale": 1.0, "mscale_all_dim": 0.7}
V2 = {
    "model_type": "deepseek_v2", "scoring_func": "softmax", "topk_method": "group_limited_greedy",
    "norm_topk_prob": False,
}  # fmt: skip
OPTIONS = {
    "v3": {},
    "yarn": {"rope_scaling": YARN},
    "plain query": {"q_lora_rank": None},
    "dense": {"n_routed_experts": None},
    "no shared expert": {"n_shared_experts": None},
    "v2": V2,
    "v2 without groups": {**V2, "topk_method": "greedy"},
    "one group": {"n_group": 1, "topk_group": 1, "num_experts_per_tok": 7},
    "narrow": {"hidden_size": 7, "kv_lora_rank": 5, "qk_nope_head_dim": 3, "v_head_dim": 3, "q_lora_rank": 2},
    "wide": {"hidden_size": 131, "kv_lora_rank": 101, "qk_nope_head_dim": 67, "v_head_dim": 71},
    "tied": {"tie_word_embeddings": True},
}
TOLERANCE = 1e-5


needs_kernels = pytest.mark.skipif(not have_kernels(), reason="no C++ compiler here")


def make_model(changes: dict, seed: int = 4) -> DeepseekV3:
    torch.manual_seed(seed)
    model = DeepseekV3(ModelConfig(**{**SIZES, "num_nextn_predict_layers": 2, **changes}))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.normal_(1, 0.3)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.normal_(0, 0.2)
    return model


def differences(model: DeepseekV3, step: DecodeStep, counts: list[int], lengths: list[int]) -> float:
    """Largest difference in logits, hidden states and cache while both read the same tokens."""
    longest, worst = max(lengths), 0.0
    ours, theirs = (LatentCache.dense(model.config, len(lengths), longest + sum(counts)) for _ in range(2))
    prompt = torch.randint(0, 53, (len(lengths), longest))
    with torch.no_grad():
        for cache in (ours, theirs):
            model(prompt, cache=cache)
            cache.truncate(lengths)
        for count in counts:
            tokens = torch.randint(0, 53, (len(lengths), count))
            hidden, logits = step(tokens, ours)
            want = model.hidden_states(tokens, cache=theirs)
            worst = max(worst, float((hidden - want).abs().max()), float((logits - model.lm_head(want)).abs().max()))
    assert ours.lengths == theirs.lengths
    return max(worst, float((ours.store.latent_LPTW - theirs.store.latent_LPTW).abs().max()))


@pytest.mark.parametrize("changes", OPTIONS.values(), ids=OPTIONS)
def test_the_step_equals_the_model(changes, form):
    model = make_model(changes)
    step = DecodeStep(model)
    assert step.native.ready == (form == "native")
    assert differences(model, step, [1, 1, 3, 1, 5, 8], [13]) <= TOLERANCE
    assert differences(model, step, [1, 2, 1, 1], [13, 13]) <= TOLERANCE
    assert differences(model, step, [1, 3, 1], [13, 2, 7]) <= TOLERANCE
    assert differences(model, step, [1, 2, 2], [41, 2, 7, 1, 17, 3, 23, 11]) <= TOLERANCE


def test_the_latent_norms_have_their_own_eps(form):
    """1e-6, whatever the config says."""
    model = make_model({"rms_norm_eps": 0.1})
    assert differences(model, DecodeStep(model), [1, 3], [7]) <= TOLERANCE


def test_a_module_of_the_step_equals_the_model(form):
    model = make_model({})
    step, cache = DecodeStep(model), LatentCache.dense(model.config, 1, 19, layers=1)
    hidden, embedding = torch.randn(1, 19, 38), torch.randint(0, 53, (1, 19))
    with torch.no_grad():
        rotation, _ = model.place_tokens(19, None)
        want = model.mtp[1](hidden, model.embed_tokens(embedding), rotation)
        parts = [predict(step, 1, hidden[:, a:b], embedding[:, a:b], cache) for a, b in ((0, 7), (7, 8), (8, 19))]
        assert (torch.cat([p[0] for p in parts], 1) - want).abs().max() <= TOLERANCE
        assert (parts[-1][1] - model.lm_head(want[:, -1])).abs().max() <= TOLERANCE


def test_a_module_reads_a_batch(form):
    model = make_model({"num_nextn_predict_layers": 1})
    step, cache = DecodeStep(model), LatentCache.dense(model.config, 3, 5, layers=1)
    hidden, embedding = torch.randn(3, 5, 38), torch.randint(0, 53, (3, 5))
    with torch.no_grad():
        want = model.mtp[0](hidden, model.embed_tokens(embedding), model.place_tokens(5, None)[0])
        ours, logits = predict(step, 0, hidden, embedding, cache)
        assert (ours - want).abs().max() <= TOLERANCE
        assert (logits - model.lm_head(want[:, -1])).abs().max() <= TOLERANCE


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_token_does_not_feel_who_shares_its_step_or_the_threads(dtype, monkeypatch):
    """Bit for bit: drafts that are verified together, other rows, any number of threads."""
    model, tokens = make_model({}).to(dtype), torch.randint(0, 53, (3, 5))
    step = DecodeStep(model)

    def read(rows: list[int], counts: list[int]) -> torch.Tensor:
        cache = LatentCache.dense(model.config, len(rows), 5, dtype=dtype)
        return torch.cat([step(part, cache)[1] for part in tokens[rows].split(counts, 1)], 1)

    monkeypatch.setattr(native_step, "threads_now", lambda _: 1)
    want = read([0, 1, 2], [5])
    monkeypatch.setattr(native_step, "threads_now", lambda _: 3)
    assert torch.equal(read([0, 1, 2], [1] * 5), want)
    for row in range(3):
        assert torch.equal(read([row], [1, 3, 1]), want[row : row + 1])


@needs_kernels
def test_greedy_drafts_give_the_tokens_of_plain_decoding_in_bfloat16_too():
    model = make_model({}).bfloat16()
    want = list(generate(model, [5, 7, 11], max_new_tokens=29, stop_tokens=()))
    assert list(generate(model, [5, 7, 11], max_new_tokens=29, stop_tokens=(), speculative=3)) == want


def test_the_step_follows_weights_that_change(form):
    model = make_model({})
    step = DecodeStep(model)
    assert differences(model, step, [1], [7]) <= TOLERANCE
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    step.refresh()
    assert differences(model, step, [1, 1], [7]) <= TOLERANCE
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.1  # elsewhere in memory
    step.refresh()
    assert differences(model, step, [1, 1], [7]) <= TOLERANCE


def test_a_model_that_is_dropped_is_freed_with_what_read_it(form):
    import gc
    import weakref

    model = make_model({})
    list(generate(model, [5], max_new_tokens=3))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_bfloat16_errs_no_more_than_the_model_does(form):
    model = make_model({"n_routed_experts": None})  # no routing: a flipped expert would say nothing about rounding
    half = model.bfloat16()
    exact = copy.deepcopy(half).double()
    tokens = torch.randint(0, 53, (1, 23))
    caches = [LatentCache.dense(model.config, 1, 23, dtype=torch.bfloat16) for _ in range(2)]
    step = DecodeStep(half)
    with torch.no_grad():
        want = exact(tokens)
        ours = torch.cat([step(token, caches[0])[1] for token in tokens.split(1, 1)], 1).double()
        theirs = torch.cat([half(token, cache=caches[1]) for token in tokens.split(1, 1)], 1).double()
    share = 0.9 if form == "native" else 1.0  # FP32 activations: what is left is the rounding of the cache
    assert (ours - want).norm() <= share * (theirs - want).norm()


@needs_kernels
@pytest.mark.parametrize("changes", [{}, OPTIONS["narrow"], OPTIONS["wide"], V2], ids=["v3", "narrow", "wide", "v2"])
def test_bfloat16_weights_are_read_as_the_same_numbers_in_float32(changes):
    half = make_model(changes).bfloat16()
    wide = copy.deepcopy(half).float()
    steps = [(model, DecodeStep(model), LatentCache.dense(model.config, 2, 17)) for model in (half, wide)]
    for count in (1, 4, 7):
        tokens = torch.randint(0, 53, (2, count))
        (hidden, logits), (wide_hidden, wide_logits) = (step(tokens, cache) for _, step, cache in steps)
        assert torch.equal(logits, wide_logits)
        assert torch.equal(hidden, wide_hidden.bfloat16())
    assert torch.equal(steps[0][2].store.latent_LPTW, steps[1][2].store.latent_LPTW)


@needs_kernels
@pytest.mark.parametrize("changes", [{}, OPTIONS["narrow"], OPTIONS["wide"], V2], ids=["v3", "narrow", "wide", "v2"])
def test_routers_in_float32_among_bfloat16_weights_are_read_as_they_are(changes):
    """What transformers 5 saves; each layer for itself: the last one has its router in BF16."""
    exact = make_model(changes)
    kept, half = exact.layers[1].mlp.gate.weight.detach().clone(), exact.bfloat16()
    half.layers[1].mlp.gate.weight.data = kept
    assert not torch.equal(kept, kept.bfloat16().float())
    wide, step = copy.deepcopy(half).float(), DecodeStep(half)
    assert step.native.ready
    ours, theirs = (LatentCache.dense(half.config, 2, 17) for _ in range(2))
    tokens = torch.randint(0, 53, (2, 12))
    found = [step(part, ours) for part in tokens.split([1, 4, 7], 1)]
    wanted = [DecodeStep(wide)(part, theirs) for part in tokens.split([1, 4, 7], 1)]
    assert all(torch.equal(a, b) and torch.equal(h, w.bfloat16()) for (h, a), (w, b) in zip(found, wanted))
    with torch.no_grad():
        assert (torch.cat([logits for _, logits in found], 1) - wide(tokens)).abs().max() <= TOLERANCE


@needs_kernels
def test_a_router_in_another_format_is_the_models_own_work():
    model = make_model({}).bfloat16()
    model.layers[1].mlp.gate.double()
    assert not DecodeStep(model).native.ready


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_cache_in_bfloat16_is_rounded_and_no_more(dtype):
    model = make_model({}).to(dtype)
    step, tokens = DecodeStep(model), torch.randint(0, 53, (2, 3))
    exact, half = LatentCache.dense(model.config, 2, 3), LatentCache.dense(model.config, 2, 3, dtype=torch.bfloat16)
    step(tokens, exact), step(tokens, half)
    # the first layer has read no cache yet
    assert torch.equal(half.store.latent_LPTW[0], exact.store.latent_LPTW[0].bfloat16())


def test_what_cannot_work_is_said(form):
    model = make_model({})
    step, cache = DecodeStep(model), LatentCache.dense(model.config, 1, 7)
    with pytest.raises(ValueError, match=r"0 cached \+ 8 new tokens exceed the cache's capacity of 7"):
        step(torch.zeros(1, 8, dtype=torch.long), cache)
    for token in (53, -1):
        with pytest.raises(IndexError):
            step(torch.tensor([[token]]), cache)


@needs_kernels
def test_what_the_kernel_does_not_serve_goes_through_the_model():
    model = make_model({})
    step = DecodeStep(model)
    assert differences(model, step, [SERVES_UP_TO + 1, 1], [7]) <= TOLERANCE
    cache = LatentCache.dense(model.config, 1, 7, dtype=torch.float64)
    assert not step.native.serves(cache)
    model.double()
    assert not DecodeStep(model).native.ready
    model.float().lm_head.weight.data = model.lm_head.weight.data.mT.contiguous().mT  # not by rows
    assert not DecodeStep(model).native.ready


def fields_of(struct: str) -> int:
    """How many numbers a structure of decode.hpp holds, each of eight bytes."""
    import re
    from pathlib import Path

    from deepseek_v3.native import build

    source = (Path(build.__file__).parent / "decode.hpp").read_text()
    block = re.sub(r"//.*", "", re.search(rf"struct {struct} {{(.*?)}};", source, re.S).group(1))
    return sum(line.count(",") + 1 for line in block.split(";") if line.strip())


def test_the_structures_are_those_of_the_kernel():
    pairs = {"Layer": LayerAddresses, "Model": ModelSizes, "Stack": StackAddresses, "Call": CallAddresses}
    for name, structure in pairs.items():
        assert len(structure._fields_) == fields_of(name)
