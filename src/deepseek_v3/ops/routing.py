"""The choice of experts: the best by biased score within the best groups.

Letters: N tokens, E experts, G groups, M members of a group, A experts per token.
Source: arXiv:2412.19437, Eqs. (14) and (16); arXiv:2405.04434, section 2.2.
"""

import torch
from torch import Tensor

from deepseek_v3.native.build import run_kernel
from deepseek_v3.ops.checks import check_choice
from deepseek_v3.ops.choice import kernel_serves, weight_lies_well


def choose_experts(
    score_NE: Tensor, bias_E: Tensor | None, per_token: int, groups: int, kept: int, *, best_two: bool
) -> Tensor:
    """Pick the best `per_token` by score and bias within the `kept` best groups, int64 [N, A].

    Args:
        best_two: a group is worth its best two together (V3), else its best (V2).
    """
    check_choice(score_NE, bias_E, per_token, groups, kept)
    known = bias_E is None or (bias_E.dtype == torch.float32 and weight_lies_well(score_NE, bias_E))
    if known and score_NE.dtype == torch.float32 and kernel_serves(score_NE):
        return _choose_by_kernel(score_NE, bias_E, per_token, groups, kept, best_two=best_two)
    biased_NE = score_NE if bias_E is None else score_NE + bias_E  # V3 Eq. (16)
    if groups > 1:  # masked groups get -inf, which no score can lose to
        member_NGM = biased_NE.unflatten(-1, (groups, -1))
        group_NG = member_NGM.topk(2, -1).values.sum(-1) if best_two else member_NGM.amax(-1)
        kept_NG = group_NG.topk(kept, -1, sorted=False).indices
        masked_NG = torch.ones_like(group_NG, dtype=torch.bool).scatter_(1, kept_NG, False)
        biased_NE = member_NGM.masked_fill(masked_NG.unsqueeze(-1), float("-inf")).flatten(1)
    return biased_NE.topk(per_token, -1, sorted=False).indices  # V3 Eq. (14)


def _choose_by_kernel(
    score_NE: Tensor, bias_E: Tensor | None, per_token: int, groups: int, kept: int, *, best_two: bool
) -> Tensor:
    tokens, experts = score_NE.shape
    index_NA = torch.empty(tokens, per_token, dtype=torch.int64)
    run_kernel(
        "choose_experts", score_NE.contiguous(), bias_E, index_NA, tokens, experts, per_token, groups, kept,
        int(best_two), torch.get_num_threads(),
    )  # fmt: skip
    return index_NA
