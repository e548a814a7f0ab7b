"""The router: golden gate, what the bias may do and may not, the balance loss."""

import pytest
import torch

from deepseek_v3.config import ModelConfig
from deepseek_v3.model.moe import MixtureOfExperts
from deepseek_v3.model.router import Router, RoutingRecord, sequence_balance_loss

DEMO = ModelConfig.preset("demo")
GOLDEN = DEMO.replace(n_routed_experts=8, n_group=4, topk_group=2, num_experts_per_tok=2, hidden_size=8)


def golden_router() -> Router:
    """A router whose scores on the one-hot-like input `torch.ones(1, 1)` are those of the worked example."""
    router = Router(GOLDEN)
    score = torch.tensor([0.10, 0.05, 0.30, 0.20, 0.02, 0.03, 0.25, 0.15])
    with torch.no_grad():
        router.weight.zero_()
        router.weight[:, 0] = torch.logit(score)
    router.e_score_correction_bias.copy_(torch.tensor([-0.3, -0.3, -0.5, -0.5, -0.2, -0.2, -0.3, -0.3]))
    return router


def one_token() -> torch.Tensor:
    return torch.nn.functional.pad(torch.ones(1, 1), (0, 7))


def test_the_golden_gate_masks_groups_with_minus_infinity():
    weight, index, _ = golden_router()(one_token())  # V3 Eq. (13), V3 Eq. (14), V3 Eq. (16)
    assert sorted(index[0].tolist()) == [6, 7]  # a mask of 0.0 would choose experts 0 and 1 of masked groups
    by_expert = dict(zip(index[0].tolist(), weight[0].tolist()))
    assert by_expert[6] == pytest.approx(1.5625)
    assert by_expert[7] == pytest.approx(0.9375)


def test_the_bias_chooses_but_does_not_count():
    """A bias that leaves the choice unchanged leaves the output bit-identical."""
    torch.manual_seed(0)
    moe = MixtureOfExperts(DEMO)
    for p in moe.parameters():
        torch.nn.init.normal_(p, 0, 0.1)
    x = torch.randn(2, 13, DEMO.hidden_size)
    before = moe(x)
    moe.gate.e_score_correction_bias += 0.25  # the same for all
    assert torch.equal(moe(x), before)
    moe.gate.e_score_correction_bias[3] += 100.0
    record = RoutingRecord()
    moe(x, record)
    assert record.counts[0][3] == 26  # now every token goes to expert 3


def test_the_bias_is_a_float32_buffer_whatever_the_model_is_cast_to():
    router = Router(DEMO)
    router.e_score_correction_bias += 0.001
    router.to(torch.bfloat16)
    assert router.weight.dtype == torch.bfloat16
    assert router.e_score_correction_bias.dtype == torch.float32
    assert router.e_score_correction_bias[0] == torch.tensor(0.001)
    assert "e_score_correction_bias" not in dict(router.named_parameters())


@pytest.mark.parametrize("per_token", [1, 2, 3, 5])
def test_the_task_loss_reaches_the_router(per_token):
    """Except at one expert per token with normalised weights: the weight is then 1 whatever the score (known limit)."""
    torch.manual_seed(1)
    config = DEMO.replace(num_experts_per_tok=per_token, n_group=1, topk_group=1)
    moe = MixtureOfExperts(config)
    for p in moe.parameters():
        torch.nn.init.normal_(p, 0, 0.1)
    moe(torch.randn(1, 11, config.hidden_size)).square().sum().backward()
    reached = moe.gate.weight.grad.abs().max() > 1e-5 * moe.experts.down_proj.grad.abs().max()  # beyond rounding
    assert bool(reached) == (per_token > 1)


def test_the_balance_loss_of_the_worked_example():
    score = torch.tensor([[[0.9, 0.1, 0.5, 0.5], [0.8, 0.2, 0.6, 0.4]]])  # V3 Eq. (17), V3 Eq. (18), V3 Eq. (19)
    assert sequence_balance_loss(score, 2).item() == pytest.approx(1.4)


