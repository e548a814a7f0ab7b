"""Expert parallelism: every rank holds a few experts, and the tokens travel to them and back.

Run it:    python expert_parallelism.py
Notebook:  expert_parallelism.ipynb
Source:    arXiv:2412.19437, sections 2.1.2 (node-limited routing), 3.2.2 (two hops, bandwidths), 3.3.3 (FP8 on the way
           there, BF16 on the way back); bytes of a scale: the repository deepseek-ai/DeepEP.
Letters:   N tokens of a rank, D width, F hidden width of an expert, E experts, A chosen by a token; X copies of tokens.

A *node* is a machine of eight GPUs, which talk to each other fast (NVLink); nodes talk to each other slowly (IB). So a
token crosses once to each node that it needs, to the GPU of the same number there, and is handed on inside. The sums
come back the same way: added up inside the node, then one vector for each node and token crosses back.
"""

from collections.abc import Callable
from math import ceil, comb
from typing import NamedTuple

import numpy as np

IB_BYTES_S, NVLINK_BYTES_S = 50e9, 160e9  # report, section 3.2.2
Rounding = Callable[[np.ndarray], np.ndarray]


class Cluster(NamedTuple):
    """Who is where: experts lie on ranks, ranks on nodes, both in order."""

    n_nodes: int = 8
    gpus_per_node: int = 8
    n_experts: int = 256

    @property
    def n_ranks(self) -> int:
        """How many GPUs there are."""
        return self.n_nodes * self.gpus_per_node

    def home(self, expert):
        """The rank that holds an expert."""
        return expert // (self.n_experts // self.n_ranks)

    def node(self, rank):
        """The machine that a rank sits in."""
        return rank // self.gpus_per_node

    def relay(self, source: int, node: int) -> int:
        """The GPU of the same number as the source's, in the node a token goes to."""
        return node * self.gpus_per_node + source % self.gpus_per_node


class Experts(NamedTuple):
    """SwiGLU experts, [E, out, in]."""

    gate_EFD: np.ndarray
    up_EFD: np.ndarray
    down_EDF: np.ndarray


class Route(NamedTuple):
    """The journeys of a batch; a row for each crossing and for each copy that arrives."""

    cross: np.ndarray  # [crossings, 3]: source rank, token, relay; one for each node that the token needs
    copy: np.ndarray  # [X, 2]: row of `cross`, rank where it arrives; one for each rank that the token needs


class Traffic(NamedTuple):
    """Bytes that each rank sends: over IB and NVLink, out to the experts and back."""

    ib_out: np.ndarray
    nvlink_out: np.ndarray
    ib_back: np.ndarray
    nvlink_back: np.ndarray


