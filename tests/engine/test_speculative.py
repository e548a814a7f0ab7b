"""Drafts change the speed and nothing else: the same tokens when greedy, the same distribution when drawn."""

import math

import pytest
import torch

from deepseek_v3.engine import engine as engine_module
from deepseek_v3.engine.generate import generate
from deepseek_v3.engine.request import GenerationStatistics
from deepseek_v3.engine.sampler import SamplingRule, make_generator
from deepseek_v3.engine.speculative import judge_drafts
from deepseek_v3.model.transformer import DeepseekV3
from tests.tiny import tiny_config

TINY = tiny_config(vocab_size=29, num_hidden_layers=2, max_position_embeddings=97)


def make_model(depths: int, seed: int, **changes) -> DeepseekV3:
    """A random model whose norms are not ones and whose modules are often right: they lean on the main model's head."""
    torch.manual_seed(seed)
    model = DeepseekV3(TINY.replace(num_nextn_predict_layers=depths, **changes))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.normal_(1, 0.2)
    return model


def count_on(depths: int, drafted_wrong: int = 0, **changes) -> DeepseekV3:
    """A model that counts: after token t comes t + 1 (mod 29). Its modules know it, but for the first `drafted_wrong`.

    Nothing is attended to and no expert speaks. The head takes the direction of token t, which the embedding writes, to
    token t + 1; a module of depth k is fed token i + k, reads its embedding alone, and so continues from there.
    """
    model = make_model(depths, 0, hidden_size=40, tie_word_embeddings=False, **changes)
    with torch.no_grad():
        for block in [*model.layers, *(module.block for module in model.mtp)]:
            block.self_attn.o_proj.weight.zero_()
            for name, parameter in block.mlp.named_parameters():
                if "down_proj" in name:
                    parameter.zero_()
        model.norm.weight.fill_(1)
        eye = torch.eye(40)[:29]
        model.embed_tokens.weight.copy_(eye)
        model.lm_head.weight.copy_(eye.roll(1, 0))  # row t + 1 answers to token t
        for depth, module in enumerate(model.mtp):
            module.enorm.weight.fill_(1)
            module.shared_head_norm.weight.fill_(1)
            left = torch.eye(40) if depth >= drafted_wrong else torch.roll(torch.eye(40), 3, 0)
            module.eh_proj.weight.copy_(torch.cat((left, torch.zeros(40, 40)), 1))
    return model


