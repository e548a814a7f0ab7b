"""Chapter 04 against the package and plain autograd, in float64: forward and every gradient."""

from functools import partial

import numpy as np
import pytest
import torch
from causal_block import CompactBlock, compact_block_backward, compact_block_forward
from mtp_module import MtpWeights, mtp_backward, mtp_forward, swap_order
from mtp_pretraining import Depth, depth_targets, mtp_loss_backward, mtp_loss_forward
from speculative_decoding import (
    GreedyRule,
    plain_decode,
    residual_distribution,
    softmax,
    speculative_decode,
    verify_greedily,
)
from torch.nn import functional as F

from deepseek_v3.config import ModelConfig
from deepseek_v3.engine.sampler import SamplingRule, make_generator
from deepseek_v3.engine.speculative import judge_drafts
from deepseek_v3.model.cache import LatentCache
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.training.loss import make_labels
from utils.gradient_check import relative_error

TOLERANCE = 1e-10  # float64 on both sides, different orders of summation
V, D, B, S = 31, 24, 2, 11


@pytest.fixture
def model():
    """A package model of two layers and two MTP modules, in float64, with norms away from one."""
    torch.manual_seed(0)
    config = ModelConfig.preset("demo").replace(
        vocab_size=V, hidden_size=D, num_hidden_layers=2, num_nextn_predict_layers=2, initializer_range=0.3
    )
    model = DeepseekV3(config).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter += 0.3 * torch.randn_like(parameter)
    return model


def module_weights(module):
    """The chapter's dataclass of a package module's weights."""
    parts = module.enorm, module.hnorm, module.eh_proj, module.shared_head_norm
    return MtpWeights(*(p.weight.detach().numpy() for p in parts))


def block_as_argument(model, module):
    """The package's decoder layer, as the pair of functions that the chapter's module asks for."""

    def forward(x_BSD, position_BS):
        assert (position_BS == np.arange(x_BSD.shape[1])).all()
        x = torch.tensor(x_BSD, requires_grad=True)
        y = module.block(x, model.place_tokens(x.shape[1], None)[0])
        return y.detach().numpy(), (x, y)

    def backward(dy_BSD, cache):
        x, y = cache
        names, weights = zip(*((n, p) for n, p in module.block.named_parameters()))
        dx, *dweights = torch.autograd.grad(y, [x, *weights], torch.tensor(dy_BSD))
        return dx.numpy(), dict(zip(names, dweights))

    return forward, backward


def assert_equal(got, want):
    """Hold to the tolerance, relative to the largest value."""
    assert relative_error(np.asarray(got), want.detach().numpy()) < TOLERANCE


def test_one_module_equals_the_packages_forward_and_backward(model, rng):
    module, weights = model.mtp[0], module_weights(model.mtp[0])
    hidden, embedding, dout = rng.standard_normal((3, B, S, D))
    leaves = [torch.tensor(a, requires_grad=True) for a in (hidden, embedding)]
    want = module(*leaves, model.place_tokens(S, None)[0])
    want.backward(torch.tensor(dout))
    forward, backward = block_as_argument(model, module)
    out, cache = mtp_forward(weights, hidden, embedding, np.broadcast_to(np.arange(S), (B, S)), forward)
    dhidden, dembedding, dweights, dblock = mtp_backward(dout, cache, backward)
    assert_equal(out, want)  # V3 Eq. (21), V3 Eq. (22)
    assert_equal(dhidden, leaves[0].grad)
    assert_equal(dembedding, leaves[1].grad)
    for name in ("enorm", "hnorm", "eh_proj", "shared_head_norm"):
        assert_equal(getattr(dweights, name), getattr(module, name).weight.grad)
    for name, parameter in module.block.named_parameters():
        assert_equal(dblock[name], parameter.grad)