@pytest.mark.parametrize("per_token", [1, 2, 4])
def test_uniform_routing_costs_exactly_one_for_every_k(per_token):
    tokens, experts = 8, 8
    score = torch.full((3, tokens, experts), 0.1)
    for t in range(tokens):
        for a in range(per_token):
            score[:, t, (t + a) % experts] = 0.9
    assert sequence_balance_loss(score, per_token).item() == pytest.approx(1.0)


def test_the_balance_loss_has_a_gradient_ignores_a_tokens_scale_and_is_taken_per_sequence():
    torch.manual_seed(2)
    score = torch.rand(2, 5, 7, requires_grad=True)
    loss = sequence_balance_loss(score, 3)
    loss.backward()
    assert score.grad.abs().max() > 1e-4
    scaled = score.detach() * torch.rand(2, 5, 1)
    assert sequence_balance_loss(scaled, 3).item() == pytest.approx(loss.item(), rel=1e-6)
    alone = [sequence_balance_loss(score[i : i + 1], 3).item() for i in range(2)]
    assert loss.item() == pytest.approx(sum(alone) / 2, rel=1e-6)
    assert loss.item() != pytest.approx(sequence_balance_loss(score.flatten(0, 1)[None], 3).item(), rel=1e-4)


def test_the_v2_gate_takes_softmax_probabilities_as_they_are():
    torch.manual_seed(3)
    config = GOLDEN.replace(model_type="deepseek_v2", scoring_func="softmax", topk_method="group_limited_greedy",
                            norm_topk_prob=False, routed_scaling_factor=16.0)  # fmt: skip
    router = Router(config)
    torch.nn.init.normal_(router.weight)
    x = torch.randn(17, 8)
    weight, index, _ = router(x)
    probability = (x @ router.weight.T).softmax(-1)
    assert torch.allclose(weight, 16 * probability.gather(1, index), rtol=1e-5)
    group_best = probability.unflatten(-1, (4, 2)).amax(-1).topk(2).indices
    assert all(set((index[t] // 2).tolist()) <= set(group_best[t].tolist()) for t in range(17))
    assert not hasattr(router, "e_score_correction_bias")


def drawn_layer(layer: int) -> MixtureOfExperts:
    torch.manual_seed(2)
    moe = MixtureOfExperts(DEMO, layer)
    for p in moe.parameters():
        torch.nn.init.normal_(p, 0, 0.1)
    return moe


def test_a_layer_that_is_computed_again_counts_once():
    """Recomputation of activations runs the forward pass twice, the second time inside of the backward pass."""
    moe, record, plain = drawn_layer(5), RoutingRecord(), RoutingRecord()
    x = torch.randn(2, 13, DEMO.hidden_size, requires_grad=True)
    y = torch.utils.checkpoint.checkpoint(moe, x, record, use_reentrant=False)
    (y.sum() + record.balance_losses[5]).backward()
    again = moe.gate.weight.grad.clone()
    moe.zero_grad()
    y = moe(x, plain)
    (y.sum() + plain.balance_losses[5]).backward()
    assert torch.equal(record.counts[5], plain.counts[5])
    assert record.counts[5].sum() == 2 * 13 * DEMO.num_experts_per_tok
    assert torch.equal(again, moe.gate.weight.grad)


def test_a_record_is_of_one_forward_pass():
    moe, record = drawn_layer(3), RoutingRecord()
    moe(torch.randn(2, 13, DEMO.hidden_size), record)
    with pytest.raises(ValueError, match="layer 3 has routed other tokens"):
        moe(torch.randn(2, 13, DEMO.hidden_size), record)


def test_a_replayed_choice_is_taken_and_its_gates_are_computed_again():
    moe, first = drawn_layer(2), RoutingRecord()
    x = torch.randn(2, 13, DEMO.hidden_size)
    before = moe(x, first)
    moe.gate.e_score_correction_bias[7] += 100.0  # by itself it would now choose otherwise
    again = RoutingRecord(replay=first.choices)
    assert torch.equal(moe(x, again), before)
    assert torch.equal(again.counts[2], first.counts[2])
    weight_NA, index_NA, score_NE = moe.gate(x.flatten(0, 1), first.choices[2])
    chosen = score_NE.gather(1, index_NA)
    assert torch.allclose(weight_NA, DEMO.routed_scaling_factor * chosen / chosen.sum(-1, keepdim=True))
