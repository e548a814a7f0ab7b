"""Descent: follow the slope downhill; momentum, Adam, decay, and a limit for the step.

    python descent.py           a worked example to follow with a pencil, and four rules in one valley
    descent.ipynb               the same on the whiteboard

Source: Kingma and Ba 2015 (arXiv:1412.6980), Algorithm 1; AdamW: Loshchilov and Hutter 2019 (arXiv:1711.05101).
DeepSeek-V3 (arXiv:2412.19437, 4.2) trains with AdamW, beta 0.9 and 0.95, decay 0.1, gradients clipped to norm 1.

Weights and gradients are dicts of arrays under the same names. A rule takes them and returns new weights.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Arrays = dict[str, np.ndarray]


def plain_step(weights: Arrays, gradients: Arrays, rate: float) -> Arrays:
    """Step against the gradient.

    w <- w - rate * dw
    """
    return {name: w - rate * gradients[name] for name, w in weights.items()}


def momentum_step(
    weights: Arrays, gradients: Arrays, speed: Arrays | None, rate: float, keep: float = 0.9
) -> tuple[Arrays, Arrays]:
    """Step along what is left of all gradients so far, like a ball that rolls.

        speed <- keep * speed + dw        w <- w - rate * speed

    Args:
        speed: what the last step returned; None at the first.
    Returns:
        weights, speed
    """
    speed = {n: d if speed is None else keep * speed[n] + d for n, d in gradients.items()}
    return plain_step(weights, speed, rate), speed


class Moments(NamedTuple):
    """What Adam remembers: how many steps, and running means of each gradient and of its square."""

    step: int
    first: Arrays
    second: Arrays


def adam_step(
    weights: Arrays,
    gradients: Arrays,
    moments: Moments | None,
    rate: float,
    *,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    decay: float = 0.0,
) -> tuple[Arrays, Moments]:
    """Divide each gradient by its own usual size, so that every weight moves by about `rate`.

        m <- b1 m + (1 - b1) dw          v <- b2 v + (1 - b2) dw^2
        w <- w - rate decay w - rate (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    The divisions by 1 - b^t make up for the start from zero: at step 1 they turn m and v into dw and dw^2. The decay
    acts on the weight itself, beside Adam (the W of AdamW); inside the gradient, the division would undo it.

    Args:
        moments: what the last step returned; None at the first.
    Returns:
        weights, moments
    """
    zero = {name: np.zeros_like(w) for name, w in weights.items()}
    step, first, second = moments or Moments(0, zero, zero)
    step += 1
    first = {n: betas[0] * first[n] + (1 - betas[0]) * d for n, d in gradients.items()}
    second = {n: betas[1] * second[n] + (1 - betas[1]) * d * d for n, d in gradients.items()}
    moved = {}
    for name, w in weights.items():
        mean, square = first[name] / (1 - betas[0] ** step), second[name] / (1 - betas[1] ** step)
        moved[name] = w - rate * decay * w - rate * mean / (np.sqrt(square) + eps)
    return moved, Moments(step, first, second)


def clip_gradients(gradients: Arrays, limit: float = 1.0) -> tuple[Arrays, float]:
    """Shorten the gradient of all arrays together to `limit`, if it is longer; its direction stays.

    Returns:
        the gradients, and the norm that they had.
    """
    norm = float(np.sqrt(sum(np.sum(d * d) for d in gradients.values())))
    scale = min(1.0, limit / norm) if norm > 0 else 1.0
    return {name: scale * d for name, d in gradients.items()}, norm


STEEPNESS = np.array([1.0, 100.0])  # of the valley along x and along y


def valley_forward(w: np.ndarray) -> float:
    """Height of a long valley: shallow along x, 100 times steeper along y; the lowest point is (0, 0).

    L = (x^2 + 100 y^2) / 2
    """
    return float(0.5 * np.sum(STEEPNESS * w * w))


def valley_backward(w: np.ndarray) -> np.ndarray:
    """Slope of the valley: (x, 100 y)."""
    return STEEPNESS * w


def walk_valley(rule: Callable, n_steps: int, start: tuple[float, float] = (4.0, 1.0)) -> np.ndarray:
    """Walk down the valley.

    Args:
        rule: (weights, gradients, state) -> (weights, state); the state is None at the first step.
    Returns:
        every place on the way, [n_steps + 1, 2].
    """
    weights, state, path = {"w": np.array(start)}, None, [np.array(start)]
    for _ in range(n_steps):
        weights, state = rule(weights, {"w": valley_backward(weights["w"])}, state)
        path.append(weights["w"])
    return np.array(path)


def main() -> None:
    """Three steps on a parabola by pencil, one step of Adam, then four rules in one valley."""
    w = 4.0
    print("L = w^2 / 2, slope w, rate 0.5: each step halves w, so", end=" ")
    print(", ".join(f"{w * 0.5**t:g}" for t in range(4)))
    print("rate 2.5 overshoots: w <- w - 2.5 w = -1.5 w, so", ", ".join(f"{w * (-1.5) ** t:g}" for t in range(4)))
    first = {"w": np.array([100.0, 0.01])}
    moved, _ = adam_step({"w": np.zeros(2)}, first, None, 0.1)
    print(f"Adam's first step for gradients 100 and 0.01 at rate 0.1: {moved['w'].round(4).tolist()}, for both alike")
    clipped, norm = clip_gradients({"a": np.array([3.0]), "b": np.array([4.0])})
    print(f"gradients 3 and 4 have norm {norm:g}; clipped to 1: {clipped['a'][0]:g} and {clipped['b'][0]:g}")

    rules = {
        "plain, rate 0.018": lambda w, d, s: (plain_step(w, d, 0.018), s),
        "plain, rate 0.021": lambda w, d, s: (plain_step(w, d, 0.021), s),
        "momentum, rate 0.01": lambda w, d, s: momentum_step(w, d, s, 0.01),
        "Adam, rate 0.2": lambda w, d, s: adam_step(w, d, s, 0.2),
    }
    print("\nheight of the valley after 0, 10, 30, 100 steps (along y no rate over 2/100 = 0.02 can work)")
    for name, rule in rules.items():
        heights = [valley_forward(p) for p in walk_valley(rule, 100)[[0, 10, 30, 100]]]
        print(f"  {name:19}", "  ".join(f"{h:12.4f}" for h in heights))
    w, h = np.array([0.3, -0.2]), 1e-6
    slopes = [(valley_forward(w + h * e) - valley_forward(w - h * e)) / (2 * h) for e in np.eye(2)]
    print(f"gradient check at (0.3, -0.2): by hand {valley_backward(w).tolist()}, central difference", end=" ")
    print([round(float(s), 6) for s in slopes])


if __name__ == "__main__":
    main()