def test_the_order_of_the_paper_is_not_what_the_package_runs(model, rng):
    module, weights = model.mtp[0], module_weights(model.mtp[0])
    hidden, embedding = rng.standard_normal((2, B, S, D))
    forward, _ = block_as_argument(model, module)
    want = module(torch.tensor(hidden), torch.tensor(embedding), model.place_tokens(S, None)[0])
    at = np.broadcast_to(np.arange(S), (B, S))
    paper = mtp_forward(weights, hidden, embedding, at, forward, "paper")[0]
    assert relative_error(paper, want.detach().numpy()) > 0.05
    swapped = MtpWeights(weights.enorm, weights.hnorm, swap_order(weights.eh_proj), weights.shared_head_norm)
    assert_equal(mtp_forward(swapped, hidden, embedding, at, forward, "paper")[0], want)


def test_the_objective_of_two_depths_in_packed_windows_equals_autograd(model, rng):
    tokens, document = rng.integers(0, V, (B, S)), np.array([[0] * 7 + [1] * 4, [2] * 11])
    labels = [make_labels(torch.tensor(tokens), torch.tensor(document), k) for k in range(3)]
    hidden = model.hidden_states(torch.tensor(tokens[:, :-1])).detach().requires_grad_()
    deeper = model.mtp_hidden_states(torch.tensor(tokens[:, :-1]), hidden)
    n_main = int((labels[0] != -100).sum())
    nats = [
        F.cross_entropy(model.lm_head(h).flatten(0, 1), label.flatten(), ignore_index=-100, reduction="sum") / n_main
        for h, label in zip(deeper, labels[1:])
    ]
    (0.3 / 2 * sum(nats)).backward()
    depths = [Depth(module_weights(m), *block_as_argument(model, m)) for m in model.mtp]
    embed, head = model.embed_tokens.weight, model.lm_head.weight
    shared = embed.detach().numpy(), head.detach().numpy()
    loss, losses, cache = mtp_loss_forward(depths, *shared, hidden.detach().numpy(), tokens, document, 0.3)
    assert losses == pytest.approx([n.item() for n in nats], rel=TOLERANCE)
    assert loss == pytest.approx(0.15 * sum(losses), rel=TOLERANCE)
    d = mtp_loss_backward(1.0, cache)
    for got, want in ((d.dhidden_BTD, hidden.grad), (d.dembed_tokens_VD, embed.grad), (d.dlm_head_VD, head.grad)):
        assert_equal(got, want)
    for module, dweights, dblock in zip(model.mtp, d.dweights, d.dblocks):
        for name in ("enorm", "hnorm", "eh_proj", "shared_head_norm"):
            assert_equal(getattr(dweights, name), getattr(module, name).weight.grad)
        for name, parameter in module.block.named_parameters():
            assert_equal(dblock[name], parameter.grad)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_the_targets_are_the_packages_labels(rng, depth):
    tokens, document = rng.integers(0, V, (5, S)), np.sort(rng.integers(0, 3, (5, S)), axis=1)
    labels = make_labels(torch.tensor(tokens), torch.tensor(document), depth).numpy()
    assert (labels[:, : S - 1 - depth] == depth_targets(tokens, depth, document)).all()
    assert (labels[:, S - 1 - depth :] == -100).all()


def test_the_compact_block_equals_autograd_through_fused_attention(rng):
    weights, x, dy = CompactBlock.init(rng, 6, 11), *rng.standard_normal((2, B, S, 6))
    at = np.broadcast_to(np.arange(S), (B, S))
    w = {n: torch.tensor(getattr(weights, n), requires_grad=True) for n in CompactBlock.__dataclass_fields__}
    leaf = torch.tensor(x, requires_grad=True)

    def turn(z):
        phase = torch.polar(torch.ones(S, 1, dtype=torch.float64), torch.arange(S, dtype=torch.float64)[:, None])
        return torch.view_as_real(torch.view_as_complex(z.unflatten(-1, (-1, 2)).contiguous()) * phase).flatten(-2)

    normed = F.rms_norm(leaf, (6,), w["input_layernorm"], 1e-6)
    q, k, v = (normed @ w["qkv_proj"].T).unflatten(-1, (3, 3, 2)).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True).transpose(1, 2).flatten(-2)
    a = leaf + mixed @ w["o_proj"].T
    up = F.rms_norm(a, (6,), w["post_attention_layernorm"], 1e-6) @ w["up_proj"].T
    want = a + up.relu().square() @ w["down_proj"].T
    want.backward(torch.tensor(dy))
    y, cache = partial(compact_block_forward, n_heads=3)(weights, x, at)
    dx, dweights = compact_block_backward(dy, cache)
    assert_equal(y, want)
    assert_equal(dx, leaf.grad)
    for name, tensor in w.items():
        assert_equal(getattr(dweights, name), tensor.grad)


