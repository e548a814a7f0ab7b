"""The decoding step is the model: logits, hidden states, cache and expert choices, in every form."""

import warnings

import pytest
import torch

from deepseek_v3.config import ModelConfig
from deepseek_v3.model.cache import LatentCache
from deepseek_v3.model.router import RoutingRecord
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.serving import fused_layer
from deepseek_v3.serving.decode_step import DecodeStep
from deepseek_v3.serving.generate import prepare_step

SIZES = {
    "vocab_size": 53, "hidden_size": 40, "intermediate_size": 56, "moe_intermediate_size": 24, "num_hidden_layers": 3,
    "num_attention_heads": 3, "kv_lora_rank": 20, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10,
    "initializer_range": 0.1, "num_nextn_predict_layers": 2,
}  # fmt: skip
YARN = {"type": "yarn", "factor": 40.0, "original_max_position_embeddings": 32, "mscale": 1.0, "mscale_all_dim": 0.7}
V2 = {"scoring_func": "softmax", "topk_method": "group_limited_greedy", "norm_topk_prob": False}
OPTIONS = {
    "v3": {},
    "yarn": {"rope_scaling": YARN},
    "plain query": {"q_lora_rank": None},
    "dense": {"n_routed_experts": None},
    "no shared expert": {"n_shared_experts": None},
    "v2": V2,
    "tied": {"tie_word_embeddings": True},
}
TOLERANCE = 1e-5


def make_model(changes: dict, seed: int = 4) -> DeepseekV3:
    torch.manual_seed(seed)
    model = DeepseekV3(ModelConfig.preset("demo").replace(**{**SIZES, "q_lora_rank": 28, **changes}))
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
    ours, theirs = (LatentCache(model.config, len(lengths), longest + sum(counts)) for _ in range(2))
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
    return max(worst, float((ours.latent_LBTW - theirs.latent_LBTW).abs().max()))


@pytest.mark.parametrize("changes", OPTIONS.values(), ids=OPTIONS)
def test_the_step_equals_the_model(changes):
    model = make_model(changes)
    step = DecodeStep(model)
    assert differences(model, step, [1, 1, 3, 1, 5], [13]) <= TOLERANCE
    assert differences(model, step, [1, 2, 1, 1], [13, 13]) <= TOLERANCE
    assert differences(model, step, [1, 3, 1], [13, 2, 7]) <= TOLERANCE
    assert differences(model, step, [1] * 3, [11] * 8) <= TOLERANCE


def test_a_module_of_the_step_equals_the_model():
    model = make_model({})
    step, cache = DecodeStep(model), LatentCache(model.config, 1, 19, layers=1)
    hidden, embedding = torch.randn(1, 19, 40), torch.randint(0, 53, (1, 19))
    with torch.no_grad():
        rotation, _ = model.place_tokens(19, None)
        want = model.mtp[1](hidden, model.embed_tokens(embedding), rotation)
        parts = [step.predict(1, hidden[:, a:b], embedding[:, a:b], cache) for a, b in ((0, 7), (7, 8), (8, 19))]
        assert (torch.cat([p[0] for p in parts], 1) - want).abs().max() <= TOLERANCE
        assert (parts[-1][1] - model.lm_head(want[:, -1])).abs().max() <= TOLERANCE


def test_the_step_chooses_the_experts_of_the_model(monkeypatch):
    model, chosen = make_model({}), []
    read = fused_layer.read_experts
    monkeypatch.setattr(
        fused_layer, "read_experts", lambda x, w, index, *e: chosen.append(index) or read(x, w, index, *e)
    )
    ours, theirs, record = LatentCache(model.config, 1, 20), LatentCache(model.config, 1, 20), RoutingRecord()
    step, tokens = DecodeStep(model), torch.randint(0, 53, (1, 20))
    with torch.no_grad():
        for token in tokens.split(1, 1):
            step(token, ours)
            model(token, cache=theirs, record=record)
    assert len(chosen) == len(record.choices) == 2 * 20
    for a, b in zip(chosen, record.choices):
        assert torch.equal(a.sort(-1).values, b.sort(-1).values)


def test_the_step_follows_weights_that_change_and_copies_only_what_it_says():
    model = make_model({})
    step = prepare_step(model)
    before = step.layers[1].down_ID.data_ptr()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    assert prepare_step(model) is step
    assert step.layers[1].down_ID.data_ptr() == before
    assert differences(model, step, [1, 1], [7]) <= TOLERANCE
    weight = model.layers[1].self_attn.kv_b_proj.weight
    assert step.layers[1].up_key_HKC.data_ptr() == weight.data_ptr()


def test_a_model_that_is_dropped_is_freed_with_its_step():
    import gc
    import weakref

    model = make_model({})
    prepare_step(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_bfloat16_errs_no_more_than_the_model_does():
    model = make_model({"n_routed_experts": None})  # no routing: a flipped expert would say nothing about rounding
    exact, half = make_model({"n_routed_experts": None}), model.bfloat16()
    tokens = torch.randint(0, 53, (1, 23))
    caches = [LatentCache(model.config, 1, 23, dtype=torch.bfloat16) for _ in range(2)]
    step = DecodeStep(half)
    with torch.no_grad():
        want = exact(tokens)
        ours = torch.cat([step(token, caches[0])[1] for token in tokens.split(1, 1)], 1).float()
        theirs = torch.cat([half(token, cache=caches[1]) for token in tokens.split(1, 1)], 1).float()
    assert (ours - want).norm() <= 1.2 * (theirs - want).norm()


@pytest.mark.parametrize("forms", [(1, 13), (2, 7, 13)], ids=["one row", "rows of different length"])
def test_the_form_that_is_compiled_equals_the_model(forms, monkeypatch):
    """The same arithmetic as the compiled graph, run by the interpreter."""
    model = make_model({})
    step = DecodeStep(model)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    step.compiled, step._graph = True, step._read_beside
    assert differences(model, step, [1, 3, 1], list(forms[1:])) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # what the compiler's own libraries warn about is not ours
def test_the_compiled_step_equals_the_model_and_compiles_once_for_every_length():
    model = make_model({"num_hidden_layers": 2})
    step = DecodeStep(model, compiled=True)
    torch._dynamo.utils.counters.clear()
    assert differences(model, step, [1] * 9 + [3, 3], [7]) <= TOLERANCE
    assert step.compiled
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # one token, three tokens


def test_without_a_compiler_it_says_so_and_goes_on():
    model = make_model({})
    step = DecodeStep(model)

    def no_compiler(*_):
        raise RuntimeError("No working C++ compiler found")

    step.compiled, step._graph = True, no_compiler
    with pytest.warns(RuntimeWarning, match=r"uncompiled: .*\(No working C\+\+ compiler found\); .* needs g\+\+"):
        assert differences(model, step, [1, 1], [7]) <= TOLERANCE
    assert not step.compiled
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert differences(model, step, [1], [7]) <= TOLERANCE
