"""Training: windows of text in, AdamW on every tensor, a thermostat on every router, a line that says how long yet.

    python training.py          twenty steps of a tiny model, with everything that a step does

Source: arXiv:2412.19437, sections 2.1.2 and 4.2; the text, the windows and AdamW are those of chapter 04.
Letters: B batch, S tokens of a window, E routed experts.

One step: draw windows, loss and gradients, clip to length 1, AdamW with a warm-up and a cosine, then the biases. They
move last, from what the routers of this step did, and are first used in the next.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import chapters  # noqa: F401
import numpy as np
from architecture import BIAS, Config, Model, init_model, trained_weights
from loss_free_balancing import max_violation, update_bias
from model import loss_backward, loss_forward
from small_language_model import AdamW, PackedText, draw_windows, read_topics


@dataclass(frozen=True)
class Recipe:
    """What a run is made of; the ratios are V3's, the sizes those of a laptop."""

    n_windows: int = 12
    n_tokens: int = 98
    rate: float = 8e-3
    mtp_weight: float = 0.3
    alpha: float = 1e-4
    bias_speed: float = 0.01  # V3: 0.001; a run of a few hundred steps cannot wait so long
    warm_up: int = 20  # steps


class Step(NamedTuple):
    """What one step has to tell."""

    main: float
    ahead: float  # of the first MTP depth, 0 without
    balance: float
    violation: float  # MaxVio, averaged over the MoE layers
    length: float  # of the whole gradient, before clipping


def move_biases(model: Model, loads: dict[int, np.ndarray], speed: float) -> None:
    """Move the balancing bias of every router by the sign of its experts' shortfall, in place; MTP layers too."""
    for i, load_E in loads.items():
        bias_E = model.weights[f"model.layers.{i}.mlp.gate.{BIAS}"]
        bias_E[:] = update_bias(bias_E, load_E, speed)


def take_step(model: Model, optimizer: AdamW, windows, recipe: Recipe, rate: float) -> Step:
    """Loss, gradients, weights, biases: in this order."""
    losses, cache = loss_forward(model, *windows, mtp_weight=recipe.mtp_weight, alpha=recipe.alpha)
    grads = loss_backward(cache)
    length = float(np.sqrt(sum(float(np.vdot(g, g)) for g in grads.values())))
    optimizer.step(grads, rate)
    move_biases(model, losses.loads, recipe.bias_speed)
    violation = float(np.mean([max_violation(load) for load in losses.loads.values()])) if losses.loads else 0.0
    return Step(losses.main, losses.ahead[0] if losses.ahead else 0.0, losses.balance, violation, length)


def unigram_entropy(text: PackedText, vocab_size: int) -> float:
    """The loss, in nats, of the best guess that does not look at the context: sum -p log p of the token counts."""
    p = np.bincount(text.tokens, minlength=vocab_size) / len(text.tokens)
    return float(-(p[p > 0] * np.log(p[p > 0])).sum())


def train_model(
    model: Model,
    text: PackedText,
    recipe: Recipe = Recipe(),
    *,
    n_steps: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    say: Callable[[str], None] | None = None,
) -> list[Step]:
    """Train in place for a number of steps, or for a time; the cosine ends at a tenth of the rate either way.

    Args:
        say: gets a line of progress for every step; None to be silent.
    Raises:
        ValueError: neither or both of `n_steps` and `seconds`.
    """
    if (n_steps is None) == (seconds is None):
        raise ValueError(f"n_steps={n_steps}, seconds={seconds}: give one of the two")
    rng, optimizer, history = np.random.default_rng(seed), AdamW(trained_weights(model.weights)), []
    start, done = time.monotonic(), 0.0
    while done < 1:
        windows = draw_windows(rng, text, recipe.n_windows, recipe.n_tokens)
        rate = recipe.rate * min(1.0, (len(history) + 1) / recipe.warm_up) * (0.55 + 0.45 * np.cos(np.pi * done))
        history.append(take_step(model, optimizer, windows, recipe, rate))
        spent = time.monotonic() - start
        done = len(history) / n_steps if n_steps else min(spent / seconds, 1.0)
        if say:
            say(describe_progress(history, done, spent))
    return history


def describe_progress(history: list[Step], done: float, spent: float) -> str:
    """One line: where we are, the last losses, and the time that is left at this pace."""
    last, left = history[-1], round(spent * (1 - done) / done)
    return (
        f"step {len(history):>5} {done:>4.0%}  main {last.main:.3f}  ahead {last.ahead:.3f}  "
        f"MaxVio {last.violation:.2f}  {left // 60}:{left % 60:02} left"
    )


def print_over(line: str) -> None:
    """Write a line over the last one on a terminal; to a file, every fiftieth step only."""
    if sys.stderr.isatty():
        print(f"\r{line}", end="", file=sys.stderr, flush=True)
    elif int(line.split()[1]) % 50 == 1:
        print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Train a tiny model for twenty steps."""
    text = read_topics()
    config = Config(hidden_size=32, num_hidden_layers=2, initializer_range=0.1)
    model = init_model(np.random.default_rng(0), config, np.float32)
    print(f"unigram entropy of {len(text.tokens):,} characters: {unigram_entropy(text, 96):.3f} nats")
    history = train_model(model, text, Recipe(n_windows=8, n_tokens=66), n_steps=20)
    for i in (0, 4, 9, 19):
        step = history[i]
        print(
            f"step {i:>2}: main {step.main:.3f}, ahead {step.ahead:.3f}, balance {step.balance:.5f}, "
            f"MaxVio {step.violation:.2f}, gradient {step.length:.2f}"
        )
    bias_E = model.weights[f"model.layers.1.mlp.gate.{BIAS}"]
    print("bias of the first router, in steps of 0.001:", (bias_E * 1000).round().astype(int))


if __name__ == "__main__":
    main()
