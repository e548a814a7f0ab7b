"""Same parameters, same work: why are many thin experts better than a few wide ones, and why share some?

Run:       python fine_grained_experts.py
Notebook:  fine_grained_experts.ipynb
Source:    DeepSeekMoE (arXiv:2401.06066) sections 3.1, 3.2; DeepSeek-V3 (arXiv:2412.19437) Eq. (12)
Letters:   N tokens, D model width, E routed experts, A activated per token, F expert hidden; m the number of cuts

Cut every expert into m along its hidden width and activate m times as many: not a parameter, not a product is added,
but the number of teams that a token can be sent to explodes. What every token needs would then be learned by many of
them, unless a few experts are shared: always on, without a gate.
"""

from dataclasses import dataclass, fields
from math import comb

import numpy as np
from expert_routing import (
    numeric_gradient,
    scatter_to_experts,
    sigmoid,
    softmax_gate_backward,
    softmax_gate_forward,
)


@dataclass(frozen=True)
class Segmentation:
    """The shape of an expert layer, and what it costs."""

    n_routed: int
    n_activated: int
    hidden: int
    n_shared: int = 0

    def cut(self, m: int) -> "Segmentation":
        """Cut every expert into m and activate m times as many.

        Raises:
            ValueError: m does not divide the hidden width.
        """
        if m < 1 or self.hidden % m:
            raise ValueError(f"m={m} does not divide the hidden width {self.hidden}; choose a divisor")
        return Segmentation(self.n_routed * m, self.n_activated * m, self.hidden // m, self.n_shared * m)

    def share(self, n: int) -> "Segmentation":
        """Take n experts out of the choice and keep them always on, at equal cost.

        Raises:
            ValueError: no routed expert would be left to activate.
        """
        if not 0 <= n < self.n_activated:
            raise ValueError(f"cannot share {n} of {self.n_activated} activated experts; leave at least one to choose")
        return Segmentation(self.n_routed - n, self.n_activated - n, self.hidden, self.n_shared + n)

    def total_parameters(self, width: int) -> int:
        """Three matrices for each expert, without the router."""
        return 3 * width * self.hidden * (self.n_routed + self.n_shared)

    def active_parameters(self, width: int) -> int:
        """What one token passes through; twice this is its floating-point operations."""
        return 3 * width * self.hidden * (self.n_activated + self.n_shared)

    @property
    def combinations(self) -> int:
        """The number of different teams that a token can be sent to."""
        return comb(self.n_routed, self.n_activated)


def count_grouped_combinations(n_experts: int, n_activated: int, n_group: int, topk_group: int) -> int:
    """Count the teams that touch at most topk_group of n_group equal groups (inclusion and exclusion over groups).

        sum over j of C(G, j) * #{teams that touch exactly these j groups}

    Routing by groups keeps the traffic between nodes bounded; this counts what it gives up.
    """
    size = n_experts // n_group

    def touching_exactly(j: int) -> int:
        return sum((-1) ** i * comb(j, i) * comb((j - i) * size, n_activated) for i in range(j + 1))

    return sum(comb(n_group, j) * touching_exactly(j) for j in range(1, topk_group + 1))


@dataclass(frozen=True)
class SwiGLUExperts:
    """Stacked experts down(silu(gate x) * (up x)), names and layout of the released weights."""

    gate_proj: np.ndarray  # [E, F, D]
    up_proj: np.ndarray  # [E, F, D]
    down_proj: np.ndarray  # [E, D, F]

    @classmethod
    def init(cls, rng: np.random.Generator, n_experts: int, width: int, hidden: int) -> "SwiGLUExperts":
        """Draw every matrix with standard deviation 1/sqrt(inputs)."""
        return cls(
            rng.normal(size=(n_experts, hidden, width)) / width**0.5,
            rng.normal(size=(n_experts, hidden, width)) / width**0.5,
            rng.normal(size=(n_experts, width, hidden)) / hidden**0.5,
        )


def split_experts(experts: SwiGLUExperts, m: int) -> SwiGLUExperts:
    """Cut the *weights* of every expert into m thin experts, neighbours in the stack; their sum is the old expert.

    An expert is a sum over hidden units, so any partition of the units is a partition of the work.
    """
    n, hidden, width = experts.gate_proj.shape
    thin = Segmentation(n, 1, hidden).cut(m).hidden
    rows = (n * m, thin, width)
    down = experts.down_proj.reshape(n, width, m, thin).transpose(0, 2, 1, 3).reshape(n * m, width, thin)
    return SwiGLUExperts(experts.gate_proj.reshape(rows), experts.up_proj.reshape(rows), down)


def merge_experts(experts: SwiGLUExperts) -> SwiGLUExperts:
    """Glue all experts into a single wide one that computes their sum: how shared experts are stored when released."""
    n, hidden, width = experts.gate_proj.shape
    rows = (1, n * hidden, width)
    down = experts.down_proj.transpose(1, 0, 2).reshape(1, width, n * hidden)
    return SwiGLUExperts(experts.gate_proj.reshape(rows), experts.up_proj.reshape(rows), down)


def every_expert_forward(x_ND: np.ndarray, experts: SwiGLUExperts) -> tuple[np.ndarray, tuple]:
    """Run every expert on every token: wasteful, obvious, and the oracle of the sorted dispatch."""
    gate_NEF = np.einsum("nd,efd->nef", x_ND, experts.gate_proj)
    up_NEF = np.einsum("nd,efd->nef", x_ND, experts.up_proj)
    y_NED = np.einsum("nef,edf->ned", gate_NEF * sigmoid(gate_NEF) * up_NEF, experts.down_proj)
    return y_NED, (x_ND, experts, gate_NEF, up_NEF)


def every_expert_backward(dy_NED: np.ndarray, cache: tuple) -> tuple[np.ndarray, SwiGLUExperts]:
    """Return (dx_ND, the gradient of every matrix);  silu'(z) = s(z) (1 + z (1 - s(z)))."""
    x_ND, experts, gate_NEF, up_NEF = cache
    sig_NEF = sigmoid(gate_NEF)
    silu_NEF = gate_NEF * sig_NEF
    dhidden_NEF = np.einsum("ned,edf->nef", dy_NED, experts.down_proj)
    dup_NEF = dhidden_NEF * silu_NEF
    dgate_NEF = dhidden_NEF * up_NEF * sig_NEF * (1 + gate_NEF * (1 - sig_NEF))
    dx_ND = np.einsum("nef,efd->nd", dup_NEF, experts.up_proj) + np.einsum("nef,efd->nd", dgate_NEF, experts.gate_proj)
    return dx_ND, SwiGLUExperts(
        np.einsum("nef,nd->efd", dgate_NEF, x_ND),
        np.einsum("nef,nd->efd", dup_NEF, x_ND),
        np.einsum("ned,nef->edf", dy_NED, silu_NEF * up_NEF),
    )


def fine_grained_forward(x_ND, weight_ED, routed: SwiGLUExperts, shared: SwiGLUExperts, n_activated: int):
    """The DeepSeekMoE layer: y = sum over shared of FFN(x) + sum over chosen of g_i FFN_i(x).

    Source: arXiv:2401.06066, section 3.2, without the residual.
    """
    routing, gate_cache = softmax_gate_forward(x_ND, weight_ED, n_activated)
    gate_NE = scatter_to_experts(routing.gate_NA, routing.index_NA, len(weight_ED))  # zeros where not chosen
    routed_NED, routed_cache = every_expert_forward(x_ND, routed)
    shared_NED, shared_cache = every_expert_forward(x_ND, shared)
    y_ND = np.einsum("ne,ned->nd", gate_NE, routed_NED) + shared_NED.sum(axis=1)
    return y_ND, (routing, gate_NE, routed_NED, gate_cache, routed_cache, shared_cache)


def fine_grained_backward(
    dy_ND: np.ndarray, cache: tuple
) -> tuple[np.ndarray, np.ndarray, SwiGLUExperts, SwiGLUExperts]:
    """Return (dx_ND, dweight_ED, drouted, dshared)."""
    routing, gate_NE, routed_NED, gate_cache, routed_cache, shared_cache = cache
    dgate_NE = np.einsum("nd,ned->ne", dy_ND, routed_NED)
    dx_gate, dweight_ED = softmax_gate_backward(np.take_along_axis(dgate_NE, routing.index_NA, axis=-1), gate_cache)
    dx_routed, drouted = every_expert_backward(gate_NE[..., None] * dy_ND[:, None], routed_cache)
    n_shared = len(shared_cache[1].gate_proj)
    dx_shared, dshared = every_expert_backward(np.repeat(dy_ND[:, None], n_shared, axis=1), shared_cache)
    return dx_gate + dx_routed + dx_shared, dweight_ED, drouted, dshared


def main() -> None:
    """Count teams at equal cost, cut an expert without changing it, and check the gradients."""
    print(f"{'layer':<34}{'total':>12}{'active':>12}  teams")
    coarse = Segmentation(n_routed=16, n_activated=2, hidden=512)
    for name, shape in (
        ("16 experts, 2 active", coarse),
        ("each cut into 2", coarse.cut(2)),
        ("each cut into 4", coarse.cut(4)),
        ("cut into 4, one of them shared", coarse.cut(4).share(1)),
    ):
        print(f"{name:<34}{shape.total_parameters(64):>12,}{shape.active_parameters(64):>12,}  {shape.combinations:,}")
    free, grouped = comb(256, 8), count_grouped_combinations(256, 8, 8, 4)
    print(f"V3: 8 of 256 gives {free:,} teams; within 4 of 8 groups {grouped:,} ({grouped / free:.0%})")

    rng = np.random.default_rng(0)
    x, pull = rng.normal(size=(5, 3)), rng.normal(size=(5, 3))
    wide = SwiGLUExperts.init(rng, 2, 3, 6)
    whole, thin = every_expert_forward(x, wide)[0], every_expert_forward(x, split_experts(wide, 3))[0]
    gap = np.abs(thin.reshape(5, 2, 3, 3).sum(axis=2) - whole).max()
    print(f"an expert cut into 3: the pieces add up to it, largest difference {gap:.0e}")

    weight, shared = rng.normal(size=(7, 3)), SwiGLUExperts.init(rng, 1, 3, 2)
    routed = SwiGLUExperts.init(rng, 7, 3, 2)
    _, _, drouted, dshared = fine_grained_backward(pull, fine_grained_forward(x, weight, routed, shared, 2)[1])
    for name, experts, grads in (("routed", routed, drouted), ("shared", shared, dshared)):
        for field in fields(experts):
            numeric = numeric_gradient(
                lambda: float((fine_grained_forward(x, weight, routed, shared, 2)[0] * pull).sum()),
                getattr(experts, field.name),
            )
            error = np.abs(getattr(grads, field.name) - numeric).max() / np.abs(numeric).max()
            print(f"{name}: largest error of d({field.name}) {error:.0e}")


if __name__ == "__main__":
    main()
