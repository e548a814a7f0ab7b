"""One MTP module: its gradients, the two orders, and what is handed to the block."""

import numpy as np
import pytest
from mtp_module import (
    ORDERS,
    MtpWeights,
    combine_forward,
    mtp_backward,
    mtp_forward,
    norm_rows_backward,
    norm_rows_forward,
    swap_order,
)

B, S, D = 2, 5, 3
NAMES = tuple(MtpWeights.__dataclass_fields__)


def mix_forward(x, position):
    """A causal block whose rows depend on their positions: the running sum, weighed by 1 / (1 + position)."""
    return (x / (1 + position[..., None])).cumsum(axis=1), position


def mix_backward(dy, position):
    """Differentiate `mix_forward`; its block has no weights."""
    return dy[:, ::-1].cumsum(axis=1)[:, ::-1] / (1 + position[..., None]), "dblock"


@pytest.fixture
def case(rng):
    """A module with norms away from one, its two inputs, and their positions."""
    weights = MtpWeights.init(rng, D)
    for name in ("enorm", "hnorm", "shared_head_norm"):
        getattr(weights, name)[:] += 0.4 * rng.standard_normal(D)
    hidden, embedding = rng.standard_normal((2, B, S, D))
    return weights, hidden, embedding, np.broadcast_to(np.arange(S), (B, S))


@pytest.mark.parametrize("order", ORDERS)
def test_every_gradient_agrees_with_central_differences(case, rng, check_gradients, order):
    weights, hidden, embedding, position = case
    dout = rng.standard_normal(hidden.shape)
    _, cache = mtp_forward(weights, hidden, embedding, position, mix_forward, order)
    dhidden, dembedding, dweights, dblock = mtp_backward(dout, cache, mix_backward)
    assert dblock == "dblock"
    check_gradients(
        lambda: float((mtp_forward(weights, hidden, embedding, position, mix_forward, order)[0] * dout).sum()),
        {"hidden": hidden, "embedding": embedding} | {n: getattr(weights, n) for n in NAMES},
        {"hidden": dhidden, "embedding": dembedding} | {n: getattr(dweights, n) for n in NAMES},
    )


def test_the_gradient_of_the_row_norm_has_no_part_along_the_row(rng, check_gradients):
    x, weight, dy = rng.standard_normal((3, 5)), rng.standard_normal(5), rng.standard_normal((3, 5))
    dx, dweight = norm_rows_backward(dy, norm_rows_forward(x, weight)[1])
    loss = lambda: float((norm_rows_forward(x, weight)[0] * dy).sum())  # noqa: E731
    check_gradients(loss, {"x": x, "weight": weight}, {"x": dx, "weight": dweight})
    assert np.abs((dx * x).sum(axis=-1)).max() < 1e-5  # EPS lets a trace through


def test_in_released_order_the_first_columns_read_the_embedding(case):
    weights, hidden, embedding, _ = case
    weights.eh_proj[:, D:] = 0
    moved = combine_forward(weights, hidden + 1, embedding)[0] - combine_forward(weights, hidden, embedding)[0]
    assert not moved.any()
    moved = combine_forward(weights, hidden, embedding + 1)[0] - combine_forward(weights, hidden, embedding)[0]
    assert np.abs(moved).max() > 1e-3


def test_the_order_of_the_paper_is_the_released_one_with_the_halves_exchanged(case):
    weights, hidden, embedding, _ = case
    swapped = MtpWeights(weights.enorm, weights.hnorm, swap_order(weights.eh_proj), weights.shared_head_norm)
    released = combine_forward(weights, hidden, embedding, "released")[0]
    np.testing.assert_allclose(combine_forward(swapped, hidden, embedding, "paper")[0], released, rtol=0, atol=1e-14)
    assert np.abs(combine_forward(weights, hidden, embedding, "paper")[0] - released).max() > 0.1  # the control
    assert np.array_equal(swap_order(swap_order(weights.eh_proj)), weights.eh_proj)


def test_the_two_inputs_are_normalized_apart(case):
    weights, hidden, embedding, _ = case
    before = combine_forward(weights, hidden, embedding)[0]
    after = combine_forward(weights, hidden * 50, embedding / 50)[0]
    np.testing.assert_allclose(after, before, rtol=0, atol=0.05)  # EPS matters once a row is small
    after = combine_forward(weights, hidden * 50, embedding)[0]
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-4)


def test_the_block_gets_the_pairs_and_the_positions_of_the_hidden_rows(case):
    weights, hidden, embedding, position = case
    seen = []

    def spy(x, position_BS):
        seen.append((x, position_BS))
        return x, None

    mtp_forward(weights, hidden, embedding, position, spy)
    assert np.array_equal(seen[0][0], combine_forward(weights, hidden, embedding)[0])
    assert np.array_equal(seen[0][1], position)


def test_the_output_has_been_through_the_modules_own_norm(case):
    weights, hidden, embedding, position = case
    weights.shared_head_norm[:] = 1
    out = mtp_forward(weights, hidden, embedding, position, mix_forward)[0]
    np.testing.assert_allclose((out**2).mean(axis=-1), 1, rtol=1e-4)  # up to EPS
    weights.shared_head_norm[:] = 2
    np.testing.assert_array_equal(mtp_forward(weights, hidden, embedding, position, mix_forward)[0], 2 * out)


def test_a_row_sees_no_later_hidden_row_and_no_later_embedding(case):
    weights, hidden, embedding, position = case
    before = mtp_forward(weights, hidden, embedding, position, mix_forward)[0]
    for changed in (hidden, embedding):
        changed[:, 3] += 1
        moved = np.abs(mtp_forward(weights, hidden, embedding, position, mix_forward)[0] - before).max(axis=(0, 2))
        changed[:, 3] -= 1
        assert moved[:3].max() < 1e-13
        assert (moved[3:] > 1e-3).all()


def test_float32_stays_float32(rng):
    weights = MtpWeights.init(rng, D, np.float32)
    hidden, embedding = rng.standard_normal((2, B, S, D)).astype(np.float32)
    block = (lambda x, position: (x, None)), (lambda dy, cache: (dy, None))
    out, cache = mtp_forward(weights, hidden, embedding, np.zeros((B, S)), block[0])
    dhidden, dembedding, dweights, _ = mtp_backward(out, cache, block[1])
    arrays = [out, dhidden, dembedding, *(getattr(dweights, n) for n in NAMES)]
    assert {a.dtype for a in arrays} == {np.dtype(np.float32)}


def test_one_row_of_width_one_works(rng):
    weights = MtpWeights.init(rng, 1)
    out = mtp_forward(weights, np.ones((1, 1, 1)), np.ones((1, 1, 1)), np.zeros((1, 1)), mix_forward)[0]
    assert out.shape == (1, 1, 1)


def test_what_cannot_be_right_is_refused(case):
    weights, hidden, embedding, position = case
    with pytest.raises(ValueError, match="drop the last hidden row"):
        combine_forward(weights, hidden, embedding[:, 1:])
    with pytest.raises(ValueError, match="order 'vllm' is unknown"):
        combine_forward(weights, hidden, embedding, "vllm")
    with pytest.raises(ValueError, match="one for each row"):
        mtp_forward(weights, hidden, embedding, position[:, 1:], mix_forward)
