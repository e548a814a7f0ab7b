"""Distillation: a student learns from a teacher's whole distribution, or from the texts that it writes.

Run it:    python distillation.py
Notebook:  distillation.ipynb
Source:    arXiv:1503.02531 (temperature); arXiv:1606.07947 (sequence level); arXiv:2412.19437, section 5.1 (answers of
           DeepSeek-R1, filtered, as training data of V3).
Letters:   B answers, S rows that predict, V vocabulary; p teacher, q student.

    forward KL   sum_v p_v (log p_v - log q_v)     the student must cover whatever the teacher may say
    reverse KL   sum_v q_v (log q_v - log p_v)     the student must say nothing that the teacher would not

A label says which token was right; a teacher says how right every token is. On a sequence level the teacher just
writes, a rule throws the wrong answers away, and the student is fine-tuned on the rest: that needs no logits at all.
"""

import numpy as np
from token_policy import (
    Adam,
    PolicyWeights,
    check_answers,
    log_softmax,
    measure_accuracy,
    policy_backward,
    policy_forward,
    read_windows,
    score_answers_backward,
    score_answers_forward,
    solve_problems,
    sorting_problems,
    window_of,
    write_answers,
)


def check_shapes(teacher_BSV: np.ndarray, student_BSV: np.ndarray, counted_BS: np.ndarray, temperature: float) -> None:
    """Refuse what would broadcast into nonsense.

    Raises:
        ValueError: other vocabularies or rows, no row that counts, or a temperature that is not above 0.
    """
    if teacher_BSV.shape != student_BSV.shape or counted_BS.shape != student_BSV.shape[:-1]:
        raise ValueError(
            f"teacher {teacher_BSV.shape}, student {student_BSV.shape} and rows {counted_BS.shape} must fit: "
            "logits can be distilled between models of one vocabulary only; else let the teacher write"
        )
    if temperature <= 0 or not counted_BS.any():
        raise ValueError(f"temperature={temperature} must be above 0, and {int(counted_BS.sum())} rows count")


def forward_kl_forward(
    teacher_BSV: np.ndarray, student_BSV: np.ndarray, counted_BS: np.ndarray, temperature: float = 1.0
) -> tuple[float, tuple]:
    """Average KL(p || q) over rows that count, both softened: p = softmax(z_teacher / t), q = softmax(z / t).

        L = t^2 / n  sum_rows sum_v p_v (log p_v - log q_v)

    The t^2 keeps the size of the gradient when t changes: one 1/t comes from z/t, one from the flatter difference.
    Source: arXiv:1503.02531, section 2.
    """
    check_shapes(teacher_BSV, student_BSV, counted_BS, temperature)
    logp_BSV, logq_BSV = log_softmax(teacher_BSV / temperature), log_softmax(student_BSV / temperature)
    row_BS = (np.exp(logp_BSV) * (logp_BSV - logq_BSV)).sum(axis=-1)
    weight_BS = temperature**2 * counted_BS / counted_BS.sum()
    return float((weight_BS * row_BS).sum()), (np.exp(logp_BSV), np.exp(logq_BSV), weight_BS, temperature)


def forward_kl_backward(dloss: float, cache: tuple) -> np.ndarray:
    """Return the student's dlogits_BSV = w (q - p) / t; the teacher is given and gets none."""
    p_BSV, q_BSV, weight_BS, temperature = cache
    return dloss * (weight_BS / temperature)[..., None] * (q_BSV - p_BSV)


def reverse_kl_forward(
    teacher_BSV: np.ndarray, student_BSV: np.ndarray, counted_BS: np.ndarray, temperature: float = 1.0
) -> tuple[float, tuple]:
    """Average KL(q || p) over rows that count: the divergence seen from the student.

    L = t^2 / n  sum_rows sum_v q_v (log q_v - log p_v)
    """
    check_shapes(teacher_BSV, student_BSV, counted_BS, temperature)
    logp_BSV, logq_BSV = log_softmax(teacher_BSV / temperature), log_softmax(student_BSV / temperature)
    row_BS = (np.exp(logq_BSV) * (logq_BSV - logp_BSV)).sum(axis=-1)
    weight_BS = temperature**2 * counted_BS / counted_BS.sum()
    return float((weight_BS * row_BS).sum()), (logp_BSV, logq_BSV, row_BS, weight_BS, temperature)


