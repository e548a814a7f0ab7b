"""Write the three places where the chapters are joined, and have them graded.

    make check CH=06            (or: python -m utils.exercises 06, from the root)

Fill in the bodies; the letters are those of NOTATION.md. The parts come from chapters 01 to 05 and are given to you as
arguments: what is asked here is only how they hang together. The answers are in exercises_solved.py.
"""

import numpy as np


def run_layer(x_BSD: np.ndarray, norm_1, attention, norm_2, feed_forward) -> np.ndarray:
    """Return the output of one decoder layer [B, S, D].

        a = x + attention(norm_1(x))            y = a + feed_forward(norm_2(a))

    Args: four functions, each [B, S, D] -> [B, S, D].
    Source: arXiv:2412.19437, Fig. 2; model.py, `layer_forward`.

    Hint 1: the stream x is never normed itself; what is normed is a copy that goes into a branch.
    Hint 2: two branches, one after the other. The second one reads what the first has added to.
    Hint 3: two lines, each of the form `x = x + branch(norm(x))`. Do not write into the argument.
    """
    raise NotImplementedError


def pass_layer_back(dy_BSD: np.ndarray, norm_1, attention, norm_2, feed_forward) -> np.ndarray:
    """Return dx [B, S, D] of that layer.

        da = dy + norm_2'(feed_forward'(dy))            dx = da + norm_1'(attention'(da))

    Args: the backward passes of the four functions, each taking the gradient of its output to that of its input.
    Source: model.py, `layer_backward`.

    Hint 1: the last branch of the forward pass comes first.
    Hint 2: in a branch the order turns round as well: it was norm, then feed_forward.
    Hint 3: at y = a + branch(a) the gradient dy goes both ways and the two are added up.
    """
    raise NotImplementedError


def name_mtp_tensors(config: dict) -> list[str]:
    """Return the released names of all tensors of one MTP layer that are not in a layer of the main model.

        model.layers.{num_hidden_layers}.   enorm  hnorm  eh_proj  shared_head.norm  embed_tokens  shared_head.head

    Args: `config` has "num_hidden_layers"; the depth is 1. All names end in `.weight`; any order.
    Source: the released tensor index; checkpoint.py, `released_slots`.

    Hint 1: layers count from 0, so the MTP layer has the number of the main model's layers: 61 in V3.
    Hint 2: embedding and head are shared in memory, but a released file carries copies of both in this layer.
    Hint 3: six names, `model.layers.61.enorm.weight` and so on.
    """
    raise NotImplementedError
