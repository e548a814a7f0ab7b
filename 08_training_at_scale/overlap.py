"""Overlap: a forward and a backward share a GPU, so that one computes while the other's tokens travel.

Run it:    python overlap.py
Notebook:  overlap.ipynb
Source:    arXiv:2412.19437, section 3.2.1, Fig. 4; 20 of 132 multiprocessors for sending: section 3.2.2.
Letters:   F forward, B backward of inputs, W of weights, FB both chunks as a pair (the report's F&B). Times in seconds.

A block is attention, dispatch, experts (MLP), combine; two of the four are journeys over the network. One chunk alone
must wait for its journeys. Two chunks that go opposite ways need not: while the tokens of one travel, the other
computes. Fig. 4 is an order of ten pieces on two streams; when each runs follows from two rules, as in
`pipeline_schedules.py`: a stream does one thing at a time, and a piece waits for what it reads.
"""

from typing import NamedTuple

from expert_parallelism import IB_BYTES_S, Cluster, bf16_token_bytes, expected_crossings, fp8_token_bytes
from pipeline_schedules import Times, dualpipe_order, one_f_one_b_order, run_schedule

ASSUMED_FLOPS_S = 450e12  # assumed, not measured here: about what the report's own step time comes to
SENDING_SHARE = 20 / 132  # multiprocessors of an H800 that only send and receive


class BlockTimes(NamedTuple):
    """How long each piece of one block takes; COMBINE(B) goes out to the experts, DISPATCH(B) comes back from them."""

    attention_f: float
    attention_b: float
    attention_w: float
    mlp_f: float
    mlp_b: float
    mlp_w: float
    dispatch_f: float
    combine_f: float
    dispatch_b: float
    combine_b: float

    @property
    def computing(self) -> float:
        """All of a forward's and a backward's computing."""
        return sum(self[:6])

    @property
    def sending(self) -> float:
        """All of their journeys."""
        return sum(self[6:])


class Piece(NamedTuple):
    """A piece of work: which, of which block (counted in the chunk's own direction), and what it waits for."""

    name: str
    block: int
    waits_for: tuple[tuple[str, int], ...]


Streams = tuple[list[Piece], list[Piece]]  # what is computed, what is sent, each in its order


def duration_of(piece: Piece, times: BlockTimes) -> float:
    """Look up the time of a piece by its name: ATTN(F) is attention_f."""
    field = piece.name.lower().replace("attn", "attention").replace("(", "_").rstrip(")")
    return getattr(times, field)


def pair_order(n_blocks: int) -> Streams:
    """Order a forward and a backward chunk of `n_blocks` blocks each as Fig. 4 does.

    The forward begins with its first attention, while the gradient of the backward's last combine is on its way; then
    every block repeats one row of the figure.
    """
    compute, network = [Piece("ATTN(F)", 0, ())], [Piece("COMBINE(B)", 0, ())]
    for k in range(n_blocks):
        compute += [  # V3 Fig. 4
            Piece("MLP(B)", k, (("COMBINE(B)", k),)),
            Piece("MLP(W)", k, (("MLP(B)", k),)),
            Piece("MLP(F)", k, (("DISPATCH(F)", k),)),
            Piece("ATTN(B)", k, (("DISPATCH(B)", k),)),
            Piece("ATTN(W)", k, (("ATTN(B)", k),)),
            Piece("ATTN(F)", k + 1, (("COMBINE(F)", k),)),
        ]
        network += [
            Piece("DISPATCH(F)", k, (("ATTN(F)", k),)),
            Piece("DISPATCH(B)", k, (("MLP(B)", k),)),
            Piece("COMBINE(F)", k, (("MLP(F)", k),)),
            Piece("COMBINE(B)", k + 1, (("ATTN(B)", k),)),
        ]
    return compute[:-1], network[:-1]


def run_streams(streams: Streams, times: BlockTimes) -> dict[tuple[str, int], tuple[float, float]]:
    """Start every piece as early as its stream and what it waits for allow; return (name, block) -> (start, end).

    Raises:
        ValueError: the streams wait for each other for ever.
    """
    done: dict[tuple[str, int], tuple[float, float]] = {}
    places, free = [0, 0], [0.0, 0.0]
    while any(place < len(stream) for place, stream in zip(places, streams)):
        before = sum(places)
        for s, stream in enumerate(streams):
            while places[s] < len(stream) and all(n in done for n in stream[places[s]].waits_for):
                piece = stream[places[s]]
                start = max([free[s], *(done[n][1] for n in piece.waits_for)])
                free[s] = start + duration_of(piece, times)
                done[piece.name, piece.block] = start, free[s]
                places[s] += 1
        if sum(places) == before:
            heads = [stream[place][:2] for place, stream in zip(places, streams) if place < len(stream)]
            raise ValueError(f"the streams wait for each other: {heads} can never start")
    return done


def pair_seconds(n_blocks: int, times: BlockTimes) -> float:
    """Time a pair of chunks, F&B, from its first piece to its last."""
    return max(end for _, end in run_streams(pair_order(n_blocks), times).values())