def reverse_kl_backward(dloss: float, cache: tuple) -> np.ndarray:
    """Return dlogits_BSV = w q (log q - log p - KL) / t: what is said too often, against the row's average."""
    logp_BSV, logq_BSV, row_BS, weight_BS, temperature = cache
    excess_BSV = logq_BSV - logp_BSV - row_BS[..., None]
    return dloss * (weight_BS / temperature)[..., None] * np.exp(logq_BSV) * excess_BSV


def teacher_writes(
    teacher: PolicyWeights, prompt_PT: np.ndarray, rng: np.random.Generator, n_answers: int = 4
) -> np.ndarray:
    """Make training data on the sequence level: the teacher writes, and only right answers are kept, each once."""
    token_BT = write_answers(teacher, np.repeat(prompt_PT, n_answers, axis=0), rng).token_BT
    return np.unique(token_BT[check_answers(token_BT)], axis=0)


def distill_step(
    student: PolicyWeights, adam: Adam, teacher: PolicyWeights, token_BT: np.ndarray, temperature: float = 1.0
) -> PolicyWeights:
    """Take one step towards the teacher's distributions along given texts (rows from the end of the question on)."""
    teacher_BSV, _ = policy_forward(teacher, read_windows(token_BT, window_of(teacher))[:, :-1])
    student_BSV, cache = policy_forward(student, read_windows(token_BT, window_of(student))[:, :-1])
    counted_BS = np.broadcast_to(np.arange(token_BT.shape[1] - 1) >= 3, student_BSV.shape[:-1])
    _, kl_cache = forward_kl_forward(teacher_BSV, student_BSV, counted_BS, temperature)
    return adam.step(student, policy_backward(forward_kl_backward(1.0, kl_cache), cache))


def label_step(student: PolicyWeights, adam: Adam, token_BT: np.ndarray) -> PolicyWeights:
    """Take one step on given texts alone, without a teacher: the student that distillation is compared with."""
    logp_BS, cache = score_answers_forward(student, token_BT)
    dlogp_BS = np.zeros_like(logp_BS)
    dlogp_BS[:, 3:] = -1 / dlogp_BS[:, 3:].size
    return adam.step(student, score_answers_backward(dlogp_BS, cache))


def train_teacher(rng: np.random.Generator, n_steps: int = 400) -> PolicyWeights:
    """Train a wide policy on all training questions, with their answers."""
    teacher, solved = PolicyWeights.init(rng, hidden=128), solve_problems(sorting_problems()[0])
    adam = Adam(teacher)
    for _ in range(n_steps):
        teacher = label_step(teacher, adam, solved[rng.integers(0, len(solved), 32)])
    return teacher


def train_student(kind: str, seed: int, teacher: PolicyWeights, texts_BT: np.ndarray, n_steps: int = 300):
    """Train a narrow student on given texts with `labels`, or with the teacher's `logits` along them."""
    rng = np.random.default_rng(seed)
    student = PolicyWeights.init(rng, hidden=24)
    adam = Adam(student)
    for _ in range(n_steps):
        batch_BT = texts_BT[rng.integers(0, len(texts_BT), 32)]
        if kind == "labels":
            student = label_step(student, adam, batch_BT)
        else:
            student = distill_step(student, adam, teacher, batch_BT)
    return student


def main() -> None:
    """Print a divergence for the pencil, then train students with and without a teacher, at equal steps."""
    p, q = np.log([[[0.5, 0.25, 0.25]]]), np.log([[[0.25, 0.5, 0.25]]])
    one = np.ones((1, 1), dtype=bool)
    loss, cache = forward_kl_forward(p, q, one)
    print(f"teacher 1/2 1/4 1/4, student 1/4 1/2 1/4: KL = 1/4 log 2 = {loss:.6f}")
    print(f"  gradient of the student's logits = q - p = {forward_kl_backward(1.0, cache).ravel()}")
    rng = np.random.default_rng(0)
    train, held_out = sorting_problems()
    teacher = train_teacher(rng)
    print(f"teacher, trained on 162 answers: {measure_accuracy(teacher, held_out):.0%} of the held-out questions")
    few = solve_problems(train[:48])
    written = teacher_writes(teacher, train[48:], rng)
    for name, kind, texts in (
        ("48 labels alone", "labels", few),
        ("the teacher's logits along the same 48 texts", "logits", few),
        (f"48 labels and {len(written)} texts that the teacher wrote", "labels", np.concatenate([few, written])),
    ):
        right = [measure_accuracy(train_student(kind, s, teacher, texts), held_out) for s in range(2)]
        print(f"  student from {name}: {' and '.join(f'{r:.0%}' for r in right)} (two seeds)")


if __name__ == "__main__":
    main()