@pytest.mark.parametrize("depths", [1, 2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_greedy_drafts_give_the_tokens_of_plain_decoding(depths, seed):
    model = make_model(depths, seed)
    prompt = torch.randint(0, 29, (1 + seed * 3,)).tolist()  # from a single token: shorter than the chain of modules
    plain = list(generate(model, prompt, max_new_tokens=40, stop_tokens=()))
    for drafts in (True, 1, 2, 4):
        statistics = GenerationStatistics()
        drafted = generate(model, prompt, max_new_tokens=40, stop_tokens=(), speculative=drafts, statistics=statistics)
        assert list(drafted) == plain
        assert statistics.new_tokens == 1 + statistics.steps + sum(statistics.accepted)


@pytest.mark.parametrize("prompt", [[3, 1, 4, 1, 5, 9, 2], [3]], ids=["long", "shorter than the chain"])
def test_the_modules_read_what_they_read_in_training(prompt, monkeypatch):
    """Each draft's logits are those of model(tokens, mtp=True) on the tokens known so far and the drafts before it."""
    model, seen = make_model(3, 7), []
    judge = engine_module.judge_drafts
    monkeypatch.setattr(
        engine_module,
        "judge_drafts",
        lambda logits, drafts, *rest: seen.append(drafts) or judge(logits, drafts, *rest),
    )
    tokens = prompt + list(generate(model, prompt, max_new_tokens=25, stop_tokens=(), speculative=3))
    known = len(prompt)
    for drafts in seen:  # none at first: the prompt itself brings a token
        ahead = torch.tensor([tokens[:known] + drafts])
        with torch.no_grad():
            _, logits = model(ahead, mtp=True)
        row = known - 2  # the last row whose hidden state the main model has
        assert drafts == [int(logits[depth][0, row].argmax()) for depth in range(len(drafts))]
        known += 1 + next((j for j, d in enumerate(drafts) if d != tokens[known + j]), len(drafts))


@pytest.mark.parametrize(("depths", "drafts"), [(1, 1), (2, 2), (1, 3)])
def test_a_model_that_counts_has_every_draft_accepted(depths, drafts):
    model, statistics = count_on(depths), GenerationStatistics()
    out = list(
        generate(
            model, [5], max_new_tokens=1 + 6 * (drafts + 1), stop_tokens=(), speculative=drafts, statistics=statistics
        )
    )
    assert out == [(6 + i) % 29 for i in range(len(out))]
    assert statistics.steps == 6
    assert statistics.tokens_per_step == drafts + 1
    assert statistics.acceptance_rate == 1.0
    assert statistics.drafted == statistics.accepted == [6] * drafts


def test_a_module_that_is_always_wrong_has_none_accepted():
    statistics = GenerationStatistics()
    out = list(generate(count_on(2, 1), [5], max_new_tokens=13, stop_tokens=(), speculative=2, statistics=statistics))
    assert out == [6 + i for i in range(13)]
    assert statistics.acceptance_rate == 0.0
    assert statistics.tokens_per_step == 1.0
    assert statistics.accepted[0] == 0
    assert statistics.drafted == [11, 10]  # the last step but one drafts one, the last none


def test_a_wrong_second_module_leaves_the_first_drafts_standing():
    model, statistics = count_on(2), GenerationStatistics()
    with torch.no_grad():
        model.mtp[1].eh_proj.weight.copy_(torch.cat((torch.roll(torch.eye(40), 3, 0), torch.zeros(40, 40)), 1))
    list(generate(model, [5], max_new_tokens=21, stop_tokens=(), speculative=2, statistics=statistics))
    assert statistics.accepted == [10, 0]
    assert statistics.acceptance_rate == 10 / 19  # though every first draft stands; the last step drafts one
    assert statistics.acceptance_by_depth == [1.0, 0.0]
    assert statistics.tokens_per_step == 2.0


def test_the_golden_rejection():
    """Target [.5 .3 .2], draft [.2 .6 .2]: 0.7 is kept, and a rejected draft is always replaced by token 0."""
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.6, 0.2])
    generator, rule = make_generator(3), SamplingRule(1.0)
    logits, kept, counts = torch.stack((p, p)).log(), 0, [0, 0, 0]
    for _ in range(4000):
        draft = int(torch.multinomial(q, 1, generator=generator))
        stood, token = judge_drafts(logits, [draft], [q], rule, generator)
        kept += stood
        counts[draft if stood else token] += 1
        assert stood or token == 0
    assert kept / 4000 == pytest.approx(0.7, abs=4 * math.sqrt(0.7 * 0.3 / 4000))
    assert chi_squared(counts, (p * 4000).tolist()) < 13.8  # 2 degrees of freedom, 1 in 1000


def test_a_draft_equal_to_the_target_is_always_kept():
    p = torch.tensor([0.25, 0.5, 0.25])
    generator = make_generator(4)
    for _ in range(200):
        assert judge_drafts(torch.stack((p, p)).log(), [1], [p], SamplingRule(1.0), generator)[0] == 1


def chi_squared(counts: list[int], expected: list[float]) -> float:
    return sum((n - e) ** 2 / e for n, e in zip(counts, expected))


@pytest.mark.parametrize(("depths", "drafts"), [(1, 1), (2, 2)])
def test_drawn_tokens_follow_the_distribution_of_plain_decoding(depths, drafts):
    """The second and third token of many short generations, against the exact probabilities given the ones before."""
    model = make_model(depths, 2, vocab_size=7, initializer_range=0.25, n_routed_experts=None)
    rule, prompt, runs = SamplingRule(1.3, top_k=5, top_p=0.95), [3, 1, 2], 700
    settings = {"temperature": 1.3, "top_k": 5, "top_p": 0.95, "stop_tokens": ()}
    texts = [
        tuple(generate(model, prompt, max_new_tokens=3, seed=s, speculative=drafts, **settings)) for s in range(runs)
    ]
    with torch.no_grad():
        first = rule.probabilities(model(torch.tensor([prompt]))[0, -1])
        pairs = torch.zeros(7, 7)
        for a in range(7):
            pairs[a] = first[a] * rule.probabilities(model(torch.tensor([[*prompt, a]]))[0, -1])
        thirds = torch.zeros(7)
        for a in range(7):
            for b in range(7):
                thirds += pairs[a, b] * rule.probabilities(model(torch.tensor([[*prompt, a, b]]))[0, -1])
    assert all(pairs[text[0], text[1]] > 0 for text in texts)
    for position, want in ((1, pairs.sum(0)), (2, thirds)):
        alive = [v for v in range(7) if want[v] * runs > 5]
        counts = [sum(text[position] == v for text in texts) for v in alive]
        # 1 in 1000 at len(alive) - 1 degrees of freedom
        assert (
            chi_squared(counts, [float(want[v]) * runs for v in alive])
            < {4: 16.3, 5: 18.5, 6: 20.5, 7: 22.5}[len(alive)]
        )
