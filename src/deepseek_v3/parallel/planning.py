"""What a layout of thousands of processes would cost: memory, waiting, traffic, hours; counted, calibrated, predicted.

    forecast = make_plan(Layout of the report)

Three kinds of number. *Counted*: weights, operations and bytes follow from the config and the layout. *Calibrated*: one
published time, the report's 180K GPU hours a trillion tokens, gives the rate at which its own layout computes; its
hours come out as they went in. *Predicted*: whatever another layout's order of work makes of that rate.

Letters: P ranks of the pipeline, M micro-batches, L layers, D width, T length, A experts a token.
Source: arXiv:2412.19437, sections 3.2, 3.4 and 4.2, Tables 1 and 2.
"""

from dataclasses import dataclass
from math import comb
from typing import NamedTuple

from deepseek_v3.config import ModelConfig
from deepseek_v3.config_values import FP8_BLOCK
from deepseek_v3.parallel.stages import STAGES, Stage, split_layers, stages_of_rank
from deepseek_v3.parallel.timetable import Order, Times, bubbles, list_actions, makespan, most_held, play
from deepseek_v3.sizing import attention_flops, attention_parameters, feed_forward_parameters
from deepseek_v3.sizing_fp8 import block_kept_bytes

HOURS_PER_TRILLION = 180e3  # of the report, on its 2,048 H800
MOST_GPUS, MOST_STEPS = 65_536, 200_000
WEIGHT, GRADIENT, MASTER, MOMENTS, STREAM = 2, 4, 4, 4, 4  # bytes: BF16, FP32, FP32, two of BF16, residual in FP32


class PlanError(ValueError):
    """A layout that does not divide, or cannot run; the message names the mend."""


@dataclass(frozen=True)
class Placing:
    """A model and how it is laid out.

    Attributes:
        gpus: of all; pp: ranks of the pipeline; ep: processes that share the experts.
        sequences: of a step, each of `length` tokens, `micro_batch` of them at a time.
        per_machine: GPUs that talk without a network.
    """

    config: ModelConfig
    gpus: int = 2048
    pp: int = 16
    ep: int = 64
    schedule: str = "DualPipeV"
    sequences: int = 15360
    length: int = 4096
    micro_batch: int = 1
    per_machine: int = 8
    recompute: bool = False

    @property
    def dp(self) -> int:
        """Processes that hold the same layers."""
        return self.gpus // self.pp

    @property
    def micro_batches(self) -> int:
        """Micro-batches of each in a step."""
        return self.sequences // (self.dp * self.micro_batch)


class RankPlan(NamedTuple):
    """What a rank of the pipeline holds, in bytes but for the first three; its process with the largest part."""

    layers: str
    part: int
    whole: int
    weights: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.optimizer + self.activations


class Pace(NamedTuple):
    """How a step runs: FLOPs of one rank from begin to end, shares of the time that ranks wait on average."""

    makespan: float
    waiting: float
    waiting_equal: float


def check_placing(p: Placing) -> None:
    """Refuse what does not divide.

    Raises:
        PlanError: naming flag, value and mend.
    """
    for name in ("gpus", "pp", "ep", "sequences", "length", "micro_batch", "per_machine"):
        if getattr(p, name) < 1:
            raise PlanError(f"--{FLAGS.get(name, name)} {getattr(p, name)} must be at least 1")
    if p.gpus > MOST_GPUS:
        raise PlanError(f"--gpus {p.gpus} must be at most {MOST_GPUS:,}")
    if p.gpus % p.pp:
        raise PlanError(f"--pp {p.pp} must divide --gpus {p.gpus}")
    if p.dp % p.ep:
        raise PlanError(f"--ep {p.ep} must divide the {p.dp} processes that hold the same layers (--gpus / --pp)")
    experts = p.config.n_routed_experts
    if p.ep > 1 and (experts is None or experts % p.ep):
        raise PlanError(f"--ep {p.ep} must divide n_routed_experts={experts}")
    if p.sequences % (p.dp * p.micro_batch):
        near = max(1, round(p.sequences / (p.dp * p.micro_batch))) * p.dp * p.micro_batch
        raise PlanError(
            f"--batch-size {p.sequences} cannot be shared by {p.dp} processes in micro-batches of {p.micro_batch}; "
            f"give {near}"
        )
    if p.pp * p.micro_batches > MOST_STEPS:
        raise PlanError(
            f"{p.micro_batches:,} micro-batches on {p.pp} ranks are too many to play through; "
            f"give a smaller --batch-size, or a larger --micro-batch"
        )


