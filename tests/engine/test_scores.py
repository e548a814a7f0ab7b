"""Log-probabilities are those of transformers on the same weights, whatever the token was chosen by."""

from functools import cache

import pytest
import torch

from deepseek_v3.engine.engine import Engine
from deepseek_v3.engine.request import EngineOptions, Request
from deepseek_v3.engine.sampler import SamplingRule
from deepseek_v3.engine.sequence import Sequence
from deepseek_v3.engine.steering import Steering
from deepseek_v3.model.transformer import DeepseekV3
from tests.tiny import tiny_config

TINY = tiny_config(vocab_size=29, num_hidden_layers=2, max_position_embeddings=97, num_nextn_predict_layers=2)
PROMPT = [5, 7, 11, 7, 13, 2, 3, 19, 23]
HOW = {
    "greedy": {},
    "drawn": {"rule": SamplingRule(0.7, top_k=5), "seed": 3},
    "steered": {"steering": Steering(1.5, logit_bias={3: 2.0})},
}


@cache
def make_model() -> DeepseekV3:
    torch.manual_seed(14)
    return DeepseekV3(TINY)


@cache
def make_peer():
    """The same weights in transformers."""
    transformers = pytest.importorskip("transformers")
    values = {k: v for k, v in TINY.to_dict().items() if k not in ("architectures", "torch_dtype")}
    config = transformers.DeepseekV3Config(**values)
    config._attn_implementation = config._experts_implementation = "eager"
    peer = transformers.DeepseekV3ForCausalLM(config).eval()
    state = {k if k.startswith("lm_head") else f"model.{k}": v for k, v in make_model().state_dict().items()}
    missing, _ = peer.load_state_dict({k: v for k, v in state.items() if ".mtp." not in k}, strict=False)
    assert not [name for name in missing if ".layers.2." not in name and "mtp" not in name]
    return peer


def serve(request: Request, **options) -> tuple[Sequence, list]:
    """Serve one request; return it and the scores that its events brought."""
    engine = Engine(make_model(), EngineOptions(**{"n_blocks": 13, "block_size": 8, **options}))
    sequence, scores = engine.admit(request), []
    while not sequence.finish:
        for event in engine.step():
            assert len(event.scores) == (len(event.tokens) if request.logprobs is not None else 0)
            scores += event.scores
        engine.check_integrity()
    assert not sequence.error
    return sequence, scores


def peer_logprobs(tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return make_peer()(torch.tensor([tokens])).logits[0].log_softmax(-1)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("drafts", [0, 3])
def test_log_probabilities_are_those_of_transformers(how, drafts):
    sequence, scores = serve(Request(PROMPT, max_new_tokens=23, drafts=drafts, logprobs=4, **HOW[how]))
    want_SV = peer_logprobs(sequence.tokens)[len(PROMPT) - 1 : -1]
    assert [score.token for score in scores] == sequence.text
    torch.testing.assert_close(
        torch.tensor([score.logprob for score in scores]), want_SV[range(23), sequence.text], atol=1e-4, rtol=0
    )
    values, ids = want_SV.topk(4)
    assert [[token for token, _ in score.top] for score in scores] == ids.tolist()
    torch.testing.assert_close(
        torch.tensor([[value for _, value in score.top] for score in scores]), values, atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("new", [0, 5])
@pytest.mark.parametrize("piece", [2, 64])
def test_the_prompts_log_probabilities_are_those_of_transformers_however_it_is_cut(new, piece):
    sequence, _ = serve(Request(PROMPT, max_new_tokens=new, prompt_logprobs=2), short_piece=piece)
    first, *scores = sequence.prompt_scores
    assert first is None
    assert (sequence.new, sequence.finish) == (new, "length")
    want_SV = peer_logprobs(PROMPT)[:-1]
    assert [score.token for score in scores] == PROMPT[1:]
    torch.testing.assert_close(
        torch.tensor([score.logprob for score in scores]), want_SV[range(8), PROMPT[1:]], atol=1e-4, rtol=0
    )
    assert [[token for token, _ in score.top] for score in scores] == want_SV.topk(2).indices.tolist()


def test_a_prompt_that_lies_in_the_cache_is_read_again_where_it_is_scored():
    engine = Engine(make_model(), EngineOptions(n_blocks=13, block_size=4))
    plain, scored = Request(PROMPT, max_new_tokens=3), Request(PROMPT, max_new_tokens=3, prompt_logprobs=0)
    found = []
    for request in (plain, scored, plain):
        found.append(engine.admit(request))
        while engine.sequences:
            engine.step()
    assert [sequence.statistics.shared_tokens for sequence in found] == [0, 0, 8]
    assert None not in found[1].prompt_scores[1:]
    assert found[0].text == found[1].text == found[2].text


def test_a_stop_token_is_neither_text_nor_scored():
    text = serve(Request(PROMPT, max_new_tokens=23))[0].text
    stop = text[11]
    sequence, scores = serve(Request(PROMPT, max_new_tokens=23, drafts=3, stop_tokens=(stop,), logprobs=0))
    assert sequence.text == text[: text.index(stop)]
    assert [score.token for score in scores] == sequence.text
    assert all(score.top == [] for score in scores)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [({"logprobs": 21}, "logprobs=21"), ({"prompt_logprobs": -1}, "prompt_logprobs=-1"), ({"max_new_tokens": 0}, "0")],
)
def test_scores_that_cannot_be_given_are_refused(wrong, word):
    with pytest.raises(ValueError, match=word):
        serve(Request(PROMPT, **wrong))