class PackageSession:
    """The package's model, latent caches and first MTP module, behind the three methods of the chapter's decoder."""

    def __init__(self, model, capacity=64):
        self.model = model
        self.main = LatentCache.dense(model.config, 1, capacity, dtype=torch.float64)
        self.module = LatentCache.dense(model.config, 1, capacity, layers=1, dtype=torch.float64)

    @torch.no_grad()
    def read(self, tokens_S):
        hidden = self.model.hidden_states(torch.tensor([list(tokens_S)]), cache=self.main)
        return self.model.lm_head(hidden)[0].numpy(), hidden[0].numpy()

    @torch.no_grad()
    def draft(self, hidden_SD, tokens_S):
        rotation, past = self.model.place_tokens(len(hidden_SD), self.module)
        embedding = self.model.embed_tokens(torch.tensor([list(tokens_S)]))
        pair = torch.tensor(hidden_SD)[None], embedding
        out = self.model.mtp[0](*pair, rotation, past=past)
        self.module.advance(len(hidden_SD))
        return self.model.lm_head(out)[0].numpy(), out[0].numpy()

    def roll_back(self, n_target, n_draft):
        self.main.truncate([n_target])
        self.module.truncate([n_draft])


def agreeable(model):
    """Let the module answer nearly as the main model would: drafts then pass and fail."""
    with torch.no_grad():
        for block in [*model.layers, *(m.block for m in model.mtp)]:
            for parameter in block.parameters():
                parameter *= 0.3
        model.mtp[0].eh_proj.weight.zero_()
        model.mtp[0].eh_proj.weight[:, :D] = torch.eye(D)  # the embedding, as the main model's first layer gets it
    return model


@pytest.mark.parametrize("n_drafts", [1, 3])
def test_the_chapters_decoder_drives_the_packages_model_and_the_text_is_the_same(model, rng, n_drafts):
    model, accepted, steps = agreeable(model), 0, 0
    for _ in range(6):
        prompt = rng.integers(0, V, 5).tolist()
        report = speculative_decode(PackageSession(model), prompt, 20, GreedyRule(), n_drafts)
        assert report.tokens == plain_decode(PackageSession(model), prompt, 20, GreedyRule())
        accepted, steps = accepted + sum(report.n_accepted), steps + len(report.n_accepted)
    assert 0 < accepted < n_drafts * steps  # both ways were taken


def test_greedy_verdicts_are_the_packages(rng):
    for _ in range(100):
        logits, drafts = rng.standard_normal((4, 3)), rng.integers(0, 3, 3)
        token, n_accepted = verify_greedily(drafts[None], logits[None])
        stand, last = judge_drafts(torch.tensor(logits), drafts.tolist(), [], SamplingRule(), make_generator(0))
        assert (n_accepted[0], token[0, n_accepted[0]]) == (stand, last)


def test_shaped_distributions_and_residual_are_the_packages(rng):
    logits = rng.standard_normal((7, V))
    for top_k in (0, 1, 5):
        assert_equal(softmax(logits, 0.7, top_k), SamplingRule(0.7, top_k).probabilities(torch.tensor(logits)))
    p, q = softmax(rng.standard_normal((2, 3)))
    seen = np.zeros(3)
    for seed in range(300):  # a draft that p hardly knows: nearly always replaced by a draw from the residual
        weak = np.array([p[:2].sum() - 1e-9, 1e-9, p[2]])
        verdict = judge_drafts(
            torch.tensor(np.log([weak, weak])), [1], [torch.tensor(q)], SamplingRule(1.0), make_generator(seed)
        )
        seen[verdict[1]] += 1
    assert seen / 300 == pytest.approx(residual_distribution(weak, q), abs=0.1)  # 3.5 sigma of a share