def choose_within_nodes(score_NE: np.ndarray, cluster: Cluster, n_chosen: int, n_kept: int) -> np.ndarray:
    """Choose the best A experts of the best `n_kept` nodes; a node is worth the sum of its best A / n_kept scores.

    Raises:
        ValueError: the kept nodes hold fewer than A experts.
    Source: arXiv:2412.19437, section 2.1.2; the report calls n_kept M, and has 4 of 8.
    """
    per_node = cluster.n_experts // cluster.n_nodes
    if n_kept * per_node < n_chosen:
        raise ValueError(f"{n_kept} nodes of {per_node} experts do not hold {n_chosen}; keep more nodes")
    by_node = score_NE.reshape(len(score_NE), cluster.n_nodes, per_node)
    worth = np.sort(by_node, axis=2)[:, :, -max(n_chosen // n_kept, 1) :].sum(axis=2)
    kept = np.argsort(-worth, axis=1)[:, :n_kept]
    allowed = np.zeros(worth.shape, bool)
    np.put_along_axis(allowed, kept, True, axis=1)
    masked_NE = np.where(np.repeat(allowed, per_node, axis=1), score_NE, -np.inf)
    return np.argsort(-masked_NE, axis=1)[:, :n_chosen]


def plan_route(chosen: list[np.ndarray], cluster: Cluster) -> Route:
    """Plan for every rank's tokens where they cross and where they arrive: once a node, once a rank.

    Args:
        chosen: for each rank, chosen_NA of its own tokens; ranks may have different numbers of them, or none.
    Raises:
        ValueError: there is not one list of tokens for each rank, or the experts do not divide evenly.
    """
    if len(chosen) != cluster.n_ranks or cluster.n_experts % cluster.n_ranks:
        raise ValueError(f"{len(chosen)} lists and {cluster.n_experts} experts do not fit {cluster.n_ranks} ranks")
    cross, copy = [], []
    for source, chosen_NA in enumerate(chosen):
        for token, experts in enumerate(chosen_NA):
            targets = sorted({int(cluster.home(e)) for e in experts})
            for node in sorted({cluster.node(t) for t in targets}):
                copy += [(len(cross), t) for t in targets if cluster.node(t) == node]
                cross.append((source, token, cluster.relay(source, node)))
    return Route(np.array(cross, int).reshape(-1, 3), np.array(copy, int).reshape(-1, 2))


def dispatch(x: list[np.ndarray], route: Route, rounding: Rounding = np.asarray) -> np.ndarray:
    """Send the tokens out: across to the relays, then on to the ranks. Rounded once, by the sender; relays hand on.

    Returns:
        copy_XD: the row of a token for each rank that it reaches, in the order of `route.copy`.
    """
    source, token, _ = route.cross.T
    starts = np.cumsum([0, *map(len, x)])
    relayed = rounding(np.concatenate(x))[starts[source] + token]
    return relayed[route.copy[:, 0]]


def combine(y_XD: np.ndarray, route: Route, counts: list[int], rounding: Rounding = np.asarray) -> list[np.ndarray]:
    """Bring the results back: added up at the relay of the node, then over nodes at the token's own rank.

    As maps of vectors `dispatch` and `combine` are each other's transpose: the backward pass of one is the other.
    """
    source, token, _ = route.cross.T
    starts = np.cumsum([0, *counts])
    relayed = np.zeros((len(route.cross), y_XD.shape[1]))
    np.add.at(relayed, route.copy[:, 0], rounding(y_XD))
    home = np.zeros((starts[-1], y_XD.shape[1]))
    np.add.at(home, starts[source] + token, rounding(relayed))
    return np.split(home, starts[1:-1])


def run_expert(x_ND: np.ndarray, experts: Experts, e: int) -> np.ndarray:
    """Apply one SwiGLU expert: W_down (silu(W_gate x) * W_up x)."""
    gate_NF = x_ND @ experts.gate_EFD[e].T
    return (gate_NF / (1 + np.exp(-gate_NF)) * (x_ND @ experts.up_EFD[e].T)) @ experts.down_EDF[e].T


def one_machine_forward(x_ND, chosen_NA, gate_NA, experts: Experts) -> np.ndarray:
    """Compute the same layer where all experts are at hand: y = sum_a gate_a expert_a(x)."""
    y_ND = np.zeros_like(x_ND)
    for e in range(len(experts.up_EFD)):
        rows, slot = np.nonzero(chosen_NA == e)
        y_ND[rows] += gate_NA[rows, slot][:, None] * run_expert(x_ND[rows], experts, e)
    return y_ND


def expert_parallel_forward(
    x: list[np.ndarray],
    chosen: list[np.ndarray],
    gate: list[np.ndarray],
    experts: Experts,
    cluster: Cluster,
    out: Rounding = np.asarray,
    back: Rounding = np.asarray,
) -> tuple[list[np.ndarray], Route]:
    """Run the layer on all ranks: dispatch, the experts at home, combine. Each list has an entry for each rank.

    A rank weighs and adds up its experts' results for a token before it sends them: one vector, not one an expert.
    """
    route = plan_route(chosen, cluster)
    copy_XD = dispatch(x, route, out)
    starts = np.cumsum([0, *map(len, x)])
    row = (starts[route.cross[:, 0]] + route.cross[:, 1])[route.copy[:, 0]]  # which token each copy is of
    chosen_XA, gate_XA = np.concatenate(chosen)[row], np.concatenate(gate)[row]
    y_XD = np.zeros_like(copy_XD)
    for e in range(cluster.n_experts):
        here = route.copy[:, 1] == cluster.home(e)
        rows, slot = np.nonzero((chosen_XA == e) & here[:, None])
        y_XD[rows] += gate_XA[rows, slot][:, None] * run_expert(copy_XD[rows], experts, e)
    return combine(y_XD, route, [len(rank) for rank in x], back), route


def fp8_token_bytes(width: int, tile: int = 128) -> int:
    """Count a token in FP8: a byte a number, and a scale of four bytes for each tile."""
    return width + 4 * ceil(width / tile)


def bf16_token_bytes(width: int) -> int:
    """Count a token in BF16: two bytes a number."""
    return 2 * width


def count_traffic(route: Route, cluster: Cluster, out_bytes: int, back_bytes: int) -> Traffic:
    """Count what every rank sends; what stays in its node is not IB, what stays on its GPU is nothing."""
    source, _, relay = route.cross.T
    via, target = relay[route.copy[:, 0]], route.copy[:, 1]
    crosses, moves = cluster.node(source) != cluster.node(relay), via != target
    sent = lambda ranks: np.bincount(ranks, minlength=cluster.n_ranks)  # noqa: E731
    return Traffic(
        sent(source[crosses]) * out_bytes,
        sent(via[moves]) * out_bytes,
        sent(relay[crosses]) * back_bytes,
        sent(target[moves]) * back_bytes,
    )


def expected_crossings(cluster: Cluster, n_chosen: int, n_kept: int | None = None) -> float:
    """Expect how many other nodes a token reaches, if every choice of A experts is as likely.

        kept to M nodes:  M (n - 1) / n               (all M are used, and the own one is as likely as any)
        anywhere:         (n - 1) (1 - C(E - E/n, A) / C(E, A))

    Kept to M it is an upper estimate: now and then the A best lie in fewer than M nodes.
    """
    n, E = cluster.n_nodes, cluster.n_experts
    if n_kept:
        return n_kept * (n - 1) / n
    return (n - 1) * (1 - comb(E - E // n, n_chosen) / comb(E, n_chosen))


def free_experts_per_node() -> float:
    """Count the copies that NVLink can hand on in the time in which one crosses over IB: 160 / 50 = 3.2."""
    return NVLINK_BYTES_S / IB_BYTES_S


def round_to_bf16(x: np.ndarray) -> np.ndarray:
    """Round to 8 significant bits."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.rint(mantissa * 256) / 256, exponent)


def round_to_fp8(x_ND: np.ndarray, tile: int = 128) -> np.ndarray:
    """Round to E4M3 under a power of two for each token and tile: 4 significant bits, steps of 2^-9 at the finest.

    Source: arXiv:2412.19437, section 3.3.3.
    """
    rounded = np.empty_like(x_ND)
    for start in range(0, x_ND.shape[1], tile):
        part = x_ND[:, start : start + tile]
        top = np.maximum(np.abs(part).max(axis=1, keepdims=True), 1e-30)
        scale = 2.0 ** np.ceil(np.log2(top / 448))
        exponent = np.maximum(np.frexp(part / scale)[1], -5)
        step = np.ldexp(1.0, exponent - 4)
        rounded[:, start : start + tile] = np.rint(part / scale / step) * step * scale
    return rounded


def main() -> None:
    """Send the tokens of 64 GPUs to 256 experts, with and without the limit of four nodes, and count."""
    rng, cluster, D = np.random.default_rng(0), Cluster(), 7168
    out_bytes, back_bytes = fp8_token_bytes(D), bf16_token_bytes(D)
    print(f"a token of {D} numbers: {out_bytes:,} bytes out in FP8, {back_bytes:,} back in BF16")
    score = [rng.normal(size=(64, 256)) for _ in range(cluster.n_ranks)]
    for kept in (8, 4):
        route = plan_route([choose_within_nodes(s, cluster, 8, kept) for s in score], cluster)
        traffic, n_tokens = count_traffic(route, cluster, out_bytes, back_bytes), 64 * cluster.n_ranks
        ib, nvlink = (traffic.ib_out + traffic.ib_back).sum(), (traffic.nvlink_out + traffic.nvlink_back).sum()
        seconds = ib / n_tokens / IB_BYTES_S, nvlink / n_tokens / NVLINK_BYTES_S
        crossed, hoped = traffic.ib_out.sum() / out_bytes / n_tokens, expected_crossings(cluster, 8, kept % 8)
        print(f"experts from {kept} nodes: a token crosses to {crossed:.2f} other nodes (expected {hoped:.2f}),")
        print(f"  {ib / n_tokens:,.0f} bytes of IB in {seconds[0] * 1e6:.2f} us, ", end="")
        print(f"{nvlink / n_tokens:,.0f} bytes of NVLink in {seconds[1] * 1e6:.2f} us")
    print(f"one copy for each expert would cross {8 * 7 / 8:.0f} times")
    print(
        f"in the time of one crossing NVLink hands on {free_experts_per_node():.1f} copies: up to 4 x 3.2 = 13 experts"
    )


if __name__ == "__main__":
    main()
