"""Write the three places where the chapters are joined, and have them graded.

    make check CH=06            (or: python -m utils.exercises 06, from the root)

Fill in the bodies; the letters are those of NOTATION.md. The parts come from chapters 01 to 05 and are given to you as
arguments: what is asked here is only how they hang together. Hints, folded one by one: hints.md. Answers with their
reasons: exercises_solved.py.
"""

import numpy as np


def run_layer(x_BSD: np.ndarray, norm_1, attention, norm_2, feed_forward) -> np.ndarray:
    """Put one decoder layer together from its four parts.

    Args: four functions, each [B, S, D] -> [B, S, D].
    Returns: the stream behind the layer [B, S, D].
    Notebook: model; arXiv:2412.19437, Fig. 2.
    """
    raise NotImplementedError


def pass_layer_back(dy_BSD: np.ndarray, norm_1, attention, norm_2, feed_forward) -> np.ndarray:
    """Send the gradient back through that layer.

    Args: the backward passes of the four functions, each taking the gradient of its output to that of its input.
    Returns: dx [B, S, D].
    Notebook: model.
    """
    raise NotImplementedError


def name_mtp_tensors(config: dict) -> list[str]:
    """Return the released names of all tensors of one MTP layer that are not in a layer of the main model.

    Args: `config` has "num_hidden_layers"; the depth is 1. All names end in `.weight`; any order.
    Notebook: checkpoint; the released tensor index.
    """
    raise NotImplementedError
