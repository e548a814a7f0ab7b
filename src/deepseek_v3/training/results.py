"""What a step did and how a training ended, as numbers."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepseek_v3.config import ModelConfig
from deepseek_v3.training.loss import IGNORED, LossParts
from deepseek_v3.training.machine import flops_per_token
from deepseek_v3.training.options import TrainOptions
from deepseek_v3.training.progress import Clock
from deepseek_v3.training.schedule import Settings


@dataclass
class Arithmetic:
    """The precision of the products, the rate measured for it in FLOP/s (0: not measured), and the device."""

    precision: str = "fp32"
    peak: float = 0.0
    device: str = "cpu"


@dataclass
class Outcome:
    """How a training ended."""

    finished: bool
    stopped_by: str
    step: int
    checkpoint: Path


@dataclass
class StepResult:
    """What one step did; `further` is what else its objective, or whoever made its batch, has to tell."""

    applied: bool
    loss: float
    mtp_losses: list[float]
    bits_per_byte: float
    balance_loss: float
    grad_norm: float
    tokens: int
    settings: Settings
    max_vio: float = 0.0
    loads: list[list[float]] = field(default_factory=list)
    further: dict[str, Any] = field(default_factory=dict)


def summarise_step(
    labels_BS: Tensor,
    parts: list[LossParts],
    settings: Settings,
    norm: float,
    byte_length: Tensor,
    add: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> StepResult:
    """Add up the micro-batches of a step.

    Args:
        labels_BS: what the main rows were scored on.
        norm: of the whole gradient, before the clip.
        byte_length: bytes of text that each token stands for.
        add: adds up over all processes.
    """
    depths = range(len(parts[0].mtp_nats))
    n_bytes = int(byte_length[labels_BS.clamp(min=0)][labels_BS != IGNORED].sum())
    sums = [
        sum(float(p.total.detach()) for p in parts),
        sum(p.balance for p in parts),
        sum(float(p.main_nats) for p in parts),
        sum(p.main_rows for p in parts),
        n_bytes,
        labels_BS.numel(),
        *(sum(float(p.mtp_nats[k]) for p in parts) for k in depths),
        *(sum(p.mtp_rows[k] for p in parts) for k in depths),
        *(float(sum(p.further[name] for p in parts)) for name in parts[0].further),
    ]
    summed = add(torch.tensor(sums, dtype=torch.float64, device=labels_BS.device)).tolist()
    total, balance, nats, rows, n_bytes, tokens, *by_depth = summed
    return StepResult(
        applied=math.isfinite(total) and math.isfinite(norm),
        loss=nats / max(1, rows),
        mtp_losses=[by_depth[k] / max(1, by_depth[k + len(depths)]) for k in depths],
        bits_per_byte=nats / math.log(2) / max(1, n_bytes),
        balance_loss=balance,
        grad_norm=norm,
        tokens=int(tokens),
        settings=settings,
        further={name: value / max(1, rows) for name, value in zip(parts[0].further, by_depth[2 * len(depths) :])},
    )


def describe_step(
    result: StepResult, clock: Clock, arithmetic: Arithmetic, config: ModelConfig, options: TrainOptions, step: int
) -> dict[str, Any]:
    """Return the figures of a step that a person watches."""
    rate = clock.tokens_per_second()
    per_token = flops_per_token(config, options.seq_len)
    share = rate * per_token / arithmetic.peak if arithmetic.peak else None
    return {
        "loss": result.loss,
        "mtp_loss": result.mtp_losses[0] if result.mtp_losses else None,
        "bits_per_byte": result.bits_per_byte,
        "tokens_per_s": rate,
        "share_of_peak": share if share is not None and share <= 1 else None,  # above: the peak was measured too low
        "left_s": clock.seconds_per_step() * (options.steps - step),
        **result.further,
    }
