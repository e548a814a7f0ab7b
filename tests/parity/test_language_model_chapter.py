"""Chapter 00 against PyTorch: losses, gradients, and a training by its AdamW, 1e-10 relative in float64."""

import numpy as np
import pytest
import torch
from bigram_model import bigram_backward, bigram_forward
from context_model import ContextWeights, context_backward, context_forward
from descent import adam_step, clip_gradients
from surprise import softmax_backward, softmax_forward, surprise_backward, surprise_forward
from torch.nn import functional as F

from utils.gradient_check import relative_error

TOLERANCE = 1e-10  # two float64 computations in another order


def as_leaf(array):
    return torch.tensor(array, dtype=torch.float64, requires_grad=True)


def hold_equal(ours, theirs):
    assert relative_error(np.asarray(ours), theirs.detach().numpy()) < TOLERANCE


@pytest.mark.parametrize("shape", [(3, 5), (7, 11), (1, 1)])
def test_softmax_and_surprise_are_those_of_pytorch(shape, rng):
    logits, dprob, target = rng.normal(size=shape), rng.normal(size=shape), rng.integers(shape[1], size=shape[0])
    leaf = as_leaf(logits)
    loss, cache = surprise_forward(logits, target)
    want = F.cross_entropy(leaf, torch.tensor(target))
    want.backward()
    hold_equal(loss, want)
    if shape[1] > 1:  # a vocabulary of one has no gradient
        hold_equal(surprise_backward(cache), leaf.grad)
    leaf = as_leaf(logits)
    prob, cache = softmax_forward(logits)
    want = F.softmax(leaf, dim=-1)
    want.backward(torch.tensor(dprob))
    hold_equal(prob, want)
    if shape[1] > 1:
        hold_equal(softmax_backward(dprob, cache), leaf.grad)


def test_the_bigram_is_what_autograd_says(rng):
    token, table = rng.integers(7, size=23), rng.normal(size=(7, 7))
    leaf = as_leaf(table)
    loss, cache = bigram_forward(table, token)
    want = F.cross_entropy(F.embedding(torch.tensor(token[:-1]), leaf), torch.tensor(token[1:]))
    want.backward()
    hold_equal(loss, want)
    hold_equal(bigram_backward(cache), leaf.grad)


def test_the_model_with_a_window_trains_as_pytorch_does(rng):
    """Seven steps of AdamW with clipping: loss and every weight stay together."""
    weights, moments = vars(ContextWeights.init(rng, V=5, T=3, D=2, F=7)), None
    leaves = {name: as_leaf(w) for name, w in weights.items()}
    other = torch.optim.AdamW(leaves.values(), lr=0.03, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for _ in range(7):
        window, target = rng.integers(5, size=(11, 3)), rng.integers(5, size=11)
        logits, cache = context_forward(window, ContextWeights(**weights))
        loss, surprised = surprise_forward(logits, target)
        gradients = vars(context_backward(surprise_backward(surprised), cache))
        x = F.embedding(torch.tensor(window), leaves["embed_tokens"]).flatten(1)
        want = F.cross_entropy(torch.tanh(x @ leaves["up_proj"].T) @ leaves["lm_head"].T, torch.tensor(target))
        other.zero_grad()
        want.backward()
        hold_equal(loss, want)
        for name, leaf in leaves.items():
            hold_equal(gradients[name], leaf.grad)
        norm = float(torch.nn.utils.get_total_norm([leaf.grad for leaf in leaves.values()]))
        gradients, ours = clip_gradients(gradients, 0.1)
        assert ours == pytest.approx(norm, rel=1e-10)
        for leaf in leaves.values():  # clip_grad_norm_ would add 1e-6 to the norm
            leaf.grad *= 0.1 / norm
        other.step()
        weights, moments = adam_step(weights, gradients, moments, 0.03, decay=0.1)
    for name, leaf in leaves.items():
        hold_equal(weights[name], leaf)
