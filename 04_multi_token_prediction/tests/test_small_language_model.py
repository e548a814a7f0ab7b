"""The small model: its text, its gradients, the copy canary, and that decoding is what was trained."""

from functools import partial

import numpy as np
import pytest
from causal_block import compact_block_backward, compact_block_forward
from mtp_module import mtp_forward
from mtp_pretraining import Depth, mtp_loss_forward, parallel_loss_backward, parallel_loss_forward
from small_language_model import (
    ALPHABET,
    VOCAB_SIZE,
    AdamW,
    DecodingSession,
    PackedText,
    SmallModel,
    decode_text,
    draw_prompts,
    draw_windows,
    encode_text,
    loss_and_gradients,
    main_forward,
    name_arrays,
    read_topics,
    train_model,
)

V = 7


def cycle_text(rng, n_tokens):
    """Text with a rule: t_{i+1} = t_i + 1 or + 2 mod V, by a coin that falls 4 to 1."""
    steps = 1 + (rng.random(n_tokens) < 0.2)
    return PackedText(steps.cumsum() % V, np.zeros(n_tokens, int), "")


@pytest.fixture(scope="module")
def trained():
    """A model of width 16 that has learned `cycle_text`, and a batch of that text."""
    rng = np.random.default_rng(3)
    text = cycle_text(rng, 4000)
    model = SmallModel.init(rng, vocab_size=V, hidden_size=16, n_heads=2, n_layers=1)
    train_model(model, text, 120, n_windows=8, n_tokens=18, rate=1e-2)
    return model, draw_windows(rng, text, 64, 18)


def test_text_survives_encoding():
    text = 'if x == "~":\n    return [1, 2]\n'
    assert decode_text(encode_text(text)) == text
    assert decode_text(encode_text("a\tbé—c")) == "abc"
    assert (len(set(ALPHABET)), VOCAB_SIZE) == (96, 96)


def test_the_two_sides_of_the_split_share_no_topic_and_documents_are_numbered():
    seen, unseen = read_topics(), read_topics(held_out=True)
    assert seen.digest != unseen.digest
    assert len(seen.tokens) > 3 * len(unseen.tokens) > 10_000
    assert set(np.diff(seen.document)) == {0, 1}
    start = decode_text(unseen.tokens[:80])
    assert start not in decode_text(seen.tokens)
    assert 0 <= seen.tokens.min() <= seen.tokens.max() < VOCAB_SIZE


def test_prompts_are_pieces_of_prose(rng):
    text = read_topics(held_out=True)
    prompts = draw_prompts(rng, text, 5, 17)
    assert [len(p) for p in prompts] == [17] * 5
    assert all(
        decode_text(p) in decode_text(text.tokens) and decode_text(p).replace(" ", "").isalpha() for p in prompts
    )


@pytest.mark.parametrize("ahead", [None, (parallel_loss_forward, parallel_loss_backward)], ids=["chain", "parallel"])
def test_every_gradient_of_the_whole_model_agrees_with_central_differences(rng, check_gradients, ahead):
    model = SmallModel.init(rng, vocab_size=5, hidden_size=2, n_heads=1, n_layers=1, n_depths=2, dtype=np.float64)
    tokens, document = rng.integers(0, 5, (2, 7)), np.array([[0] * 7, [0] * 3 + [1] * 4])
    options = {"weight": 0.7} | ({"ahead": ahead} if ahead else {})

    def loss():
        losses, _ = loss_and_gradients(model, tokens, document, **options)
        return losses[0] + 0.7 / 2 * sum(losses[1:])

    gradients = dict(name_arrays(loss_and_gradients(model, tokens, document, **options)[1]))
    check_gradients(loss, dict(name_arrays(model)), gradients)


def test_every_parameter_of_module_and_main_model_gets_a_gradient(rng):
    model = SmallModel.init(rng, vocab_size=V, hidden_size=6, n_heads=3, n_depths=2)
    _, gradients = loss_and_gradients(model, rng.integers(0, V, (3, 11)))
    assert not [name for name, g in name_arrays(gradients) if not np.abs(g).max() > 0]


def test_the_gradients_have_the_names_and_shapes_of_the_weights(rng):
    model = SmallModel.init(rng, vocab_size=V, hidden_size=6, n_heads=3, n_depths=2)
    _, gradients = loss_and_gradients(model, rng.integers(0, V, (3, 11)))
    sizes = [{name: (a.shape, a.dtype) for name, a in name_arrays(tree)} for tree in (model, gradients)]
    assert sizes[0] == sizes[1]
    assert "mtp.1.eh_proj" in sizes[0]


