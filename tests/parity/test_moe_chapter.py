"""Chapter 03 against torch autograd, and against the package's router and experts: forward and all gradients, float64.

Both sides do the same sums in another order: 1e-10 relative leaves room for rounding only.
"""

import numpy as np
import pytest
from classic_moe import ClassicMoE, classic_moe_backward, classic_moe_forward
from deepseek_moe import DeepseekMoE, RouterConfig, deepseek_moe_backward, deepseek_moe_forward
from fine_grained_experts import SwiGLUExperts, fine_grained_backward, fine_grained_forward
from load_balancing import (
    communication_balance_backward,
    communication_balance_forward,
    device_balance_backward,
    device_balance_forward,
    expert_balance_backward,
    expert_balance_forward,
    sequence_balance_backward,
    sequence_balance_forward,
)

from utils.gradient_check import relative_error

torch = pytest.importorskip("torch")
F = torch.nn.functional
NAMES = ("gate_proj", "up_proj", "down_proj")


def leaf(array):
    return torch.tensor(array, requires_grad=True)


def assert_same(ours, theirs):
    theirs = theirs.detach().numpy() if hasattr(theirs, "detach") else theirs
    assert relative_error(np.asarray(ours), np.asarray(theirs)) < 1e-10


def torch_swiglu(x, gate_proj, up_proj, down_proj):
    return (F.silu(x @ gate_proj.T) * (x @ up_proj.T)) @ down_proj.T


def torch_deepseek(x, p, bias, config):
    """The layer as one would write it in torch with a loop over tokens: slow and plain."""
    score = torch.sigmoid(x @ p["gate.weight"].T)
    choice = score.detach() + bias
    grouped = choice.reshape(len(x), config.n_group, -1)
    kept = grouped.topk(2, dim=-1).values.sum(-1).topk(config.topk_group, dim=-1).indices
    masked = torch.full_like(grouped, -torch.inf)
    for n in range(len(x)):
        masked[n, kept[n]] = grouped[n, kept[n]]
    index = masked.reshape(choice.shape).topk(config.num_experts_per_tok, dim=-1).indices
    picked = score.gather(-1, index)
    gate = picked / picked.sum(-1, keepdim=True) * config.routed_scaling_factor
    rows = []
    for n in range(len(x)):
        row = torch_swiglu(x[n], *(p[f"shared_experts.{name}"] for name in NAMES))
        for a, e in enumerate(index[n].tolist()):
            row = row + gate[n, a] * torch_swiglu(x[n], *(p[f"experts.{name}"][e] for name in NAMES))
        rows.append(row)
    return torch.stack(rows), score


@pytest.mark.parametrize("config", [RouterConfig(12, 4, 3, 2), RouterConfig(8, 2, 1, 1, routed_scaling_factor=1.0)])
def test_the_deepseek_layer_with_its_balance_loss_is_torch(config, rng):
    n_experts, n_activated = config.n_routed_experts, config.num_experts_per_tok
    weights = DeepseekMoE.init(rng, config, width=7, hidden=5, n_shared_experts=2)
    weights.gate.e_score_correction_bias[:] = rng.normal(size=n_experts) * 0.1
    x, dy = rng.normal(size=(2 * 11, 7)), rng.normal(size=(2 * 11, 7))

    y, cache = deepseek_moe_forward(x, weights, config)
    loss, balance_cache = sequence_balance_forward(cache.score_NE.reshape(2, 11, n_experts), n_activated, 0.3)
    dscore = sequence_balance_backward(1.0, balance_cache).reshape(22, n_experts)
    dx, grads = deepseek_moe_backward(dy, cache, dscore)

    leaves = {name: leaf(array) for name, array in weights.trainable().items()}
    leaf_x = leaf(x)
    theirs, score = torch_deepseek(leaf_x, leaves, torch.tensor(weights.gate.e_score_correction_bias), config)
    score = score.reshape(2, 11, n_experts)
    share = score / score.sum(-1, keepdim=True)
    chosen = torch.zeros_like(score).scatter(-1, score.topk(n_activated, dim=-1).indices, 1.0)
    their_loss = 0.3 * (chosen.mean(1) * n_experts / n_activated * share.mean(1)).sum(-1).mean()
    ((theirs * torch.tensor(dy)).sum() + their_loss).backward()

    assert_same(y, theirs)
    assert loss == pytest.approx(their_loss.item(), rel=1e-12)
    assert_same(dx, leaf_x.grad)
    for name, grad in grads.items():
        assert_same(grad, leaves[name].grad)


