"""The forward pass and every gradient of the whole model."""

import numpy as np
import pytest
from architecture import BIAS, Config, Model, init_model, trained_weights, view_layer
from decoupled_rope import decoupled_attention_forward
from model import hidden_forward, layer_forward, loss_backward, loss_forward, predict_logits

# distinct primes; two depths, YaRN, one dense and one layer of experts besides the MTP layers
SMALL = Config(
    vocab_size=13,
    hidden_size=7,
    intermediate_size=5,
    moe_intermediate_size=3,
    num_hidden_layers=2,
    num_attention_heads=2,
    q_lora_rank=5,
    kv_lora_rank=3,
    qk_nope_head_dim=2,
    qk_rope_head_dim=4,
    v_head_dim=3,
    n_routed_experts=6,
    n_group=3,
    num_nextn_predict_layers=2,
    rope_scaling={"type": "yarn", "factor": 4, "original_max_position_embeddings": 8, "mscale": 1, "mscale_all_dim": 1},
    initializer_range=0.5,
)
DOCUMENT = np.array([[0, 0, 0, 0, 1, 1, 1, 1], [2, 2, 2, 2, 2, 2, 3, 3]])


@pytest.fixture
def small(rng) -> Model:
    """A small model with norms away from 1 and biases away from 0."""
    model = init_model(rng, SMALL)
    for name, array in model.weights.items():
        if array.ndim == 1:
            array += rng.normal(size=array.shape) * (0.05 if name.endswith(BIAS) else 0.3)
    return model


@pytest.fixture
def tokens(rng) -> np.ndarray:
    return rng.integers(0, SMALL.vocab_size, DOCUMENT.shape)


def test_the_gradient_of_every_tensor_predicts_what_a_nudge_of_it_does(small, tokens, rng):
    """Central differences along random directions of each tensor: all of its elements at once."""
    options = {"mtp_weight": 0.7, "alpha": 0.3}
    grads = loss_backward(loss_forward(small, tokens, DOCUMENT, **options)[1])
    for name, grad in grads.items():
        array, sides = small.weights[name], []
        nudge = 6e-6 * rng.standard_normal(array.shape)
        for step in (nudge, -2 * nudge, nudge):
            array += step
            sides.append(loss_forward(small, tokens, DOCUMENT, **options)[0].total)
        # a hundred tensors: one of them may lie nearly across its gradient, where rounding weighs more
        assert (sides[0] - sides[1]) / 2 == pytest.approx((grad * nudge).sum(), rel=1e-5, abs=1e-13), name


def test_the_gradient_of_one_tensor_of_each_chapter_is_the_central_difference(small, tokens, check_gradients):
    def loss() -> float:
        return loss_forward(small, tokens, DOCUMENT, mtp_weight=0.7, alpha=0.3)[0].total

    grads = loss_backward(loss_forward(small, tokens, DOCUMENT, mtp_weight=0.7, alpha=0.3)[1])
    names = [
        "model.norm.weight",
        "model.layers.0.self_attn.kv_a_layernorm.weight",
        "model.layers.1.mlp.gate.weight",
        "model.layers.3.hnorm.weight",
        "model.layers.2.shared_head.norm.weight",
    ]
    check_gradients(loss, {n: small.weights[n] for n in names}, {n: grads[n] for n in names})


def test_every_trained_tensor_has_a_gradient_of_its_name_shape_and_dtype(rng, tokens):
    for dtype in (np.float32, np.float64):
        model = init_model(rng, SMALL, dtype)
        grads = loss_backward(loss_forward(model, tokens)[1])
        trained = trained_weights(model.weights)
        assert grads.keys() == trained.keys()
        for name, array in trained.items():
            assert grads[name].shape == array.shape
            assert grads[name].dtype == dtype, name  # one float64 array would make the whole pass twice as slow
            assert np.abs(grads[name]).max() > 0, name


def test_the_loss_is_the_sum_of_its_parts(small, tokens):
    losses, _ = loss_forward(small, tokens, mtp_weight=0.7, alpha=0.3)
    assert losses.total == pytest.approx(losses.main + 0.7 / 2 * sum(losses.ahead) + losses.balance, rel=1e-12)
    assert losses.balance > 3 * 0.3 * 0.9  # three routers, each near alpha
    assert list(losses.loads) == [1, 2, 3]  # the MTP layers' routers count too
    assert [int(load.sum()) for load in losses.loads.values()] == [2 * 7 * 2, 2 * 6 * 2, 2 * 5 * 2]