def test_the_copy_canary_on_random_tokens_nobody_beats_chance(rng):
    model = SmallModel.init(rng, vocab_size=V, hidden_size=16, n_heads=2, n_layers=1, n_depths=2)
    noise = PackedText(rng.integers(0, V, 100_000), np.zeros(100_000, int), "")
    history = train_model(model, noise, 80, n_windows=16, n_tokens=18, rate=1e-2)[-20:].mean(axis=0)
    terms = np.array([17, 16, 15]) / 17  # T - k terms over T
    assert (history > terms * np.log(V) - 0.02).all(), f"{history} is below chance: a target leaks into its own row"
    assert (history < terms * np.log(V) + 0.2).all()


def test_the_module_uses_the_token_that_it_is_given(trained):
    model, (tokens, _) = trained
    hidden, _ = main_forward(model, tokens[:, :-1])
    block = partial(compact_block_forward, model.mtp_blocks[0], n_heads=model.n_heads)
    depths = [Depth(model.mtp[0], block, compact_block_backward)]
    right, wrong = (
        mtp_loss_forward(depths, embed, model.lm_head, hidden, tokens)[1][0]
        for embed in (model.embed_tokens, np.roll(model.embed_tokens, 3, axis=0))
    )
    assert right < 0.7  # the coin alone costs 0.5 nats
    assert wrong > right + 1


def test_the_module_uses_the_hidden_row(trained):
    model, (tokens, _) = trained
    hidden, _ = main_forward(model, tokens[:, :-1])
    embedding, at = model.embed_tokens[tokens[:, 1:-1]], np.broadcast_to(np.arange(16), (len(tokens), 16))
    run_block = partial(compact_block_forward, model.mtp_blocks[0], n_heads=model.n_heads)
    right, wrong = (
        mtp_forward(model.mtp[0], h, embedding, at, run_block)[0] for h in (hidden[:, :-1], hidden[::-1, :-1])
    )
    assert np.abs(wrong - right).max() > 0.1


def test_what_the_session_reads_in_pieces_is_what_the_main_model_computes_at_once(trained):
    model, (tokens, _) = trained
    hidden, _ = main_forward(model, tokens[:1, :11])
    session = DecodingSession(model)
    parts = [session.read(tokens[0, a:b]) for a, b in ((0, 4), (4, 5), (5, 11))]
    np.testing.assert_allclose(np.concatenate([h for _, h in parts]), hidden[0], atol=2e-5)  # float32
    np.testing.assert_allclose(np.concatenate([l for l, _ in parts]), hidden[0] @ model.lm_head.T, atol=1e-4)


def test_what_the_session_drafts_is_what_the_module_was_trained_to_predict(trained):
    model, (tokens, _) = trained
    hidden, _ = main_forward(model, tokens[:1, :11])
    at = np.arange(11)[None]
    run_block = partial(compact_block_forward, model.mtp_blocks[0], n_heads=model.n_heads)
    want = mtp_forward(model.mtp[0], hidden, model.embed_tokens[tokens[:1, 1:12]], at, run_block)[0][0]
    session = DecodingSession(model)
    parts = [session.draft(hidden[0, a:b], tokens[0, a + 1 : b + 1])[1] for a, b in ((0, 3), (3, 11))]
    np.testing.assert_allclose(np.concatenate(parts), want, atol=2e-5)  # float32


def test_rolled_back_rows_are_gone_from_every_cache(trained):
    model, (tokens, _) = trained
    session = DecodingSession(model)
    _, hidden = session.read(tokens[0, :9])
    session.draft(hidden, tokens[0, 1:10])
    session.roll_back(5, 4)
    assert [c.length for c in session.target_caches] == [5]
    assert session.draft_cache.length == 4


def test_training_is_repeatable_and_learns(rng):
    text = read_topics()
    runs = [train_model(SmallModel.init(np.random.default_rng(1), hidden_size=16), text, 25) for _ in range(2)]
    assert np.array_equal(*runs)
    assert (runs[0][-3:].mean(axis=0) < runs[0][0] - 0.4).all()


def test_adamw_takes_the_steps_of_torch(rng):
    torch = pytest.importorskip("torch")
    arrays = {"matrix": rng.standard_normal((3, 5)), "norm": rng.standard_normal(5)}
    leaves = {n: torch.tensor(a.copy(), requires_grad=True) for n, a in arrays.items()}
    groups = [{"params": [leaves["matrix"]]}, {"params": [leaves["norm"]], "weight_decay": 0.0}]
    theirs, ours = torch.optim.AdamW(groups, lr=0.02, betas=(0.9, 0.95), weight_decay=0.1), AdamW(arrays)
    for _ in range(7):
        gradients = {n: rng.standard_normal(a.shape) for n, a in arrays.items()}
        for name, leaf in leaves.items():
            leaf.grad = torch.tensor(gradients[name])
        torch.nn.utils.clip_grad_norm_(list(leaves.values()), 1.0)
        theirs.step()
        ours.step(gradients, 0.02)
    for name, leaf in leaves.items():
        np.testing.assert_allclose(arrays[name], leaf.detach().numpy(), rtol=1e-5)  # torch adds 1e-6 to the clip length
