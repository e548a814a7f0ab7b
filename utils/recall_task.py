"""A small task to train a layer of attention on in seconds: facts are written down, then one is asked for.

Every token of a story writes a value under a name ("b = 3"); the last token asks, and right is what was written beside
it last. Asked one way, the question shows a name and wants its value. Asked both ways, it may also show a value and
want its name. The layers are trained by the gradients that the chapters derive, and by nothing else.
"""

from typing import NamedTuple

import numpy as np


class Recall(NamedTuple):
    """Sizes of the task. A hidden state: one-hot name, one-hot value, then +1 for a write, -1 for a question."""

    n_names: int = 12
    n_values: int = 12
    n_writes: int = 6
    both_ways: bool = False

    @property
    def width(self) -> int:
        """D of a hidden state."""
        return self.n_names + self.n_values + 1


def draw_recalls(rng: np.random.Generator, task: Recall, B: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw B stories with every name and every value used at most once.

    Returns:
        x_BSD [B, n_writes + 1, D]; target_B: the coordinate of the right answer, a name's or a value's.
    """
    N, S, rows = task.n_names, task.n_writes, np.arange(B)
    names = rng.permuted(np.tile(np.arange(N), (B, 1)), axis=1)[:, :S]
    values = rng.permuted(np.tile(np.arange(task.n_values), (B, 1)), axis=1)[:, :S] + N
    eye = np.eye(task.width)
    writes = eye[names] + eye[values] + eye[-1]
    place, by_value = rng.integers(S, size=B), rng.random(B) < 0.5 * task.both_ways
    name, value = names[rows, place], values[rows, place]
    question = eye[np.where(by_value, value, name)] - eye[-1]
    return np.concatenate([writes, question[:, None]], axis=1), np.where(by_value, name, value)


def judge_recalls(y_BSD: np.ndarray, target_B: np.ndarray) -> tuple[float, np.ndarray]:
    """Read the answer from the last token, all names and values against each other; return the share right, and dy.

    The loss is the mean cross-entropy; its slope is probability minus one-hot.
    """
    logits = y_BSD[:, -1, :-1]
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    dy_BSD = np.zeros_like(y_BSD)
    one_hot = np.eye(logits.shape[1])[target_B]
    dy_BSD[:, -1, :-1] = (odds / odds.sum(-1, keepdims=True) - one_hot) / len(y_BSD)
    return float((logits.argmax(-1) == target_B).mean()), dy_BSD


def train_recalls(weights, forward, backward, task: Recall, *, steps: int = 400, seed: int = 0, rate: float = 1e-2):
    """Train the arrays of `weights` in place by Adam; return the share of right answers over the last 50 steps.

    Args:
        forward: (x, weights) -> (y, cache); backward: (dy, cache) -> (dx, gradients in a class like `weights`).
    """
    rng, right, moments = np.random.default_rng(seed), [], {}
    for step in range(1, steps + 1):
        x, target = draw_recalls(rng, task, 64)
        y, cache = forward(x, weights)
        score, dy = judge_recalls(y, target)
        right.append(score)
        grads = backward(dy, cache)[1]
        for name, array in vars(weights).items():
            if not isinstance(array, np.ndarray):
                continue
            first, second = moments.setdefault(name, (np.zeros_like(array), np.zeros_like(array)))
            first += 0.1 * (getattr(grads, name) - first)
            second += 0.01 * (getattr(grads, name) ** 2 - second)
            array -= rate * first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.99**step)) + 1e-8)
    return float(np.mean(right[-50:]))
