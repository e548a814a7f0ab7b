"""Generation: the tokens of the argmax, in one stream or in a batch, and refusals that name the mend."""

import pytest
import torch

from deepseek_v3.engine import generate as generate_module
from deepseek_v3.engine.generate import generate, generate_batch
from deepseek_v3.engine.request import GenerationStatistics
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.native.build import SWITCH, have_kernels
from tests.tiny import tiny_config

TINY = tiny_config(num_hidden_layers=2, max_position_embeddings=97)


@pytest.fixture
def model():
    torch.manual_seed(14)
    return DeepseekV3(TINY)


@torch.no_grad()
def slowly(model, prompt: list[int], count: int) -> list[int]:
    """Greedy generation without a cache: the whole sequence again for each token."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


def test_greedy_is_the_argmax_of_the_whole_sequence_each_time(model):
    prompt = [5, 7, 11, 2, 3]
    want = slowly(model, prompt, 23)
    assert list(generate(model, prompt, max_new_tokens=23, stop_tokens=())) == want
    assert list(generate(model, torch.tensor(prompt), max_new_tokens=23, stop_tokens=())) == want
    assert list(generate(model, torch.tensor([prompt]), max_new_tokens=23, stop_tokens=())) == want


@pytest.mark.parametrize("kernels", ["1", "0"])
def test_a_prompt_read_in_chunks_is_the_same_prompt(model, monkeypatch, kernels):
    monkeypatch.setenv(SWITCH, kernels)
    prompt = torch.randint(0, 53, (61,)).tolist()
    want = list(generate(model, prompt, max_new_tokens=9, speculative=True, stop_tokens=()))
    for chunk in (1, 7, 64):
        monkeypatch.setattr(generate_module, "PREFILL_CHUNK", chunk)
        assert list(generate(model, prompt, max_new_tokens=9, speculative=True, stop_tokens=())) == want
        assert generate_batch(model, [prompt, prompt[:5]], max_new_tokens=9, stop_tokens=())[0] == want


@pytest.mark.skipif(not have_kernels(), reason="no C++ compiler here")
def test_a_short_prompt_and_a_short_end_are_read_by_the_kernel(model, monkeypatch):
    prompt = torch.randint(0, 53, (75,)).tolist()
    want, read = slowly(model, prompt, 3), []
    hidden_states = model.hidden_states
    monkeypatch.setattr(
        model, "hidden_states", lambda t, **options: read.append(t.shape[1]) or hidden_states(t, **options)
    )
    monkeypatch.setattr(generate_module, "PREFILL_CHUNK", 70)
    assert list(generate(model, prompt, max_new_tokens=3, stop_tokens=())) == want
    assert read == [70]
    assert len(list(generate(model, prompt[:64], max_new_tokens=3, stop_tokens=()))) == 3
    assert read == [70]


def test_a_stop_token_ends_it_and_is_not_yielded(model):
    tokens = list(generate(model, [5, 7], max_new_tokens=23, stop_tokens=()))
    stop = tokens[8]
    want = tokens[: tokens.index(stop)]
    assert list(generate(model, [5, 7], max_new_tokens=23, stop_tokens=[stop])) == want
    assert list(generate(model, [5, 7], max_new_tokens=23, stop_tokens=[stop], speculative=3)) == want
    assert generate_batch(model, [[5, 7]], max_new_tokens=23, stop_tokens=[stop]) == [want]


@pytest.mark.parametrize("speculative", [False, 3])
def test_it_ends_where_the_context_is_full(model, speculative):
    """97 positions: a prompt of 90 has room for 7 tokens that are read, and an eighth that is not."""
    prompt = [3] * 90
    assert len(list(generate(model, prompt, stop_tokens=(), speculative=speculative))) == 8
    assert len(list(generate(model, [3] * 97, stop_tokens=(), speculative=speculative))) == 1
    assert [len(row) for row in generate_batch(model, [prompt, [3]], max_new_tokens=20, stop_tokens=())] == [8, 20]


def test_no_token_asked_for_is_none_given(model):
    assert list(generate(model, [3], max_new_tokens=0)) == []
    assert generate_batch(model, [[3], [4]], max_new_tokens=0) == [[], []]


def test_each_row_of_a_batch_is_generated_as_if_alone(model):
    prompts = [[5], [7, 11, 13, 17, 19, 23, 29], [2, 3], [31] * 19]
    together = generate_batch(model, prompts, max_new_tokens=17, stop_tokens=())
    assert together == [list(generate(model, p, max_new_tokens=17, stop_tokens=())) for p in prompts]
    settings = {"max_new_tokens": 17, "temperature": 0.9, "top_k": 20, "top_p": 0.95}
    together = generate_batch(model, prompts, seed=40, **settings)
    assert together == [list(generate(model, p, seed=40 + i, **settings)) for i, p in enumerate(prompts)]


def test_the_same_seed_gives_the_same_text_and_gradients_stay_on(model):
    def draw(seed):
        return list(generate(model, [5, 7], max_new_tokens=29, temperature=1.0, seed=seed, stop_tokens=()))

    assert draw(1) == draw(1) != draw(2)
    for _ in generate(model, [5], max_new_tokens=2, stop_tokens=()):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
    model(torch.tensor([[5, 7]])).sum().backward()  # training may go on


def test_statistics_count_what_happened(model):
    plain, drafted = GenerationStatistics(), GenerationStatistics()
    list(generate(model, [5, 7], max_new_tokens=31, stop_tokens=(), statistics=plain))
    list(generate(model, [5, 7], max_new_tokens=31, stop_tokens=(), speculative=True, statistics=drafted))
    assert (plain.prompt_tokens, plain.new_tokens, plain.steps, plain.tokens_per_step) == (2, 31, 30, 1.0)
    assert plain.drafted == []
    assert drafted.new_tokens == 31 == 1 + drafted.steps + drafted.accepted[0]
    assert plain.tokens_per_second > 0
    assert plain.prefill_s > 0


@pytest.mark.parametrize(
    ("tokens", "settings", "word"),
    [
        ([], {}, "empty"),
        ([53], {}, "token 53 is outside the vocabulary of 53"),
        ([-1], {}, "token -1"),
        ([3] * 98, {}, "98 tokens, max_position_embeddings=97"),
        (torch.zeros(2, 3, dtype=torch.long), {}, "generate_batch"),
        (torch.zeros(3), {}, "must be integers"),
        ([3], {"temperature": -1.0}, "temperature=-1.0"),
        ([3], {"top_p": 0.0}, "top_p=0.0"),
        ([3], {"top_p": 1.5}, "top_p=1.5"),
        ([3], {"top_k": -2}, "top_k=-2"),
        ([3], {"max_new_tokens": -1}, "max_new_tokens=-1"),
        ([3], {"speculative": -1}, "speculative=-1"),
    ],
)
def test_what_cannot_work_is_refused_at_the_call(model, tokens, settings, word):
    with pytest.raises(ValueError, match=word):
        generate(model, tokens, **settings)


def test_drafting_without_modules_is_refused_with_the_mend():
    model = DeepseekV3(TINY.replace(num_nextn_predict_layers=0))
    with pytest.raises(ValueError, match=r"num_nextn_predict_layers=0.*speculative=False"):
        generate(model, [3], speculative=True)
    assert len(list(generate(model, [3], max_new_tokens=2, stop_tokens=()))) == 2


def test_a_batch_refuses_what_a_stream_refuses(model):
    with pytest.raises(ValueError, match="at least one prompt"):
        generate_batch(model, [])
    with pytest.raises(ValueError, match="empty"):
        generate_batch(model, [[3], []])
    with pytest.raises(ValueError, match="max_new_tokens=-1"):
        generate_batch(model, [[3]], max_new_tokens=-1)