def test_the_fine_grained_layer_is_torch(rng):
    x, dy, weight = rng.normal(size=(11, 5)), rng.normal(size=(11, 5)), rng.normal(size=(7, 5))
    routed, shared = SwiGLUExperts.init(rng, 7, 5, 3), SwiGLUExperts.init(rng, 2, 5, 3)
    y, cache = fine_grained_forward(x, weight, routed, shared, 3)
    dx, dweight, drouted, dshared = fine_grained_backward(dy, cache)

    leaf_x, leaf_w = leaf(x), leaf(weight)
    r, s = ([leaf(getattr(experts, name)) for name in NAMES] for experts in (routed, shared))
    score = (leaf_x @ leaf_w.T).softmax(-1)
    gate = torch.zeros_like(score).scatter(-1, (best := score.topk(3, dim=-1)).indices, best.values)
    theirs = sum(gate[:, e, None] * torch_swiglu(leaf_x, *(w[e] for w in r)) for e in range(7))
    theirs = theirs + sum(torch_swiglu(leaf_x, *(w[e] for w in s)) for e in range(2))
    theirs.backward(torch.tensor(dy))

    assert_same(y, theirs)
    assert_same(dx, leaf_x.grad)
    assert_same(dweight, leaf_w.grad)
    for grads, leaves in ((drouted, r), (dshared, s)):
        for name, their_leaf in zip(NAMES, leaves):
            assert_same(getattr(grads, name), their_leaf.grad)


def test_the_classic_layer_is_torch_dropped_tokens_included(rng):
    x, dy, weights = rng.normal(size=(13, 5)), rng.normal(size=(13, 5)), ClassicMoE.init(rng, 3, 5, 7)
    y, cache = classic_moe_forward(x, weights, 2, 0.8)
    dx, grads = classic_moe_backward(dy, cache)

    leaf_x = leaf(x)
    leaves = {name: leaf(getattr(weights, name)) for name in ("weight", "up_proj", "down_proj")}
    score = (leaf_x @ leaves["weight"].T).softmax(-1)
    gate, index = score.topk(2, dim=-1)
    places, seated, rows = 7, [0, 0, 0], [torch.zeros(5, dtype=torch.float64) for _ in range(13)]  # ceil(.8 * 26 / 3)
    for a in range(2):
        for n in range(13):
            e = int(index[n, a])
            if seated[e] < places:
                seated[e] += 1
                rows[n] = rows[n] + gate[n, a] * (F.relu(leaf_x[n] @ leaves["up_proj"][e].T) @ leaves["down_proj"][e].T)
    assert sum(seated) < 26  # some were dropped
    theirs = torch.stack(rows)
    theirs.backward(torch.tensor(dy))
    assert_same(y, theirs)
    assert_same(dx, leaf_x.grad)
    for name, their_leaf in leaves.items():
        assert_same(getattr(grads, name), their_leaf.grad)


@pytest.mark.parametrize("level", ["expert", "device", "communication"])
def test_the_balance_losses_of_v2_are_torch(level, rng):
    score = rng.dirichlet(np.ones(6), size=11)
    index = np.argsort(-score, axis=-1)[:, :2]
    share = leaf(score)
    chosen = torch.zeros_like(share).scatter(-1, torch.tensor(index), 1.0)
    frequency, mean = chosen.mean(0) * 6 / 2, share.mean(0)
    if level == "expert":
        ours, backward, sizes = expert_balance_forward, expert_balance_backward, ()
        theirs = 0.3 * (frequency * mean).sum()
    elif level == "device":
        ours, backward, sizes = device_balance_forward, device_balance_backward, (3,)
        theirs = 0.3 * (frequency.reshape(3, 2).mean(1) * mean.reshape(3, 2).sum(1)).sum()
    else:
        ours, backward, sizes = communication_balance_forward, communication_balance_backward, (3, 2)
        sent = (chosen.reshape(11, 3, 2).sum(-1) > 0).double().sum(0) * 3 / (2 * 11)
        theirs = 0.3 * (sent * mean.reshape(3, 2).sum(1)).sum()
    theirs.backward()
    loss, cache = ours(score, index, *sizes, 0.3)
    assert loss == pytest.approx(theirs.item(), rel=1e-12)
    assert_same(backward(1.0, cache), share.grad)