def apart_seconds(n_blocks: int, times: BlockTimes) -> float:
    """Time the same two chunks without overlap: everything after everything."""
    return n_blocks * (times.computing + times.sending)


def block_period(times: BlockTimes) -> float:
    """Compute in closed form how long a block of a long pair takes: its computing, and what no computing covers.

    DISPATCH(F) hides behind MLP(B) and MLP(W)          COMBINE(F) behind ATTN(B) and ATTN(W)
    DISPATCH(B) behind what is left of MLP(W), MLP(F)   COMBINE(B) behind what is left of ATTN(W), ATTN(F)
    """
    t = times
    late_f, late_c = max(0.0, t.dispatch_f - t.mlp_b), max(0.0, t.combine_f - t.attention_b)
    return (
        t.computing
        + max(0.0, late_f - t.mlp_w)
        + max(0.0, t.dispatch_b - max(0.0, t.mlp_w - late_f) - t.mlp_f)
        + max(0.0, late_c - t.attention_w)
        + max(0.0, t.combine_b - max(0.0, t.attention_w - late_c) - t.attention_f)
    )


def count_block_times(tokens: int = 4096, flops_s: float = ASSUMED_FLOPS_S, bytes_s: float = IB_BYTES_S) -> BlockTimes:
    """Count V3's block: operations over a rate that is assumed, bytes over the bandwidth of the report.

    A matrix costs 2 operations a parameter and token in each of F, B and W; the scores of causal attention cost
    2 (T/2) H (K + R + U) forward, twice that in B, and nothing in W.
    """
    D, H, K, R, U, C, Q, T, F, A = 7168, 128, 128, 64, 128, 512, 1536, 4096, 2048, 8
    attention = 2 * (D * Q + Q * H * (K + R) + D * (C + R) + C * H * (K + U) + H * U * D)
    scores, mlp = T * H * (K + R + U), 2 * (3 * D * F * (A + 1) + 256 * D)
    crossings = expected_crossings(Cluster(), A, 4)
    out, back = (crossings * n * tokens / bytes_s for n in (fp8_token_bytes(D), bf16_token_bytes(D)))
    compute = (tokens * n / flops_s for n in (attention + scores, attention + 2 * scores, attention, mlp, mlp, mlp))
    return BlockTimes(*compute, dispatch_f=out, combine_f=back, dispatch_b=back, combine_b=out)


def lend_multiprocessors(times: BlockTimes, share: float = SENDING_SHARE) -> BlockTimes:
    """Slow the computing down by what sending takes of the GPU: 20 of 132 multiprocessors compute nothing."""
    return BlockTimes(*(t / (1 - share) for t in times[:6]), *times[6:])


def scale_sending(times: BlockTimes, ratio: float) -> BlockTimes:
    """Stretch the journeys so that all of them take `ratio` times all computing; the report says about 1."""
    return BlockTimes(*times[:6], *(t * ratio * times.computing / times.sending for t in times[6:]))


def chunk_times(n_blocks: int, times: BlockTimes, *, overlapped: bool) -> Times:
    """Summarise the chunks for `pipeline_schedules`: F, B and W alone wait for their journeys; FB as simulated."""
    t = times
    forward = n_blocks * (t.attention_f + t.dispatch_f + t.mlp_f + t.combine_f)
    weights = n_blocks * (t.attention_w + t.mlp_w)
    backward = n_blocks * (t.combine_b + t.mlp_b + t.dispatch_b + t.attention_b) + weights
    return Times(forward, backward, weights, pair_seconds(n_blocks, t) if overlapped else forward + backward)


def main() -> None:
    """Count what hides in a block of V3, with its bytes as they are and at the report's ratio of one to one."""
    counted = count_block_times()
    print(f"a block of V3, 4,096 tokens, at an assumed {ASSUMED_FLOPS_S / 1e12:.0f} TFLOP/s, both directions:")
    print(f"  computing {counted.computing * 1e3:.1f} ms, sending {counted.sending * 1e3:.1f} ms")
    for name, times in (("as counted", counted), ("sending as long as computing", scale_sending(counted, 1.0))):
        apart, pair = apart_seconds(16, times), pair_seconds(16, times)
        period = block_period(times)
        print(f"{name}: 16 blocks apart {apart * 1e3:.0f} ms, as a pair {pair * 1e3:.0f} ms;")
        print(
            f"  a block takes {period * 1e3:.1f} ms, of which {(period - times.computing) * 1e3:.1f} ms nothing covers"
        )
    lent = lend_multiprocessors(counted)
    print(f"with 20 of 132 multiprocessors for sending a pair takes {pair_seconds(16, lent) * 1e3:.0f} ms")
    P, M, even = 8, 32, scale_sending(counted, 1.0)
    ends = {}
    for name, make in (("1F1B", one_f_one_b_order), ("DualPipe", dualpipe_order)):
        slots = run_schedule(make(P, M), P, chunk_times(4, even, overlapped=True))
        ends[name] = max(rank[-1].end for rank in slots)
    print(f"a step on {P} stages at one to one: 1F1B {ends['1F1B']:.2f} s, DualPipe {ends['DualPipe']:.2f} s")


if __name__ == "__main__":
    main()