FLAGS = {"sequences": "batch-size", "length": "seq-len", "micro_batch": "micro-batch", "per_machine": "per-machine"}


def place_stages(p: Placing) -> tuple[list[Stage], list[list[Stage]]]:
    """Return the stages, and those of each rank.

    Raises:
        PlanError: more stages than layers.
    """
    per_rank = STAGES[p.schedule] if p.pp > 1 else 1
    try:
        stages = split_layers(p.config.num_hidden_layers, p.config.num_nextn_predict_layers, p.pp * per_rank)
    except ValueError as error:
        raise PlanError(str(error)) from None
    return stages, [[stages[i] for i in stages_of_rank(rank, p.pp, per_rank)] for rank in range(p.pp)]


# -- time --------------------------------------------------------------------------------------------------------------


def stage_times(p: Placing, stage: Stage) -> Times:
    """Return the FLOPs of a micro-batch at a stage: products 1 forward, 1 for inputs, 1 for weights; scores 1, 2, 0."""
    c, tokens = p.config, p.micro_batch * p.length
    layers = list(stage.layers)
    weights = 0
    if stage.last:
        extra = range(c.num_hidden_layers, c.num_hidden_layers + c.num_nextn_predict_layers)
        layers += list(extra)
        weights += (1 + len(extra)) * c.vocab_size * c.hidden_size + c.hidden_size
        weights += len(extra) * (3 * c.hidden_size + 2 * c.hidden_size**2)
    for i in layers:
        weights += attention_parameters(c) + 2 * c.hidden_size + feed_forward_parameters(c, i, active=True)
    products = 2.0 * weights * tokens
    scores = len(layers) * attention_flops(c, p.length / 2) / c.num_hidden_layers * tokens
    return Times(products + scores, products + 2 * scores, products)


def order_of(p: Placing) -> Order:
    """Return what each rank does, in PyTorch's order.

    Raises:
        PlanError: too few micro-batches.
    """
    try:
        return list_actions(p.schedule if p.pp > 1 else "1F1B", p.pp, p.micro_batches)
    except ValueError as error:
        raise PlanError(f"{error}; give a larger --batch-size, or a smaller --pp") from None


def find_pace(p: Placing, order: Order) -> Pace:
    """Play a step through, with stages as they are and with equal ones."""
    stages, _ = place_stages(p)
    real, equal = play(order, [stage_times(p, s) for s in stages]), play(order, [Times()] * len(stages))
    shares = [sum(bubbles(x)) / len(x) / makespan(x) for x in (real, equal)]
    return Pace(makespan(real), *shares)


def calibrated_rate() -> float:
    """Return the FLOP/s of a GPU that make the report's layout take the report's hours."""
    report = Placing(ModelConfig.preset("v3-671b"))
    seconds = HOURS_PER_TRILLION * 3600 * report.sequences * report.length / 1e12 / report.gpus
    return find_pace(report, order_of(report)).makespan / seconds


# -- memory ------------------------------------------------------------------------------------------------------------


def stage_held(p: Placing, stage: Stage) -> float:
    """Return the bytes that a micro-batch leaves at a stage until its backward pass."""
    c = p.config
    layers = list(stage.layers)
    if stage.last:
        layers += range(c.num_hidden_layers, c.num_hidden_layers + c.num_nextn_predict_layers)
    if p.recompute:
        return float(len(layers) * STREAM * p.micro_batch * p.length * c.hidden_size)
    return float(sum(block_kept_bytes(c, i, p.micro_batch, p.length) for i in layers))