def package_layer(config, width, hidden, n_shared):
    """The package's layer in float64 with the chapter's sizes."""
    from deepseek_v3.config import ModelConfig
    from deepseek_v3.model.moe import MixtureOfExperts

    model_config = ModelConfig(
        vocab_size=11,
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=1,
        num_attention_heads=1,
        kv_lora_rank=2,
        qk_nope_head_dim=2,
        qk_rope_head_dim=2,
        v_head_dim=2,
        moe_intermediate_size=hidden,
        n_routed_experts=config.n_routed_experts,
        n_shared_experts=n_shared,
        num_experts_per_tok=config.num_experts_per_tok,
        n_group=config.n_group,
        topk_group=config.topk_group,
        routed_scaling_factor=config.routed_scaling_factor,
    )
    return MixtureOfExperts(model_config).double()


@pytest.mark.parametrize("config", [RouterConfig(12, 4, 3, 2), RouterConfig(7, 3, 1, 1, routed_scaling_factor=1.0)])
def test_the_deepseek_layer_is_the_package_layer_forward_and_backward(config, rng):
    from deepseek_v3.model.router import RoutingRecord

    n_experts, hidden = config.n_routed_experts, 5
    weights = DeepseekMoE.init(rng, config, width=7, hidden=hidden, n_shared_experts=2)
    weights.gate.e_score_correction_bias[:] = rng.normal(size=n_experts) * 0.1
    layer = package_layer(config, 7, hidden, 2)
    experts, shared = weights.experts, weights.shared_experts
    state = {
        "gate.weight": weights.gate.weight,
        "gate.e_score_correction_bias": weights.gate.e_score_correction_bias,
        "experts.gate_up_proj": np.concatenate([experts.gate_proj, experts.up_proj], axis=1),
        "experts.down_proj": experts.down_proj,
        **{f"shared_experts.{name}.weight": getattr(shared, name) for name in NAMES},
    }
    layer.load_state_dict({name: torch.tensor(array) for name, array in state.items()})
    x, dy = rng.normal(size=(2, 11, 7)), rng.normal(size=(2, 11, 7))

    y, cache = deepseek_moe_forward(x.reshape(22, 7), weights, config)
    score_BSE = cache.score_NE.reshape(2, 11, n_experts)
    loss, balance_cache = sequence_balance_forward(score_BSE, config.num_experts_per_tok, 0.3)
    dscore = sequence_balance_backward(1.0, balance_cache).reshape(22, n_experts)
    dx, grads = deepseek_moe_backward(dy.reshape(22, 7), cache, dscore)

    record, leaf_x = RoutingRecord(), leaf(x)
    theirs = layer(leaf_x, record)
    their_loss = 0.3 * record.balance_losses[0]
    ((theirs * torch.tensor(dy)).sum() + their_loss).backward()

    assert cache.load_E.tolist() == record.counts[0].tolist()
    assert_same(y.reshape(2, 11, 7), theirs)  # V3 Eq. (12), V3 Eq. (13), V3 Eq. (14), V3 Eq. (15), V3 Eq. (16)
    assert loss == pytest.approx(their_loss.item(), rel=1e-12)
    assert_same(dx.reshape(2, 11, 7), leaf_x.grad)
    assert_same(grads["gate.weight"], layer.gate.weight.grad)
    dgate_up = np.concatenate([grads["experts.gate_proj"], grads["experts.up_proj"]], axis=1)
    assert_same(dgate_up, layer.experts.gate_up_proj.grad)
    assert_same(grads["experts.down_proj"], layer.experts.down_proj.grad)
    for name in NAMES:
        assert_same(grads[f"shared_experts.{name}"], getattr(layer.shared_experts, name).weight.grad)
