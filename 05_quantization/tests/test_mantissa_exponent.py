"""The small network's gradients, the tensors it gives, and which format wins where."""

import mantissa_exponent as me
import numpy as np
import pytest
from float_formats import E4M3, E5M2

CONTEXT = me.CONTEXT


@pytest.fixture(scope="module")
def tensors():
    return me.collect_tensors(me.train_exactly()[0])


def small_problem(rng):
    weights = me.NetworkWeights.init(rng, width=16, hidden=7, dtype=np.float64)
    weights.norm[:] = rng.uniform(0.5, 1.5, 16)
    context, target = rng.integers(0, 128, (5, CONTEXT)), rng.integers(0, 128, 5)
    context[1] = context[0]  # the same characters twice: their embedding gradients must add up
    context[2, 1:4] = 7
    return weights, context, target


def test_every_gradient_of_the_network_matches_central_differences(rng, check_gradients):
    weights, context, target = small_problem(rng)

    def loss():
        return me.cross_entropy(me.network_forward(weights, context)[0], target)[0]

    logits, cache = me.network_forward(weights, context)
    grads = me.network_backward(me.cross_entropy(logits, target)[1], weights, cache)
    names = ("norm", "gate_proj", "up_proj", "down_proj")
    check_gradients(loss, {n: getattr(weights, n) for n in names}, {n: getattr(grads, n) for n in names})
    rows = np.unique(context)  # of the embedding and the head only what takes part, to be quick
    for name, index in (("embed_tokens", rows[:4]), ("lm_head", target[:2])):
        whole, part = getattr(weights, name), getattr(weights, name)[index].copy()

        def loss_of_part(whole=whole, part=part, index=index):
            kept = whole[index].copy()
            whole[index] = part
            value = loss()
            whole[index] = kept
            return value

        check_gradients(loss_of_part, {name: part}, {name: getattr(grads, name)[index]})


def test_the_network_equals_pytorch_in_loss_and_gradients(rng):
    torch = pytest.importorskip("torch")
    weights, context, target = small_problem(rng)
    w = {k: torch.tensor(v, requires_grad=True) for k, v in vars(weights).items()}
    x = w["embed_tokens"][torch.tensor(context)].reshape(5, -1)
    normed = x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6) * w["norm"]
    act = torch.nn.functional.silu(normed @ w["gate_proj"].T) * (normed @ w["up_proj"].T)
    logits_torch = (x + act @ w["down_proj"].T) @ w["lm_head"].T
    loss_torch = torch.nn.functional.cross_entropy(logits_torch, torch.tensor(target))
    loss_torch.backward()
    logits, cache = me.network_forward(weights, context)
    loss, dlogits = me.cross_entropy(logits, target)
    grads = me.network_backward(dlogits, weights, cache)
    np.testing.assert_allclose(loss, loss_torch.item(), rtol=1e-12)
    for name, tensor in w.items():
        np.testing.assert_allclose(getattr(grads, name), tensor.grad.numpy(), rtol=1e-10, atol=1e-13)


def test_the_network_learns_the_manual():
    _, losses = me.train_exactly()
    assert losses[0] > 4.0
    assert np.mean(losses[-10:]) < 2.4


def test_the_held_out_tenth_is_never_trained_on(rng, monkeypatch):
    places = np.arange(len(me.read_manual()))  # every character replaced by where it stands
    monkeypatch.setattr(me, "read_manual", lambda: places)
    _, target = me.draw_batch(rng, 50_021)
    context, _ = me.draw_batch(rng, 50_021, held_out=True)
    assert target.max() < context.min()


def test_without_a_scale_gradients_need_the_exponents_of_e5m2(tensors):
    errors = me.compare_formats(tensors, "no scale")
    for name in ("gradient: of the block", "gradient: of the gate"):
        assert errors[name]["E5M2"] < 0.10 < 0.5 < errors[name]["E4M3"]
        assert me.flushed_share(tensors[name], E4M3, "no scale") > 0.9


def test_without_a_scale_weights_and_activations_prefer_the_mantissa_of_e4m3(tensors):
    errors = me.compare_formats(tensors, "no scale")
    for name in (n for n in tensors if not n.startswith("gradient")):
        assert errors[name]["E4M3"] < 0.6 * errors[name]["E5M2"]


def test_under_tile_scales_e4m3_beats_e5m2_on_everything_by_about_two(tensors):
    for row in me.compare_formats(tensors, "1 x 128").values():
        assert 1.8 < row["E5M2"] / row["E4M3"] < 2.2


def test_tiles_rescue_more_small_elements_than_one_scale_does(tensors):
    for x in tensors.values():
        assert me.flushed_share(x, E4M3, "1 x 128") <= me.flushed_share(x, E4M3, "per tensor")


def test_each_mantissa_bit_halves_the_error_where_range_is_no_matter(rng):
    x = rng.uniform(1, 2, (64, 128)).astype(np.float32)
    errors = list(me.compare_formats({"x": x}, "no scale")["x"].values())
    np.testing.assert_allclose(np.array(errors[1:]) / errors[:-1], 2, rtol=0.05)
    # the error is uniform over a step of 2^-M: its rms is that over sqrt(12)
    step = 2.0**-E5M2.mantissa_bits / np.sqrt(12)
    assert errors[-1] == pytest.approx(step / np.sqrt(np.mean(x.astype(np.float64) ** 2)), rel=0.03)


def test_the_candidates_are_all_eight_bits_wide_and_trade_one_for_one():
    assert {f.bits for f in me.CANDIDATES} == {8}
    assert [f.exponent_bits for f in me.CANDIDATES] == [2, 3, 4, 5]


def test_training_is_the_same_on_every_run():
    assert me.train_exactly(3, 5)[1] == me.train_exactly.__wrapped__(3, 5)[1]


def test_an_unknown_granularity_is_refused():
    with pytest.raises(ValueError, match="choose 'no scale'"):
        me.round_at(np.ones((2, 2)), E4M3, "per row")
