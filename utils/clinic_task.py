"""A clinic: the small task of chapter 03, whose best split of work is known, so that routers can be judged by it.

There are eight complaints, each with a right treatment: a fixed linear map of 8 numbers. A patient (a token) comes with
8 numbers, two of the complaints, and the right answer is the mean of what the two treatments make of the numbers. With
eight doctors (experts), two of whom see each patient, the best split is one doctor for each complaint.

Two traits of real text are built in. Patients come in days (sequences), and a day has a topic: three times of four the
first complaint is that of the day. And all patients have something in common, as hidden states do: a number of size
`common` that the reception reads, by which an untrained router sends everybody the same way.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

N_DAYS, N_PATIENTS, D, E, A = 16, 16, 8, 8, 2  # sequences, tokens of each, numbers, complaints (and doctors), needed


class Patients(NamedTuple):
    """One batch; N = N_DAYS * N_PATIENTS."""

    numbers_ND: np.ndarray
    seen: np.ndarray  # [N, D + E + 1], what the reception reads: the numbers, the two complaints, what all share
    target_ND: np.ndarray
    pair_NA: np.ndarray  # the two complaints


def draw_patients(rng: np.random.Generator, skills: np.ndarray, common: float = 8.0, flu: float = 0.0) -> Patients:
    """Draw a batch; on a share `flu` of the days the topic is complaint 0, else any, each as often."""
    n = N_DAYS * N_PATIENTS
    days = rng.integers(0, E, size=N_DAYS)
    if flu:
        days[rng.random(N_DAYS) < flu] = 0
    topic = np.repeat(days, N_PATIENTS)
    first = np.where(rng.random(n) < 0.75, topic, rng.integers(0, E, size=n))
    pair = np.stack([first, (first + rng.integers(1, E, size=n)) % E], axis=1)
    numbers, tags = rng.normal(size=(n, D)), np.zeros((n, E))
    np.put_along_axis(tags, pair, 1.0, axis=1)
    target = (skills[pair].mean(axis=1) @ numbers[..., None])[..., 0]
    return Patients(numbers, np.concatenate([numbers, tags, np.full((n, 1), common)], axis=1), target, pair)


def open_clinic(seed: int) -> tuple[np.random.Generator, np.ndarray, list[np.ndarray]]:
    """The same treatments, first weights and batches for whoever asks with this seed.

    Returns:
        the generator; the right treatments [E, D, D]; [router [E, D + E + 1], doctors [E, D, D]] before training.
    """
    rng = np.random.default_rng(seed)
    skills = rng.normal(size=(E, D, D)) / D**0.5
    return rng, skills, [rng.normal(size=(E, D + E + 1)) * 0.3, rng.normal(size=(E, D, D)) * 0.1]


def adjust_weights(arrays: list, grads: list, moments: list, step: int, rate: float = 0.02) -> None:
    """One step of Adam (chapter 00), in place; `moments` is an empty list before the first."""
    if not moments:
        moments.extend((np.zeros_like(array), np.zeros_like(array)) for array in arrays)
    for array, grad, (m, v) in zip(arrays, grads, moments):
        m += 0.1 * (grad - m)
        v += 0.01 * (grad * grad - v)
        array -= rate * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.99**step)) + 1e-8)


def train_reception(
    forward: Callable,
    backward: Callable,
    *,
    steps: int = 300,
    seed: int = 0,
    common: float = 0.0,
    flu: float = 0.0,
    router=None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Train the router alone; the doctors are finished, doctor e treats complaint e.

    Args:
        forward: (seen, router) -> (routing, cache); backward: (dgate_NA, cache) -> (dseen, drouter).
        router: where to begin; random numbers if none is given.
    Returns:
        the loss as a share of the target's variance, step by step; the share of chosen doctors who were needed, step by
        step; the router.
    """
    rng, skills, (fresh, _) = open_clinic(seed)
    router, moments, losses, right = fresh if router is None else router.copy(), [], [], []
    for step in range(1, steps + 1):
        numbers, seen, target, pair = draw_patients(rng, skills, common, flu)
        (index, gate), cache = forward(seen, router)
        answers = (skills[index] @ numbers[:, None, :, None])[..., 0]
        error = np.einsum("na,nad->nd", gate, answers) - target
        losses.append((error**2).mean() / 0.5)
        right.append((index[..., None] == pair[:, None]).any(axis=-1).mean())
        dgate = np.einsum("nad,nd->na", answers, 2 * error / error.size)
        adjust_weights([router], [backward(dgate, cache)[1]], moments, step)
    return np.array(losses), np.array(right), router