def test_a_token_changes_nothing_before_it(small, tokens):
    logits = predict_logits(small, tokens)
    changed = tokens.copy()
    changed[:, 5] = (changed[:, 5] + 1) % SMALL.vocab_size
    for k, (before, after) in enumerate(zip(logits, predict_logits(small, changed))):
        moved = np.abs(after - before).max(axis=(0, 2)) > 1e-12  # runs of another length round otherwise
        assert not moved[: 5 - k].any()  # row i of depth k reads tokens up to i + k
        assert moved[5 - k]


def test_shifting_every_position_changes_nothing(small, rng):
    x = rng.normal(size=(2, 5, 7))
    layer = view_layer(small, 1)
    near = layer_forward(x, layer, SMALL, np.arange(5))[0]
    far = layer_forward(x, layer, SMALL, np.arange(5) + 1000)[0]
    np.testing.assert_allclose(near, far, atol=1e-10)


def test_a_row_whose_target_opens_another_document_does_not_count(small, tokens):
    document = np.where(np.arange(8) < 4, 0, 1)[None].repeat(2, axis=0)
    with_opener = loss_forward(small, tokens[:, :5], document[:, :5], mtp_weight=0.0, alpha=0.0)[0]
    without = loss_forward(small, tokens[:, :4], mtp_weight=0.0, alpha=0.0)[0]
    assert with_opener.main == pytest.approx(without.main, rel=1e-12)


def test_the_residual_stream_is_never_normed_in_place(small, rng):
    """With attention and experts silenced a layer hands on what it got."""
    x = rng.normal(size=(1, 3, 7))
    layer = view_layer(small, 1)
    layer.self_attn.o_proj[:] = 0
    layer.mlp.experts.down_proj[:] = 0
    layer.mlp.shared_experts.down_proj[:] = 0
    assert np.array_equal(layer_forward(x, layer, SMALL)[0], x)


def test_logits_of_depth_k_are_those_that_its_loss_is_taken_from(small, tokens):
    losses, _ = loss_forward(small, tokens, alpha=0.0)
    logits = predict_logits(small, tokens)
    for k, want in enumerate([losses.main, *losses.ahead]):
        rows = logits[k][:, : 7 - k]  # the window's last token is only a target
        shifted = rows - rows.max(axis=-1, keepdims=True)
        log_prob = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
        picked = np.take_along_axis(log_prob, tokens[:, k + 1 :, None], axis=-1)
        assert -picked.sum() / (2 * 7) == pytest.approx(want, rel=1e-12)  # divided by T at every depth


def test_the_balance_loss_pulls_on_the_routers_and_through_them_on_what_they_read(small, tokens):
    without = loss_backward(loss_forward(small, tokens, alpha=0.0)[1])
    with_it = loss_backward(loss_forward(small, tokens, alpha=0.5)[1])
    for i in (1, 2, 3):
        name = f"model.layers.{i}.mlp.gate.weight"
        assert np.abs(with_it[name] - without[name]).max() > 1e-3
    assert np.array_equal(with_it["lm_head.weight"], without["lm_head.weight"])


def test_a_model_without_mtp_has_one_loss(rng, tokens):
    config = Config(vocab_size=13, num_nextn_predict_layers=0)
    losses, cache = loss_forward(init_model(rng, config), tokens)
    assert losses.ahead == []
    assert losses.total == pytest.approx(losses.main + losses.balance)
    assert len(loss_backward(cache)) == len(trained_weights(init_model(rng, config).weights))


def test_one_token_is_enough_to_read_and_a_wrong_one_is_refused(small):
    assert hidden_forward(small, np.array([[3]]))[0].shape == (1, 1, 7)
    for wrong in (np.array([[13]]), np.array([[-1]]), np.array([1, 2])):
        with pytest.raises(ValueError, match="numbers from 0 to 12"):
            hidden_forward(small, wrong)


def test_the_attention_form_is_an_argument(small, rng):
    seen = []

    def attend(*arguments):
        seen.append(arguments[2])
        return decoupled_attention_forward(*arguments)

    layer_forward(rng.normal(size=(1, 2, 7)), view_layer(small, 0), SMALL, attend=attend)
    assert seen == [SMALL.attention]
