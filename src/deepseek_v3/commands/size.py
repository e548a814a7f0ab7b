"""The command `deepseek-v3 size`: what a config costs, by the arithmetic of `sizing`.

deepseek-v3 size --preset v3-671b
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from deepseek_v3.config import ModelConfig
from deepseek_v3.sizing import (
    BYTES,
    cache_values,
    count_parameters,
    decoding_flops,
    fp8_bytes,
    fp8_scales,
    training_bytes,
    training_flops,
)
from deepseek_v3.sizing_fp8 import fp8_kept_bytes


@dataclass(frozen=True)
class SizeOptions:
    """Print parameters, FLOPs, cache bytes and memory of a config, without building the model.

    Attributes:
        preset: a named shape.
        config: a config.json instead of a preset.
        context: tokens that a query sees; the model's 4,096 of pre-training by default.
        batch: sequences served at once, or trained in one micro-batch.
        json: print one JSON object instead of tables.
    """

    preset: str = "v3-671b"
    config: str | None = None
    context: int = 4096
    batch: int = 1
    json: bool = False


def run_size(options: SizeOptions) -> None:
    """Print the tables, or JSON."""
    if options.context < 1 or options.batch < 1:
        raise ValueError(f"--context {options.context} and --batch {options.batch} must be at least 1")
    config = ModelConfig.from_json(options.config) if options.config else ModelConfig.preset(options.preset)
    if options.json:
        print(json.dumps(gather_figures(config, options.context, options.batch), indent=2))
        return
    print(options.config or options.preset)
    for title, rows in describe(config, context=options.context, batch=options.batch):
        print(f"\n  {title}")
        for name, text in rows:
            print(f"    {name:<32}{text}")


def gather_figures(config: ModelConfig, context: int, batch: int = 1) -> dict[str, Any]:
    """Every figure by its name, for programs."""
    count = count_parameters(config)
    return {
        "parameters": {**dataclasses.asdict(count), "total": count.total},
        "training_flops_per_token": training_flops(config, context),
        "decoding_flops_per_token": decoding_flops(config, context),
        "cache_values_per_token_and_layer": cache_values(config),
        "cache_bytes_per_token": config.cache_width * config.num_hidden_layers * BYTES[config.torch_dtype],
        "training_bytes": training_bytes(config),
        "fp8_kept_bytes": fp8_kept_bytes(config, batch, context),
        "fp8_bytes": fp8_bytes(config),
        "fp8_scales": fp8_scales(config),
    }


def format_bytes(count: float) -> str:
    """Write a byte count in the binary unit that leaves 1 to 4 digits before the point."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:,.2f} {unit}"
        count /= 1024
    return f"{count:,.2f} TiB"


def describe(c: ModelConfig, *, context: int, batch: int) -> list[tuple[str, list[tuple[str, str]]]]:
    """Lay out every figure as titled tables of (name, text)."""
    count, values = count_parameters(c), cache_values(c)
    width = BYTES[c.torch_dtype]
    per_token = {kind: n * c.num_hidden_layers * width for kind, n in values.items()}
    training, kept = training_bytes(c), fp8_kept_bytes(c, batch, context)
    billion = 1e9
    cache = batch * context * per_token["MLA"]
    return [
        (
            "parameters",
            [
                ("main model", f"{count.main:,}"),
                (f"MTP modules ({c.num_nextn_predict_layers})", f"{count.mtp:,}"),
                ("active per token", f"{count.active:,} ({count.active / billion:.2f} B)"),
                ("active without embedding", f"{count.active - count.embedding:,}"),
            ],
        ),
        (
            f"FLOPs per token (context {context:,})",
            [
                ("training, causal", f"{training_flops(c, context) / billion:,.4g} GFLOP"),
                ("decoding, absorbed", f"{decoding_flops(c, context) / billion:,.4g} GFLOP"),
            ],
        ),
        (
            f"cache per token ({c.torch_dtype}, {c.num_hidden_layers} layers)",
            [
                (kind, f"{size:,} B, {values[kind]:,} values per layer ({size / per_token['MLA']:.1f} x MLA)")
                for kind, size in per_token.items()
            ],
        ),
        (
            "memory for training (weights, gradients, moments)",
            [
                ("fp32, this trainer", f"{format_bytes(training['fp32'])} (16 B a parameter)"),
                ("fp8, this trainer", f"{format_bytes(training['fp8'])} (12 B: moments in BF16)"),
                (f"fp8, kept of {batch} x {context:,} tokens", format_bytes(sum(kept.values()))),
                ("as in the V3 report", f"{format_bytes(training['report'])} (14 B a parameter)"),
            ],
        ),
        (
            f"memory for serving (batch {batch}, context {context:,})",
            [
                (f"weights, {c.torch_dtype}", format_bytes(count.total * width)),
                ("weights, FP8 with block scales", format_bytes(fp8_bytes(c))),
                ("latent cache", format_bytes(cache)),
            ],
        ),
    ]
