"""The three methods that lm-evaluation-harness asks of a model, against NumPy on the model's own logits."""

import importlib.util
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from deepseek_v3.config import ModelConfig
from deepseek_v3.data.tokenizer import Tokenizer
from deepseek_v3.harness import HarnessModel, load_for_harness
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.weights.save import save_model

TEXT = "the cat sat on the mat, and a dog ate the log. " * 3


@pytest.fixture(scope="module")
def peer() -> HarnessModel:
    torch.manual_seed(7)
    shape = {"hidden_size": 22, "intermediate_size": 26, "moe_intermediate_size": 7, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "kv_lora_rank": 5, "qk_nope_head_dim": 7, "qk_rope_head_dim": 4, "v_head_dim": 3}
    experts = {"n_routed_experts": 6, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "initializer_range": 0.2}
    model = DeepseekV3(ModelConfig(vocab_size=290, **shape, **heads, **experts)).eval()
    return HarnessModel(model, Tokenizer.train([TEXT], 290))


def nats_of(peer: HarnessModel, ids: list[int], scored: int, seq_len: int = 10**6) -> tuple[float, bool]:
    """Log-probabilities of ids[scored:], each by itself, by NumPy in FP64; and whether all are the likeliest."""
    total, greedy = 0.0, True
    for i in range(scored, len(ids)):
        with torch.no_grad():
            row = peer.model(torch.tensor([ids[max(0, i - seq_len) : i]]))[0, -1].double().numpy()
        total += row[ids[i]] - row.max() - np.log(np.exp(row - row.max()).sum())
        greedy &= int(row.argmax()) == ids[i]
    return total, greedy


def ask(method, *args):
    return method([SimpleNamespace(args=args)])[0]


@pytest.mark.parametrize(("context", "continuation"), [("the cat", " sat on"), ("the cat ", "sat on"), ("", "the mat")])
def test_a_continuation_is_scored_behind_its_context(peer, context, continuation):
    whole = [peer.tokenizer.bos_id, *peer.tokenizer.encode(context + continuation)]
    before = 1 + len(peer.tokenizer.encode(context.rstrip()))
    nats, greedy = ask(peer.loglikelihood, context, continuation)
    wanted, is_greedy = nats_of(peer, whole, before)
    assert nats == pytest.approx(wanted, rel=1e-5)
    assert greedy == is_greedy


def test_the_greedy_continuation_is_called_greedy(peer):
    said = ask(peer.generate_until, "the cat", {"until": [], "max_gen_toks": 5})
    ids = [peer.tokenizer.bos_id, *peer.tokenizer.encode("the cat")]
    for _ in range(5):
        with torch.no_grad():
            ids.append(int(peer.model(torch.tensor([ids]))[0, -1].argmax()))
    assert said == peer.tokenizer.decode(ids[-5:])
    assert peer._score(ids[:-5], ids[-5:])[1]


def test_text_ends_before_the_first_stop(peer):
    whole = ask(peer.generate_until, "the cat", {"until": [], "max_gen_toks": 30})
    stop = whole[3:5]
    assert ask(peer.generate_until, "the cat", {"until": [stop], "max_gen_toks": 30}) == whole[: whole.find(stop)]


@pytest.mark.parametrize("seq_len", [11, 1000])
def test_a_whole_text_is_scored_token_by_token_once(peer, seq_len):
    windowed = HarnessModel(peer.model, peer.tokenizer, seq_len=seq_len)
    ids = [peer.tokenizer.bos_id, *peer.tokenizer.encode(TEXT)]
    found = ask(windowed.loglikelihood_rolling, TEXT)
    if seq_len >= len(ids):
        assert found == pytest.approx(nats_of(peer, ids, 1)[0], rel=1e-5)
        return
    seams = [1, 12, *range(17, len(ids), 5), len(ids)]  # a window of 11, then five new tokens each
    wanted = sum(
        nats_of(peer, ids[max(0, end - 12) : i + 1], i - max(0, end - 12))[0]
        for scored, end in itertools.pairwise(seams)
        for i in range(scored, end)
    )
    assert found == pytest.approx(wanted, rel=1e-5)


def test_a_continuation_longer_than_a_window_is_refused(peer):
    with pytest.raises(ValueError, match="longer than a window of 3"):
        ask(HarnessModel(peer.model, peer.tokenizer, seq_len=3).loglikelihood, "a", TEXT)


def test_it_is_a_model_of_the_harness_where_that_is_installed(peer, tmp_path):
    save_model(peer.model, tmp_path / "a", peer.tokenizer)
    if importlib.util.find_spec("lm_eval") is None:
        with pytest.raises(ImportError, match="pip install lm-eval"):
            load_for_harness(tmp_path / "a")
        return
    from lm_eval.api.model import LM  # type: ignore[import-not-found]

    found = load_for_harness(tmp_path / "a")
    assert isinstance(found, LM)
    assert ask(found.loglikelihood, "the cat", " sat") == ask(peer.loglikelihood, "the cat", " sat")
