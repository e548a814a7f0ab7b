"""A training that ends at a given moment: as many steps as the machine turns out to have time for.

    trainer.train(replan=follow_clock(time.perf_counter() + 240, most=1200))

The plan is made again after each step. A machine that becomes slow gets fewer steps, and the schedule, which counts in
fractions of the steps, still comes to its end.
"""

import time

from deepseek_v3.training.progress import Clock
from deepseek_v3.training.trainer import Replan

FEWEST_STEPS = 20  # fewer show nothing, however late it gets
STEPS_BEHIND = 30  # measuring, comparing and writing after the last step take about as long as so many


def follow_clock(deadline: float, most: int) -> Replan:
    """Return what tells a trainer how many steps there can be.

    Args:
        deadline: when all is to be over, in the time of `time.perf_counter`.
        most: steps, however much time there is.
    """

    def replan(step: int, clock: Clock) -> int:
        return fit_steps(step, deadline - time.perf_counter(), clock.mean_step_s(), most)

    return replan


def fit_steps(step: int, left_s: float, step_s: float, most: int) -> int:
    """Return how many steps there can be in all.

    Args:
        step: how many are done.
        left_s: until the deadline.
        step_s: of a step, the mean of all so far. By the last few alone, a busy moment would end the training; where
            the machine stays slow, the mean lets the plan give way step by step, and it still ends in time.
    """
    return max(FEWEST_STEPS, min(most, step + int(left_s / step_s) - STEPS_BEHIND))
