"""Every flag of `deepseek-v3 train`, with the report's recipe as its shape and small sizes as its defaults.

Source: arXiv:2412.19437, section 4.2. This module imports no PyTorch: `--help` stays quick.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

from deepseek_v3.device import DEVICES


@dataclass(frozen=True)
class TrainOptions:
    """Train a model, or go on with one.

    Attributes:
        run: the run folder: config, tokenizer, checkpoints, metrics.jsonl, report.html.
        preset: a named shape.
        config: a config.json instead of a preset.
        set: changes of single keys of the config, as key=value.
        resume: go on from the newest checkpoint of the run folder.
        init_from: start from the weights and tokenizer of this checkpoint folder.
        data: stdlib, a text file, a folder, .jsonl, .parquet, or hf:NAME.
        text_key: the column of the text in rows; by default text, content or body.
        heldout_fraction: part of the documents that is never learned from.
        tokenizer: a tokenizer.json; by default one is learned from the data with the config's vocab_size.
        fim_rate: part of the documents that become fill-in-the-middle (the report: 0.1).
        lanes: documents read in turn, so that the rows of a batch differ; more for long documents.
        seq_len: tokens per row.
        batch_size: rows per step, once the ramp is over.
        batch_size_start: rows per step at the beginning; 0 for no ramp.
        batch_ramp_fraction: part of the steps over which the batch grows (469B of 14.8T tokens).
        micro_batch: rows per forward pass; a step accumulates as many as it needs.
        steps: updates in all.
        lr: peak learning rate.
        warmup_steps: linear from 0.
        constant_fraction: the rate stays at its peak up to this part of the steps (10 of 14.8T tokens).
        decay_fraction: the cosine ends at this part of the steps (14.3 of 14.8T).
        final_fraction: the first final constant ends here, the second begins (14.633 of 14.8T).
        lr_end: the cosine's end and first final constant, as part of the peak (2.2e-5 of 2.2e-4).
        lr_final: the last constant, as part of the peak (7.3e-6 of 2.2e-4).
        beta1: of AdamW.
        beta2: of AdamW.
        adam_eps: of AdamW; the report does not state it.
        weight_decay: on matrices; gains of norms do not decay.
        clip_norm: the gradient's norm is cut to this.
        init_std: of every matrix; 0 keeps the config's initializer_range.
        ema_decay: of the averaged weights; 0 keeps none.
        mtp_weight: lambda, until constant_fraction.
        mtp_weight_final: lambda afterwards.
        balance_alpha: weight of the sequence-wise balance loss.
        bias_speed: gamma, the step of the routing bias.
        bias_stop_fraction: gamma is 0 from this part of the steps on (14.3 of 14.8T).
        precision: fp32, bf16, fp8, or auto: bf16 where this machine multiplies it 1.5 times faster.
        fp8_variant: report, or to compare with: whole-tensor, e5m2-gradients, square-gradients, bf16-weights,
            outliers, whole-tensor-outliers.
        nudge: move one weight by one BF16 step before the first update: what chance alone makes of a run.
        moments: of AdamW, kept in fp32, bf16, or auto: bf16 if the precision is fp8.
        device: cpu, cuda, or auto: a GPU where PyTorch sees one.
        pp: ranks of a pipeline of layers (DualPipeV), where torchrun starts several; it divides their number.
        ep: processes that share the experts, where torchrun starts several; it divides their number (by --pp).
        replicas: copies of the whole weights over the processes; within one they are cut (HSDP).
        cp: processes that share each row, each a section of its tokens (context parallelism); not with --pp.
        recompute: make the activations of blocks again in the backward pass: less memory, one more forward pass.
        threads: of PyTorch; 0 leaves its choice.
        seed: of weights, data order and fill-in-the-middle.
        eval_every: steps between measurements on held-out text; 0 for only the last.
        eval_kilobytes: how much held-out text a measurement reads; 0 for none: it is not examined.
        save_every: steps between checkpoints; 0 for only the last.
        keep: how many checkpoints stay.
        log_every: steps between lines of metrics.jsonl.
        sample_prompts: texts that the report continues.
    """

    run: str = "runs/train"
    preset: str = "nano"
    config: str | None = None
    set: tuple[str, ...] = ()
    resume: bool = False
    init_from: str | None = None
    data: str = "stdlib"
    text_key: str | None = None
    heldout_fraction: float = 0.05
    tokenizer: str | None = None
    fim_rate: float = 0.1
    lanes: int = 32
    seq_len: int = 256
    batch_size: int = 16
    batch_size_start: int = 0
    batch_ramp_fraction: float = 0.469 / 14.8
    micro_batch: int = 8
    steps: int = 2000
    lr: float = 2e-3
    warmup_steps: int = 100
    constant_fraction: float = 10 / 14.8
    decay_fraction: float = 14.3 / 14.8
    final_fraction: float = 14.633 / 14.8
    lr_end: float = 0.1
    lr_final: float = 7.3e-6 / 2.2e-4
    beta1: float = 0.9
    beta2: float = 0.95
    adam_eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    init_std: float = 0.0
    ema_decay: float = 0.0
    mtp_weight: float = 0.3
    mtp_weight_final: float = 0.1
    balance_alpha: float = 1e-4
    bias_speed: float = 1e-3
    bias_stop_fraction: float = 14.3 / 14.8
    precision: str = "auto"
    fp8_variant: str = "report"
    nudge: bool = False
    moments: str = "auto"
    device: str = "auto"
    pp: int = 1
    ep: int = 1
    replicas: int = 1
    cp: int = 1
    recompute: bool = False
    threads: int = 0
    seed: int = 0
    eval_every: int = 200
    eval_kilobytes: int = 64
    save_every: int = 500
    keep: int = 3
    log_every: int = 1
    sample_prompts: tuple[str, ...] = ("def", "The")

    given: ClassVar[frozenset[str]] = frozenset()  # set on an instance: the flags of its command line

    def __post_init__(self) -> None:
        check_options(self)

    def replace(self, **changes) -> "TrainOptions":
        """Return a changed copy, checked again."""
        return dataclasses.replace(self, **changes)


LARGEST, FP32_SMALLEST, FP32_LARGEST = 10**9, 2.0**-126, 3.4e38
CHOICES = {
    "precision": ("fp32", "bf16", "fp8", "auto"),
    "fp8_variant": (
        *("report", "whole-tensor", "e5m2-gradients", "square-gradients", "bf16-weights"),
        *("outliers", "whole-tensor-outliers"),
    ),
    "moments": ("fp32", "bf16", "auto"),
}
COUNTS = ("lanes", "seq_len", "batch_size", "micro_batch", "steps")
LAYOUT = ("pp", "ep", "replicas", "cp")  # of many processes; a run may go on with others
MOST = {"lanes": 10**6, "threads": 4096, "eval_kilobytes": 10**6}


class OptionsError(ValueError):
    """A flag that cannot work; the message names it, its value and the mend."""


def check_options(o: TrainOptions) -> None:
    """Refuse what cannot work.

    Raises:
        OptionsError: naming flag, value and mend.
    """
    for name in ("run", "data"):
        if not getattr(o, name).strip():
            raise OptionsError(f"--{name} is empty; leave it out for {getattr(TrainOptions, name)!r}, or name one")
    for name in (*COUNTS, "keep", "log_every", *LAYOUT):
        if getattr(o, name) < 1 + (name == "seq_len"):
            raise OptionsError(f"--{_flag(name)} {getattr(o, name)} must be at least {1 + (name == 'seq_len')}")
    for name in ("batch_size_start", "warmup_steps", "eval_every", "eval_kilobytes", "save_every", "threads", "seed"):
        if getattr(o, name) < 0:
            raise OptionsError(f"--{_flag(name)} {getattr(o, name)} must not be negative")
    for name in (*COUNTS, "eval_kilobytes", "threads"):
        if getattr(o, name) > MOST.get(name, LARGEST):
            raise OptionsError(f"--{_flag(name)} {getattr(o, name)} must be at most {MOST.get(name, LARGEST):,}")
    if o.seed >= 2**63:
        raise OptionsError(f"--seed {o.seed} must be below 2^63")
    for name in ("lr", "clip_norm", "adam_eps"):
        if not (getattr(o, name) > 0 and math.isfinite(getattr(o, name))):
            raise OptionsError(f"--{_flag(name)} {getattr(o, name)} must be a positive number")
    for name in ("lr", "clip_norm", "adam_eps", "weight_decay", "mtp_weight", "mtp_weight_final", "balance_alpha"):
        if getattr(o, name) > FP32_LARGEST:
            raise OptionsError(f"--{_flag(name)} {getattr(o, name)} is infinite in FP32; take one below 3.4e38")
    if o.adam_eps < FP32_SMALLEST:  # it divides a gradient of 0 by 0
        raise OptionsError(f"--adam-eps {o.adam_eps} is 0 in FP32; take one above {FP32_SMALLEST:.1e}")
    for name in ("mtp_weight", "mtp_weight_final", "balance_alpha", "bias_speed", "weight_decay", "init_std"):
        if not (getattr(o, name) >= 0 and math.isfinite(getattr(o, name))):
            raise OptionsError(f"--{_flag(name)} {getattr(o, name)} must be 0 or more")
    for name in ("beta1", "beta2", "ema_decay"):
        if not 0 <= getattr(o, name) < 1:
            raise OptionsError(f"--{_flag(name)} {getattr(o, name)} must be in [0, 1)")
    for name in ("fim_rate", "lr_end", "lr_final", "batch_ramp_fraction", "bias_stop_fraction"):
        if not 0 <= getattr(o, name) <= 1:
            raise OptionsError(f"--{_flag(name)} {getattr(o, name)} must be in [0, 1]")
    if not 0 <= o.constant_fraction <= o.decay_fraction <= o.final_fraction <= 1:
        raise OptionsError("the fractions must rise: 0 <= constant <= decay <= final <= 1")
    if o.cp > 1 and o.pp > 1:
        raise OptionsError(f"--cp {o.cp} does not go with --pp {o.pp}: a pipeline's stages read whole rows")
    if o.batch_size_start > o.batch_size:
        raise OptionsError(f"--batch-size-start {o.batch_size_start} exceeds --batch-size {o.batch_size}")
    for name, words in CHOICES.items():
        if getattr(o, name) not in words:
            raise OptionsError(f"--{_flag(name)} {getattr(o, name)} must be {', '.join(words[:-1])} or {words[-1]}")
    if o.fp8_variant != "report" and o.precision != "fp8":
        raise OptionsError(
            f"--fp8-variant {o.fp8_variant} is a way to train in FP8: it goes with --precision fp8 alone"
        )
    if o.fp8_variant == "bf16-weights" and o.moments == "fp32":
        raise OptionsError("--fp8-variant bf16-weights has BF16 moments; leave out --moments fp32")
    if o.device not in DEVICES:
        raise OptionsError(f"--device {o.device} must be {', '.join(DEVICES)}")


def _flag(name: str) -> str:
    return name.replace("_", "-")
