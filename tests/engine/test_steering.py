"""Bias and penalties are those of transformers' processors and of the published formula, also behind drafts."""

from collections import Counter
from functools import cache

import pytest
import torch

from deepseek_v3.engine.engine import Engine
from deepseek_v3.engine.request import EngineOptions, Request
from deepseek_v3.engine.sampler import SamplingRule
from deepseek_v3.engine.sequence import Sequence
from deepseek_v3.engine.steering import Steerer, Steering
from deepseek_v3.model.transformer import DeepseekV3
from tests.engine.test_speculative import count_on
from tests.tiny import tiny_config

TINY = tiny_config(vocab_size=29, num_hidden_layers=2, max_position_embeddings=97, num_nextn_predict_layers=2)
PROMPT = [5, 7, 11, 7, 13]
STEERINGS = {
    "repetition": Steering(repetition_penalty=1.7),
    "presence": Steering(presence_penalty=0.9),
    "frequency": Steering(frequency_penalty=0.4),
    "bias": Steering(logit_bias={3: 2.5, 17: -100.0, 2: 1.5}),
    "all": Steering(1.3, 0.3, 0.2, {3: 1.5, 17: -3.0}),
}


@cache
def make_model() -> DeepseekV3:
    torch.manual_seed(14)
    return DeepseekV3(TINY)


def run(request: Request, model: DeepseekV3 | None = None) -> Sequence:
    """Serve one request alone."""
    engine = Engine(model or make_model(), EngineOptions(n_blocks=13, block_size=8))
    sequence = engine.admit(request)
    while not sequence.finish:
        engine.step()
        engine.check_integrity()
    assert not sequence.error
    return sequence


def steer_slowly(logits_V: torch.Tensor, steering: Steering, tokens: list[int]) -> torch.Tensor:
    """Transformers' processors for bias and repetition, then the formula of OpenAI's reference for the other two."""
    processors = pytest.importorskip("transformers.generation.logits_process")
    row_1V, ids = logits_V[None].clone(), torch.tensor([tokens])
    if steering.logit_bias:
        bias = {(token,): value for token, value in steering.logit_bias.items()}
        row_1V = processors.SequenceBiasLogitsProcessor(bias)(ids, row_1V)
    if steering.repetition_penalty != 1:
        row_1V = processors.RepetitionPenaltyLogitsProcessor(steering.repetition_penalty)(ids, row_1V)
    for token, count in Counter(tokens[len(PROMPT) :]).items():
        row_1V[0, token] -= steering.presence_penalty + count * steering.frequency_penalty
    return row_1V[0]


@torch.no_grad()
def greedy_slowly(steering: Steering, count: int) -> list[int]:
    """Greedy tokens by the model's own forward pass over the whole sequence, and somebody else's processors."""
    tokens = list(PROMPT)
    for _ in range(count):
        logits_V = make_model()(torch.tensor([tokens]))[0, -1]
        tokens.append(int(steer_slowly(logits_V, steering, tokens).argmax()))
    return tokens[len(PROMPT) :]


@pytest.mark.parametrize("name", STEERINGS)
def test_steered_tokens_are_those_of_transformers_processors_with_and_without_drafts(name):
    want = greedy_slowly(STEERINGS[name], 23)
    assert want != greedy_slowly(Steering(), 23)  # else nothing is shown
    for drafts in (0, 1, 3):
        assert run(Request(PROMPT, max_new_tokens=23, drafts=drafts, steering=STEERINGS[name])).text == want


@pytest.mark.parametrize("name", STEERINGS)
def test_every_row_is_steered_as_if_the_drafts_before_it_were_text(name):
    steerer = Steerer(STEERINGS[name], None, PROMPT, 29, torch.device("cpu"))
    text, drafts = [3, 19, 3], [19, 3, 7]
    for token in text:
        steerer.take(token)
    logits_SV = torch.randn(4, 29)
    want = [steer_slowly(logits_SV[j], STEERINGS[name], PROMPT + text + drafts[:j]) for j in range(4)]
    torch.testing.assert_close(steerer.steer(logits_SV, drafts), torch.stack(want))
    torch.testing.assert_close(steerer.steer(logits_SV[3:], drafts), want[3][None])  # a module asks of the last alone


def test_drafts_are_steered_too_so_that_they_stand():
    """Modules that know the model's choice know it also where a bias makes it another."""
    steering = Steering(logit_bias={8: 100.0})
    plain, drafted = (run(Request([5], max_new_tokens=40, drafts=d, steering=steering), count_on(1)) for d in (0, 2))
    assert plain.text == drafted.text
    assert drafted.text == [8] * 40
    assert drafted.statistics.acceptance_rate > 0.9


def test_a_seeded_draw_with_penalties_is_the_draw_from_the_steered_distribution():
    rule, steering = SamplingRule(0.8, top_k=9), STEERINGS["all"]
    text = run(Request(PROMPT, rule, 11, seed=5, steering=steering)).text
    generator, tokens = torch.Generator().manual_seed(5), list(PROMPT)
    with torch.no_grad():
        for token in text:
            logits_V = steer_slowly(make_model()(torch.tensor([tokens]))[0, -1], steering, tokens)
            tokens.append(int(torch.multinomial(rule.probabilities(logits_V), 1, generator=generator)))
            assert tokens[-1] == token


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 must be a positive number"),
        ({"presence_penalty": float("nan")}, "presence_penalty=nan"),
        ({"frequency_penalty": float("inf")}, "frequency_penalty=inf"),
        ({"logit_bias": {3: float("-inf")}}, "logit_bias of token 3"),
    ],
)
def test_a_steering_that_cannot_work_is_refused(wrong, word):
    with pytest.raises(ValueError, match=word):
        Steering(**wrong)


def test_a_bias_on_a_token_that_is_none_is_refused_when_it_comes():
    with pytest.raises(ValueError, match="logit_bias names token 29, which is outside the vocabulary of 29"):
        run(Request(PROMPT, steering=Steering(logit_bias={29: 1.0})))
