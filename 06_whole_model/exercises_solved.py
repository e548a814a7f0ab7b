"""The answers to exercises.py, each with its reason; read them after your own attempt."""

import numpy as np


def run_layer(x_BSD: np.ndarray, norm_1, attention, norm_2, feed_forward) -> np.ndarray:
    """Two branches, each on a normed copy of the stream as it is then, each added: nothing replaces the stream."""
    x_BSD = x_BSD + attention(norm_1(x_BSD))
    return x_BSD + feed_forward(norm_2(x_BSD))


def pass_layer_back(dy_BSD: np.ndarray, norm_1, attention, norm_2, feed_forward) -> np.ndarray:
    """Last addition first. At each, the gradient goes straight on and through the branch, and both add up."""
    da_BSD = dy_BSD + norm_2(feed_forward(dy_BSD))
    return da_BSD + norm_1(attention(da_BSD))


def name_mtp_tensors(config: dict) -> list[str]:
    """What only an MTP layer has, copies included."""
    names = ("enorm", "hnorm", "eh_proj", "shared_head.norm", "embed_tokens", "shared_head.head")
    return [f"model.layers.{config['num_hidden_layers']}.{name}.weight" for name in names]
