"""What the flags of post-training are held against; each refusal names flag, value and mend."""

import math
from typing import Any

from deepseek_v3.device import DEVICES
from deepseek_v3.training.options import LARGEST, OptionsError


def check_shared(o: Any) -> None:
    """Refuse what no kind can work with.

    Raises:
        OptionsError: naming flag, value and mend.
    """
    if not o.run.strip():
        raise OptionsError(f"--run is empty; leave it out for {type(o).run!r}, or name one")
    check_counts(o, "steps", "micro_batch", "keep", "log_every")
    check_counts(
        o, "warmup_steps", "exam_problems", "exam_answers", "shown", "threads", "seed", "eval_every", "save_every",
        least=0,
    )  # fmt: skip
    check_numbers(o, "lr", "clip_norm", "limit_s", above=0.0)
    check_numbers(o, "weight_decay", "bias_speed")
    check_fractions(o, "lr_end", "stop_at")
    check_choice(o, precision=("fp32", "bf16", "auto"), device=DEVICES)


def check_counts(o: Any, *names: str, least: int = 1) -> None:
    """Hold whole numbers against their bounds."""
    for name in names:
        if not least <= getattr(o, name) <= LARGEST:
            bound = f"at least {least}" if getattr(o, name) < least else f"at most {LARGEST:,}"
            raise OptionsError(f"--{spell(name)} {getattr(o, name)} must be {bound}")


def check_numbers(o: Any, *names: str, above: float | None = None) -> None:
    """Hold numbers against 0."""
    for name in names:
        value = getattr(o, name)
        if not math.isfinite(value) or (value < 0 if above is None else value <= above):
            raise OptionsError(
                f"--{spell(name)} {value} must be {'0 or more' if above is None else 'a positive number'}"
            )


def check_fractions(o: Any, *names: str) -> None:
    """Hold parts against 0 and 1."""
    for name in names:
        if not 0 <= getattr(o, name) <= 1:
            raise OptionsError(f"--{spell(name)} {getattr(o, name)} must be in [0, 1]")


def check_choice(o: Any, **choices: tuple[str, ...]) -> None:
    """Hold words against those that are known."""
    for name, known in choices.items():
        if getattr(o, name) not in known:
            raise OptionsError(f"--{spell(name)} {getattr(o, name)} must be {', '.join(known[:-1])} or {known[-1]}")


def spell(name: str) -> str:
    """Write a field as its flag."""
    return name.replace("_", "-")
