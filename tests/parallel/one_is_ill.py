"""Run by torchrun: a training in which the loss of process 1 is not a number in some of its forward passes.

one_is_ill.py PASSES train ...      those of that process, counted from 0: 2,6 or 4-999
"""

import dataclasses
import os
import sys

from deepseek_v3.cli import main
from deepseek_v3.training.objective import Pretraining

first, _, last = sys.argv[1].partition("-")
ill_passes = set(range(int(first), int(last) + 1)) if last else set(map(int, first.split(",")))
well, passes = Pretraining.__call__, iter(range(10**6))


def ill(self, *parts):
    """The loss, or none."""
    found = well(self, *parts)
    if os.environ.get("LOCAL_RANK", "1") == "1" and next(passes) in ill_passes:
        return dataclasses.replace(found, total=found.total * float("nan"))
    return found


Pretraining.__call__ = ill  # type: ignore[method-assign]
sys.exit(main(sys.argv[2:]))
