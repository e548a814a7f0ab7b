"""What many sequences draw in one go is what each would draw alone, to the last bit."""

import pytest
import torch

from deepseek_v3.engine import draws
from deepseek_v3.engine.engine import Engine
from deepseek_v3.engine.request import EngineOptions, Request
from deepseek_v3.engine.sampler import SamplingRule
from deepseek_v3.model.transformer import DeepseekV3
from tests.tiny import tiny_config

RULES = [SamplingRule(), SamplingRule(0.7), SamplingRule(1.3, top_k=11), SamplingRule(1.0, top_p=0.8, min_p=0.02)]


def make_model(modules: int) -> DeepseekV3:
    torch.manual_seed(5)
    sizes = {"vocab_size": 29, "num_hidden_layers": 2, "num_nextn_predict_layers": modules, "initializer_range": 0.2}
    return DeepseekV3(tiny_config(**sizes))


def write(model, *, trace: bool) -> list:
    """Four rules, three sequences each; the last of a rule drafts and is judged by itself."""
    engine = Engine(model, EngineOptions(n_blocks=99, block_size=8, max_rows=12))
    requests = [
        Request([3, 1, 4 + i], rule, max_new_tokens=13, seed=31 + i, drafts=i // 2, trace=trace)
        for rule in RULES
        for i in range(3)
    ]
    sequences = [engine.admit(request) for request in requests]
    while engine.sequences:
        engine.step()
    return sequences


@pytest.mark.parametrize("trace", [True, False])
def test_sequences_drawn_together_are_those_drawn_alone(monkeypatch, trace):
    model = make_model(1)
    together = write(model, trace=trace)
    monkeypatch.setattr(draws, "FEWEST", 10**9)
    alone = write(model, trace=trace)
    assert [s.text for s in together] == [s.text for s in alone]
    assert len({tuple(s.text) for s in together}) > 9
    for a, b in zip(together, alone) if trace else ():
        assert a.trace.tokens == b.trace.tokens
        assert a.trace.logprobs == pytest.approx(b.trace.logprobs, abs=1e-6)


def test_a_row_without_a_finite_maximum_is_left_to_be_judged_alone():
    engine = Engine(make_model(0), EngineOptions(n_blocks=9, block_size=8))
    sequences = [engine.admit(Request([5, 7], SamplingRule(1.0), seed=i)) for i in range(3)]
    logits = torch.randn(3, 29, generator=torch.Generator().manual_seed(3))
    logits[1, 4] = torch.nan
    found = draws.draw_rows(logits, SamplingRule(1.0), sequences)
    assert [drawn is None for drawn in found] == [False, True, False]
