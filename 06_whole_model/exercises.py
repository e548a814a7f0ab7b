"""Write the page that joins the chapters, from its wiring to the whole model, and have it graded.

    make check CH=06            (or: python -m utils.exercises 06, from the root)

Fill in the bodies, in any order: an exercise that calls another one is graded with the chapter's own version as long
as yours is blank. Letters are those of NOTATION.md; T = S - 1 rows of a window of S tokens have a next token. The parts
come from chapters 01 to 05 and are given to you as arguments: what is asked here is how they hang together.
Hints, folded one by one: hints.md. Answers with their reasons: exercises_solved.py.
"""

from collections.abc import Callable

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


def total_loss(main: float, ahead: list[float], balances: list[float], mtp_weight: float) -> float:
    """Add up what a training step makes small.

    Args: `ahead` has the loss of each MTP depth, not weighed yet; `balances` that of each MoE layer, alpha in it.
    Notebook: model; arXiv:2412.19437, Eqs. (17), (24), (25).
    """
    raise NotImplementedError


def whole_backward(
    dmain_TV: np.ndarray,
    dahead: np.ndarray,
    hidden_TD: np.ndarray,
    further: np.ndarray,
    token_S: np.ndarray,
    lm_head_VD: np.ndarray,
    main_back: Callable,
    module_back: Callable,
) -> tuple[np.ndarray, np.ndarray]:
    """Send the gradient of both logits back to the two tensors that are used twice: embedding and head.

    Forward it was: hidden = main(embedding[token 0 .. T-1]), main logits = hidden lm_head^T; further = module(hidden
    without its last row, embedding[token 1 .. T-1]), ahead logits = further lm_head^T.

    Args:
        dmain [T, V], dahead [T - 1, V]: gradients of the logits. further [T - 1, D].
        main_back: dhidden [T, D] -> the gradient of the rows of the embedding that it read [T, D].
        module_back: dfurther [T - 1, D] -> (dhidden [T - 1, D], the gradient of the embedding rows [T - 1, D]).
    Returns: dembed_tokens [V, D], dlm_head [V, D].
    Notebook: model; arXiv:2412.19437, Fig. 3.
    """
    raise NotImplementedError


def count_layer(config: dict, index: int) -> int:
    """Count the numbers that one layer has in memory: norms, biases and the parts of an MTP layer, without copies.

    Args: `config` has the released keys; `q_lora_rank` is a number. Layers from `num_hidden_layers` on are MTP layers.
    Notebook: architecture.
    """
    raise NotImplementedError


def clip_gradients(grads: dict[str, np.ndarray], longest: float) -> dict[str, np.ndarray]:
    """Return the gradients, shortened to the length `longest` if all of them together are longer.

    Notebook: training; arXiv:2412.19437, section 4.2.
    """
    raise NotImplementedError


def turn_thermostats(
    biases: dict[int, np.ndarray], loads: dict[int, np.ndarray], speed: float
) -> dict[int, np.ndarray]:
    """Move the balancing bias of every router after a step, and return `biases`; the arrays are those of the model.

    Args: both by layer number; `loads` counts the tokens that each expert got in this step.
    Notebook: training; arXiv:2412.19437, section 2.1.2.
    """
    raise NotImplementedError


def settle_drafts(drafts: list[int], own: list[int]) -> list[int]:
    """Say which tokens a greedy pass with K drafts adds to the text.

    The pass has read [the last certain token, *drafts]. own[0] is what the main model says behind the certain token,
    own[k] what it says behind draft k; there are K + 1.
    Notebook: generation; arXiv:2211.17192.
    """
    raise NotImplementedError


def read_tensor(raw: bytes, name: str) -> np.ndarray:
    """Fetch one tensor of a safetensors file by its name, as float32; it is stored as F32 or BF16.

    Notebook: checkpoint.
    """
    raise NotImplementedError


def name_mtp_tensors(config: dict) -> list[str]:
    """Return the released names of all tensors of one MTP layer that are not in a layer of the main model.

    Args: `config` has "num_hidden_layers"; the depth is 1. All names end in `.weight`; any order.
    Notebook: checkpoint; the released tensor index.
    """
    raise NotImplementedError


def model_from_an_empty_file(
    token_S: np.ndarray, weights: dict[str, np.ndarray], mills: list[tuple[Callable, Callable]], mtp_weight: float
) -> tuple[np.ndarray, float]:
    """Compute a DeepSeek-V3 with one MTP module for one window: its logits, and main loss plus weighed MTP loss.

    Args:
        weights: the released names. model.embed_tokens.weight [V, D], model.norm.weight [D], lm_head.weight [V, D]; for
            each layer i model.layers.i.input_layernorm.weight and .post_attention_layernorm.weight [D]; for the last,
            the MTP layer, also .enorm.weight, .hnorm.weight, .shared_head.norm.weight [D], .eh_proj.weight [D, 2D].
        mills: for each layer, that of the module last, (attention, feed_forward): normed rows [any number, D] to as
            many. They know their own weights and positions.
    Returns: the main model's logits [T, V], and the loss in nats; RMSNorm has eps 1e-6. No balance loss.
    Notebook: model; arXiv:2412.19437, Fig. 2, Fig. 3, Eqs. (21) to (25).
    """
    raise NotImplementedError
