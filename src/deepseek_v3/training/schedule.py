"""What changes during training: learning rate, batch, weight of the MTP loss, speed of the routing bias.

    rate     linear to the peak, constant, cosine to a tenth, constant, constant at a thirtieth
    batch    grows linearly from its start to its size over the ramp
    lambda   0.3, then 0.1 from where the rate begins to fall
    gamma    0.001, then 0 near the end

The report counts in tokens; here every bound is a fraction of the steps, with the report's proportions as defaults.
Source: arXiv:2412.19437, section 4.2.
"""

import math
from typing import NamedTuple

from deepseek_v3.training.options import TrainOptions


class Settings(NamedTuple):
    """The values of one step: those of the schedule, and how many rows count in it, on all processes."""

    lr: float
    rows: int
    mtp_weight: float
    bias_speed: float
    step_rows: int = 1


def settings_at(step: int, options: TrainOptions) -> Settings:
    """Return the values of step 0, 1, ..., steps - 1."""
    return Settings(
        learning_rate(step, options),
        rows_at(step, options),
        mtp_weight_at(step, options),
        0.0 if step >= options.bias_stop_fraction * options.steps else options.bias_speed,
    )


def learning_rate(step: int, o: TrainOptions) -> float:
    """Return the rate of a step; the first step already moves, by 1 / warmup_steps of the peak."""
    constant, decay, final = (f * o.steps for f in (o.constant_fraction, o.decay_fraction, o.final_fraction))
    if step < o.warmup_steps:
        return o.lr * (step + 1) / o.warmup_steps
    if step < constant:
        return o.lr
    if step < decay:
        part = (step - constant) / (decay - constant)
        return o.lr * (o.lr_end + (1 - o.lr_end) * 0.5 * (1 + math.cos(math.pi * part)))
    return o.lr * (o.lr_end if step < final else o.lr_final)


def move_end(step: int, steps: int, o: TrainOptions) -> TrainOptions:
    """Return the options with another number of steps, for a run that has done `step` of them.

    Every bound moves along, so the schedule comes to its end all the same. A later end is taken only while the rate
    stands at its peak: further on, the rate would rise again.
    """
    if steps > o.steps and step > o.constant_fraction * o.steps:
        return o
    return o.replace(steps=max(step, steps))


def rows_at(step: int, o: TrainOptions) -> int:
    """Return the batch of a step in rows, whole micro-batches while it grows."""
    ramp = o.batch_ramp_fraction * o.steps
    if not o.batch_size_start or step >= ramp:
        return o.batch_size
    grown = o.batch_size_start + (o.batch_size - o.batch_size_start) * step / ramp
    return min(o.batch_size, max(o.batch_size_start, int(grown / o.micro_batch) * o.micro_batch))


def mtp_weight_at(step: int, o: TrainOptions) -> float:
    """Return lambda of a step."""
    return o.mtp_weight if step < o.constant_fraction * o.steps else o.mtp_weight_final
