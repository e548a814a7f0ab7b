"""Writing with the latent cache, with absorbed attention and with drafts."""

import numpy as np
import pytest
from architecture import Config, init_model
from generation import LatentSession, write_tokens, write_without_cache
from model import predict_logits
from speculative_decoding import GreedyRule, SamplingRule

CONFIG = Config(vocab_size=23, initializer_range=0.3, num_hidden_layers=2)


@pytest.fixture
def model(rng):
    return init_model(rng, CONFIG)


def test_any_cut_of_the_text_into_reads_gives_the_logits_of_the_whole(model, rng):
    tokens = rng.integers(0, 23, 11)
    want = predict_logits(model, tokens[None])[0][0]
    for cuts in ([11], [1] * 11, [5, 1, 5], [3, 4, 4]):
        session, at, parts = LatentSession(model, 11), 0, []
        for size in cuts:
            parts.append(session.read(tokens[at : at + size])[0])
            at += size
        np.testing.assert_allclose(np.concatenate(parts), want, atol=1e-11)


def test_drafts_in_any_cut_are_the_logits_of_depth_one(model, rng):
    tokens = rng.integers(0, 23, 9)
    want = predict_logits(model, tokens[None])[1][0]
    session = LatentSession(model, 9)
    hidden = session.read(tokens)[1]
    parts = [session.draft(hidden[i:j], tokens[i + 1 : j + 1])[0] for i, j in ((0, 3), (3, 4), (4, 8))]
    np.testing.assert_allclose(np.concatenate(parts), want, atol=1e-11)


@pytest.mark.parametrize("n_drafts", [1, 2, 3])
def test_greedy_text_is_the_same_with_cache_without_and_with_drafts(model, n_drafts):
    prompt = [3, 1, 4, 1]
    want = write_without_cache(model, prompt, 15)
    assert write_tokens(model, prompt, 15, GreedyRule()).tokens == want
    assert write_tokens(model, prompt, 15, GreedyRule(), n_drafts).tokens == want


def test_a_perfect_draft_is_always_accepted(model):
    """The main model made constant, and the module with it: every draft passes."""
    model.weights["lm_head.weight"][:] = 0
    report = write_tokens(model, [1, 2], 12, GreedyRule(), n_drafts=2)
    assert report.acceptance == 1.0
    assert report.tokens_per_step == 3.0


def test_the_cache_holds_the_latent_and_one_rope_key_per_token_and_layer_and_nothing_else(model):
    session = LatentSession(model, 50)
    session.read([1, 2, 3, 4, 5])
    assert session.nbytes == 5 * CONFIG.num_hidden_layers * (CONFIG.kv_lora_rank + CONFIG.qk_rope_head_dim) * 8


def test_rolling_back_forgets_rejected_rows_of_main_model_and_module(model, rng):
    tokens = rng.integers(0, 23, 8)
    session = LatentSession(model, 20)
    _, hidden = session.read(tokens[:5])
    session.draft(hidden[:4], tokens[1:5])
    session.read([9, 9])
    session.roll_back(5, 4)
    assert [cache.n_tokens for cache in session.caches] == [5, 5, 4]
    got = session.read(tokens[5:])[0]
    np.testing.assert_allclose(got, predict_logits(model, tokens[None])[0][0, 5:], atol=1e-11)


def test_sampling_in_float32_stays_in_the_vocabulary(rng):
    model = init_model(rng, CONFIG, np.float32)
    report = write_tokens(model, [1], 20, SamplingRule(rng, temperature=0.8), n_drafts=1)
    assert len(report.tokens) == 21
    assert 0 <= min(report.tokens) <= max(report.tokens) < 23


def test_a_model_without_module_cannot_draft(rng):
    model = init_model(rng, Config(num_nextn_predict_layers=0))
    with pytest.raises(ValueError, match="num_nextn_predict_layers=0"):
        write_tokens(model, [1, 2], 3, GreedyRule(), n_drafts=1)
