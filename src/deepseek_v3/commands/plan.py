"""The command `deepseek-v3 plan`: what a training on thousands of GPUs would hold, wait for, send and cost.

deepseek-v3 plan --preset v3-671b --gpus 2048 --pp 16 --ep 64
"""

import json
import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from deepseek_v3.commands.size import format_bytes
from deepseek_v3.config import ModelConfig
from deepseek_v3.sizing import BYTES, count_parameters, training_flops

if TYPE_CHECKING:
    from deepseek_v3.parallel.planning import Placing

WIDTH = 120  # of a table that goes into a file


@dataclass(frozen=True)
class PlanOptions:
    """Plan a training on many GPUs: memory of each rank, waiting of the pipeline, traffic, hours and money.

    Attributes:
        preset: a named shape.
        config: a config.json instead of a preset.
        gpus: of all.
        pp: ranks of the pipeline; 1 for none.
        ep: processes that share the experts of a layer.
        schedule: of the pipeline.
        batch_size: sequences of a step.
        seq_len: tokens of a sequence.
        micro_batch: sequences of a forward pass.
        recompute: blocks keep their input alone, as `train --recompute`.
        tokens: of the whole training.
        price: dollars of a GPU hour.
        memory_gb: of a GPU, to hold the ranks against.
        json: print one JSON object instead of tables.
    """

    preset: str = "v3-671b"
    config: str | None = None
    gpus: int = 2048
    pp: int = 16
    ep: int = 64
    schedule: Literal["1F1B", "ZBV", "DualPipeV"] = "DualPipeV"
    batch_size: int = 15360
    seq_len: int = 4096
    micro_batch: int = 1
    recompute: bool = False
    tokens: float = 14.8e12
    price: float = 2.0
    memory_gb: float = 80.0
    json: bool = False


def run_plan(options: PlanOptions) -> None:
    """Print the tables, or JSON."""
    for name in ("tokens", "price", "memory_gb"):
        if not 0 < getattr(options, name) < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(options, name)} must be a positive number")
    from deepseek_v3.parallel.planning import Placing

    config = ModelConfig.from_json(options.config) if options.config else ModelConfig.preset(options.preset)
    placing = Placing(
        config, options.gpus, options.pp, options.ep, options.schedule, options.batch_size, options.seq_len,
        options.micro_batch, recompute=options.recompute,
    )  # fmt: skip
    figures = gather_plan(placing, options)
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        print_plan(figures, placing, options)


def gather_plan(p: "Placing", options: PlanOptions) -> dict[str, Any]:
    """Every figure by its name, for programs.

    Raises:
        PlanError: a layout that does not divide.
    """
    from deepseek_v3.parallel import planning

    planning.check_placing(p)
    order = planning.order_of(p)
    ranks = planning.plan_memory(p, order)
    pace = planning.find_pace(p, order)
    rate = planning.calibrated_rate()
    step_s = pace.makespan / rate
    hours = step_s / 3600 * p.gpus * options.tokens / (p.sequences * p.length)
    count, flops = count_parameters(p.config), training_flops(p.config, p.length)
    return {
        "parameters": count.main,
        "active": count.active,
        "training_flops_per_token": flops,
        "cache_bytes_per_token": p.config.cache_width * p.config.num_hidden_layers * BYTES[p.config.torch_dtype],
        "micro_batches": p.micro_batches,
        "ranks": [{**rank._asdict(), "total": rank.total} for rank in ranks],
        "waiting": pace.waiting,
        "waiting_with_equal_stages": pace.waiting_equal,
        "sent_bytes": planning.count_traffic(p, ranks),
        "calibrated_flops_s": rate,
        "step_s": step_s,
        "is_the_report": p == planning.Placing(ModelConfig.preset("v3-671b"), recompute=p.recompute),
        "steps": options.tokens / (p.sequences * p.length),
        "gpu_hours": hours,
        "days": hours / p.gpus / 24,
        "dollars": hours * options.price,
        "flops_s_per_gpu": flops * p.sequences * p.length / step_s / p.gpus,
    }