def plan_memory(p: Placing, order: Order) -> list[RankPlan]:
    """Count what each rank holds: weights by the real cut, activations by those in flight.

    A pipeline gathers its weights once a step and keeps them, with their gradients (as the report); without one they
    are gathered block by block.
    """
    from deepseek_v3.parallel.rehearsal import rehearse

    stages, ranks = place_stages(p)
    held = [stage_held(p, stage) for stage in stages]
    again = max(block_kept_bytes(p.config, i, p.micro_batch, p.length) for i in range(p.config.num_hidden_layers))
    plans = []
    for rank, (own, part) in enumerate(zip(ranks, rehearse(p.config, ranks, p.dp, p.ep))):
        gathered = part.whole if p.pp > 1 else part.largest
        gradients = part.whole if p.pp > 1 else part.part + part.largest
        activations = most_held(order[rank], held) + (again if p.recompute else 0)
        plans.append(
            RankPlan(
                describe_stages(own, p.config),
                part.part,
                part.whole,
                WEIGHT * gathered + GRADIENT * gradients,
                (MASTER + MOMENTS) * part.part,
                round(activations),
            )
        )
    return plans


def describe_stages(stages: list[Stage], c: ModelConfig) -> str:
    """Name the layers of a rank."""
    words = []
    for stage in stages:
        words += ["embedding"] * stage.first
        if stage.layers:
            first, last = stage.layers[0], stage.layers[-1]
            words.append(f"{first}" if first == last else f"{first}-{last}")
        words += ["head"] * stage.last + [f"{c.num_nextn_predict_layers} MTP"] * (
            stage.last and c.num_nextn_predict_layers > 0
        )
    return " + ".join(words)


# -- traffic -----------------------------------------------------------------------------------------------------------


def crossings(p: Placing) -> float:
    """Return how many other machines a token is sent to in a layer: as limited by groups, else by chance.

    It is an upper estimate where groups limit it: now and then the best experts lie in fewer.
    """
    c, machines = p.config, max(1, p.ep // p.per_machine)
    experts, chosen = c.n_routed_experts, c.num_experts_per_tok
    if experts is None or machines == 1:
        return 0.0
    if c.n_group == machines and c.topk_group:
        return c.topk_group * (machines - 1) / machines
    away = experts - experts // machines
    return (machines - 1) * (1 - comb(away, chosen) / comb(experts, chosen))


def count_traffic(p: Placing, plans: list[RankPlan]) -> dict[str, float]:
    """Return the bytes that a GPU sends in a step, the mean over ranks; experts' between machines alone."""
    c = p.config
    layers = range(c.num_hidden_layers + c.num_nextn_predict_layers)
    moe = sum(c.is_moe_layer(i) for i in layers) / p.pp
    tokens = p.micro_batches * p.micro_batch * p.length
    out = c.hidden_size + 4 * -(-c.hidden_size // FP8_BLOCK)  # FP8 with scales there, BF16 back
    stages = len(place_stages(p)[0])
    whole = sum(plan.whole for plan in plans) / len(plans)
    share = (p.dp - 1) / p.dp
    return {
        "experts, out in FP8": 2 * tokens * moe * crossings(p) * out,  # forward and backward
        "experts, back in BF16": 2 * tokens * moe * crossings(p) * WEIGHT * c.hidden_size,
        "between stages": 2 * tokens * WEIGHT * c.hidden_size * (stages - 1) / p.pp,
        "weights gathered": whole * share * WEIGHT * (1 if p.pp > 1 else 2 * p.micro_batches),
        "gradients summed": whole * share * GRADIENT * (1 if p.pp > 1 else p.micro_batches),
    }
