"""Both divergences and their gradients, the temperature, and what a teacher is good for."""

import numpy as np
import pytest
from distillation import (
    distill_step,
    forward_kl_backward,
    forward_kl_forward,
    label_step,
    reverse_kl_backward,
    reverse_kl_forward,
    teacher_writes,
)
from supervised_fine_tuning import warm_start
from token_policy import (
    Adam,
    PolicyWeights,
    log_softmax,
    policy_forward,
    read_windows,
    solve_problems,
    sorting_problems,
)

PAIRS = [(forward_kl_forward, forward_kl_backward), (reverse_kl_forward, reverse_kl_backward)]


@pytest.fixture
def case(rng):
    """Logits of teacher and student [2, 5, 7], and rows of which two do not count."""
    counted = np.ones((2, 5), dtype=bool)
    counted[0, 1] = counted[1, 4] = False
    return rng.standard_normal((2, 5, 7)), rng.standard_normal((2, 5, 7)), counted


@pytest.mark.parametrize("temperature", [1.0, 2.7])
@pytest.mark.parametrize(("forward", "backward"), PAIRS)
def test_the_gradients_agree_with_central_differences(forward, backward, temperature, case, check_gradients):
    teacher, student, counted = case
    _, cache = forward(teacher, student, counted, temperature)
    dstudent = backward(1.0, cache)
    check_gradients(
        lambda: forward(teacher, student, counted, temperature)[0], {"student": student}, {"student": dstudent}
    )
    assert not dstudent[~counted].any()


def test_torch_agrees(case):
    torch = pytest.importorskip("torch")
    teacher, student, counted = case
    p, q = (torch.tensor(log_softmax(z / 2.0)) for z in (teacher, student))
    for forward, first, second in ((forward_kl_forward, q, p), (reverse_kl_forward, p, q)):
        rows = torch.nn.functional.kl_div(first, second, log_target=True, reduction="none").sum(-1).numpy()
        got = forward(teacher, student, counted, 2.0)[0]
        assert got == pytest.approx(4 * rows[counted].mean(), rel=1e-12)


@pytest.mark.parametrize(("forward", "backward"), PAIRS)
def test_a_student_that_is_its_teacher_pays_nothing_and_hears_nothing(forward, backward, case):
    teacher, _, counted = case
    loss, cache = forward(teacher, teacher + 3.0, counted)  # a shift of all logits is no difference
    assert abs(loss) < 1e-14
    assert np.abs(backward(1.0, cache)).max() < 1e-14


@pytest.mark.parametrize(("forward", "backward"), PAIRS)
def test_a_divergence_is_never_negative_and_the_two_directions_differ(forward, backward, case):
    teacher, student, counted = case
    assert forward(teacher, student, counted)[0] > 0
    assert forward(teacher, student, counted)[0] != pytest.approx(forward(student, teacher, counted)[0])


def test_forward_kl_has_the_gradient_of_cross_entropy_with_soft_labels(case):
    teacher, student, counted = case
    got = forward_kl_backward(1.0, forward_kl_forward(teacher, student, counted)[1])
    want = (np.exp(log_softmax(student)) - np.exp(log_softmax(teacher))) * counted[..., None] / counted.sum()
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-16)


def test_the_square_of_the_temperature_keeps_the_size_of_the_gradient(case):
    teacher, student, counted = case
    size = [
        np.abs(forward_kl_backward(1.0, forward_kl_forward(teacher, student, counted, t)[1])).mean() for t in (50, 500)
    ]
    assert size[1] == pytest.approx(size[0], rel=0.05)


def test_the_pencil_example_comes_out():
    p, q = np.log([[[0.5, 0.25, 0.25]]]), np.log([[[0.25, 0.5, 0.25]]])
    loss, cache = forward_kl_forward(p, q, np.ones((1, 1), dtype=bool))
    assert loss == pytest.approx(np.log(2) / 4, rel=1e-14)
    np.testing.assert_allclose(forward_kl_backward(1.0, cache).ravel(), [-0.25, 0.25, 0], atol=1e-15)


def test_only_right_answers_of_the_teacher_are_kept_each_once(rng):
    train, _ = sorting_problems()
    kept = teacher_writes(warm_start(rng, 80), train[:40], rng)
    assert 3 < len(kept) <= 40
    assert (kept == solve_problems(kept[:, :4])).all()


def test_a_step_of_distillation_brings_the_student_nearer_to_the_teacher(rng):
    teacher, student = warm_start(rng, 80), PolicyWeights.init(rng, hidden=7)
    texts = solve_problems(sorting_problems()[0][:20])
    adam, counted = Adam(student), np.ones((20, 4), dtype=bool)

    def distance(student):
        logits = [policy_forward(w, read_windows(texts, 7)[:, 3:-1])[0] for w in (teacher, student)]
        return forward_kl_forward(*logits, counted)[0]

    before = distance(student)
    for _ in range(50):
        student = distill_step(student, adam, teacher, texts)
    assert distance(student) < 0.7 * before
    assert isinstance(label_step(student, adam, texts), PolicyWeights)


def test_what_cannot_be_right_is_refused(case):
    teacher, student, counted = case
    with pytest.raises(ValueError, match="one vocabulary only"):
        forward_kl_forward(teacher[..., :6], student, counted)
    with pytest.raises(ValueError, match="temperature=0"):
        reverse_kl_forward(teacher, student, counted, 0)
    with pytest.raises(ValueError, match="0 rows count"):
        forward_kl_forward(teacher, student, np.zeros_like(counted))