def print_plan(found: dict[str, Any], p: "Placing", options: PlanOptions) -> None:
    """Print the tables."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    kind = f"{options.schedule}, {p.pp} ranks" if p.pp > 1 else "no pipeline"
    name = escape(options.config or options.preset)
    console.print(
        f"[bold]{name}[/bold] on {p.gpus:,} GPUs: {kind}; {p.dp} processes for the same "
        f"layers, {p.ep} share the experts; {p.sequences:,} x {p.length:,} tokens in {p.micro_batches} micro-batches",
        soft_wrap=True,
    )
    table = Table("rank", "layers", box=None, header_style="bold", pad_edge=False)
    for title in ("own weights", "gathered", "weights, gradients", "optimizer", "activations", "all"):
        table.add_column(title, justify="right")
    for i, rank in enumerate(found["ranks"]):
        sizes = [format_bytes(rank[name]) for name in ("weights", "optimizer", "activations", "total")]
        over = "[red]" if rank["total"] > options.memory_gb * 2**30 else ""
        row = (str(i), rank["layers"], f"{rank['part'] / 1e6:,.1f} M", f"{rank['whole'] / 1e6:,.1f} M", *sizes)
        table.add_row(*row[:-1], over + row[-1])
    console.print(table)
    worst = max(rank["total"] for rank in found["ranks"])
    if worst > options.memory_gb * 2**30:
        mend = "more --pp or --ep" if p.recompute else "--recompute"
        console.print(f"[red]{format_bytes(worst)} of {options.memory_gb:g} GiB do not fit; try {mend}[/red]")
    for title, rows in describe_plan(found, p, options):
        console.print(f"\n  [bold]{title}[/bold]")
        for name, text in rows:
            console.print(f"    {name:<34}{text}", soft_wrap=True)


def count_out(count: int) -> str:
    """Write a number of weights in billions, or in millions."""
    return f"{count / 1e9:,.2f} B" if count >= 1e9 else f"{count / 1e6:,.2f} M"


def describe_plan(found: dict[str, Any], p: "Placing", options: PlanOptions) -> list[tuple[str, list[tuple[str, str]]]]:
    """Lay the rest out as titled tables: what is counted, calibrated, predicted."""
    sent = [(name, format_bytes(size)) for name, size in found["sent_bytes"].items()]
    whose = "calibrated: as published" if found["is_the_report"] else "predicted"
    return [
        (
            "counted",
            [
                ("parameters, no MTP", f"{count_out(found['parameters'])}, active {count_out(found['active'])}"),
                ("training, causal", f"{found['training_flops_per_token'] / 1e9:,.4g} GFLOP a token"),
                ("latent cache", f"{found['cache_bytes_per_token']:,} B a token"),
                ("ranks wait, stages alike", f"{found['waiting_with_equal_stages']:.1%} of a step"),
                ("ranks wait, stages by FLOPs", f"{found['waiting']:.1%} of a step"),
            ],
        ),
        ("sent by a GPU in a step, counted", [*sent, ("all", format_bytes(sum(found["sent_bytes"].values())))]),
        (
            "calibrated on the report's 180K GPU hours a trillion tokens",
            [("a GPU at work", f"{found['calibrated_flops_s'] / 1e12:,.1f} TFLOP/s")],
        ),
        (
            whose,
            [
                ("a step", f"{found['step_s']:,.4g} s, {found['flops_s_per_gpu'] / 1e12:,.1f} TFLOP/s a GPU"),
                (f"{options.tokens / 1e12:g} T tokens", f"{found['steps']:,.0f} steps, {found['days']:,.1f} days"),
                ("GPU hours", f"{found['gpu_hours'] / 1e3:,.5g}K"),
                (f"at ${options.price:g} an hour", f"${found['dollars'] / 1e6:,.3f} M"),
            ],
        ),
    ]
