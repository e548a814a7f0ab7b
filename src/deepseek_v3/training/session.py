"""From flags to a trainer that stands ready: data, tokenizer, config, model, stream, and what a run folder records.

RUN/   config.json  tokenizer.json  options.json  metrics.jsonl  checkpoints/  report.html
"""

import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepseek_v3.config import ModelConfig
from deepseek_v3.data.corpus import Corpus, load_corpus
from deepseek_v3.data.packing import PackedStream
from deepseek_v3.data.tokenizer import Tokenizer
from deepseek_v3.device import choose_device
from deepseek_v3.memory import check_memory
from deepseek_v3.model.initialize import draw_in_turn
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.parallel.layout import Layout, Solo, Weights, led
from deepseek_v3.sizing import count_parameters
from deepseek_v3.training.evaluate import cut_evenly
from deepseek_v3.training.machine import choose_precision
from deepseek_v3.training.options import LAYOUT, OptionsError, TrainOptions
from deepseek_v3.training.progress import Progress
from deepseek_v3.training.record import Options, describe_run, merge_options, recorded_options, recorded_precision
from deepseek_v3.training.results import Arithmetic
from deepseek_v3.training.run_folder import OPTIONS, RunLock, check_ours, check_run_folder, standing_folder, write_files
from deepseek_v3.training.trainer import Sampler, Trainer
from deepseek_v3.training.training_state import list_checkpoints, newest_checkpoint
from deepseek_v3.weights.load import build_empty, load_weights, stream_weights
from deepseek_v3.weights.opening import read_stored_config

HELDOUT_BYTES = 200  # a text that is measured has about so many at least
TELL_EVERY_S = 5.0
BF16_STEP = 2.0**-7
WEIGHT_BYTES = 4  # of a weight, of its gradient, of its average
MOMENT_BYTES = {"fp32": 8, "bf16": 4}  # of both moments


def prepare_training(
    options: TrainOptions, *, sampler: Sampler | None = None, progress: Progress | None = None
) -> Trainer:
    """Build everything; a resumed run takes its recorded options, changed where a flag was given.

    The run folder is locked until the training ends.

    Raises:
        OptionsError, DataError, ConfigError, CheckpointError: what cannot work, in one line.
    """
    run = Path(options.run)
    # a run may go on with any number of processes
    options = choose_options(run, options).replace(**{name: getattr(options, name) for name in LAYOUT})
    layout = make_layout(options)
    layout.agree(None)  # everybody has seen the folder before anything is written into it
    lock = led(layout, lambda: RunLock(run), OptionsError)
    try:
        trainer = build_trainer(run, options, layout, sampler, progress if layout.leads else None)
    except BaseException:
        if lock is not None:
            lock.give_up()
        raise
    trainer.lock = lock
    return trainer


def make_layout(options: TrainOptions) -> Layout:
    """Return the layout of one process, or of those that torchrun has started.

    Raises:
        OptionsError: several are asked for, and there is one.
    """
    device = choose_device(options.device)
    if not int(os.environ.get("WORLD_SIZE", "0")):
        for name in LAYOUT:
            if getattr(options, name) > 1:
                raise OptionsError(
                    f"--{name} {getattr(options, name)} needs several processes, started by torchrun: "
                    "see docs/distributed.md"
                )
        return Solo(options.micro_batch, device)
    ways = {name: getattr(options, name) for name in LAYOUT}
    if options.pp > 1:
        from deepseek_v3.parallel.pipeline import Pipeline

        return Pipeline(options.micro_batch, device, **ways)
    from deepseek_v3.parallel.mesh import Mesh

    return Mesh(options.micro_batch, device, **ways)


def choose_options(run: Path, options: Options) -> Options:
    """Return the options to go by, those recorded for a resume; a run folder that cannot serve is refused."""
    check_run_folder(run)
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) and list_checkpoints(run):
        options = options.replace(resume=True)  # torchrun has started all processes again after one had died
    if options.resume:
        newest_checkpoint(run)
        return merge_options(recorded_options(run, type(options)), options)
    if list_checkpoints(run):
        raise OptionsError(f"{run} already holds a run; go on with --resume, or name another folder with --run")
    check_ours(run)
    if (run / OPTIONS).exists():
        recorded_options(run, type(options))  # a start that was killed; somebody else's options.json is refused
    return options


def build_trainer(
    run: Path, options: TrainOptions, layout: Layout, sampler: Sampler | None, progress: Progress | None
) -> Trainer:
    """Read the data, make tokenizer, config, model and stream, go to the checkpoint, and record what the run is."""
    if options.threads:
        torch.set_num_threads(options.threads)
    wanted = count_parameters(base_config(options)).total  # a wrong key or preset is said before the data is read
    check_memory("training this model", round(wanted * bytes_per_weight(options) * layout.here))
    say = progress.note if progress else (lambda text: None)
    scratch = standing_folder(run)
    corpus = load_corpus(
        options.data, options.heldout_fraction, options.text_key, scratch=scratch, watch=tell_reading(say)
    )
    say(corpus.describe())
    if corpus.skipped:
        say(f"{corpus.skipped} files were not text and were left out")
    tokenizer = prepare_tokenizer(options, corpus)
    for note in tokenizer.notes:
        say(note)
    config = prepare_config(options, tokenizer)
    wish = recorded_precision(run) if options.resume and options.precision == "auto" else options.precision
    device = choose_device(options.device)
    precision, peak, why = layout.agree(choose_precision(wish, device))
    say(
        f"precision {precision}: {why}; {peak / 1e9:,.0f} GFLOP/s in matrix products, {torch.get_num_threads()} threads"
    )
    torch.manual_seed(options.seed)
    alone = isinstance(layout, Solo)
    model, weights = (make_model(options, config), ()) if alone else outline_model(options, config)
    stream = PackedStream(
        corpus.train_texts(),
        tokenizer,
        options.seq_len,
        seed=options.seed,
        fim_rate=options.fim_rate,
        lanes=options.lanes,
        scratch=scratch,
    )
    n_bytes = options.eval_kilobytes * 1000
    heldout = cut_evenly(corpus.heldout_texts(max(1, n_bytes // HELDOUT_BYTES)), n_bytes) if n_bytes else []
    arithmetic = Arithmetic(precision, peak, device)
    trainer = Trainer(
        model,
        tokenizer,
        stream,
        heldout,
        options,
        arithmetic=arithmetic,
        layout=layout,
        weights=weights,
        sampler=sampler if alone else None,  # the engine reads weights in one piece
        progress=progress,
    )
    if options.resume:
        trainer.resume(newest_checkpoint(run))
        say(f"going on from step {trainer.step}")
    record = describe_run(options, data=corpus.describe(), digest=corpus.digest, precision=precision)
    text = json.dumps(config.to_dict(), indent=2) + "\n"
    led(layout, lambda: write_files(run, {OPTIONS: record, "config.json": text, **tokenizer.files()}), OptionsError)
    return trainer


def bytes_per_weight(options: TrainOptions) -> int:
    """Return what each weight takes: itself, its gradient, two moments, perhaps its average."""
    moments = options.moments if options.moments != "auto" else "bf16" if options.precision == "fp8" else "fp32"
    return WEIGHT_BYTES * (2 + (options.ema_decay > 0)) + MOMENT_BYTES[moments]


def tell_reading(say: Callable[[str], None]) -> Callable[[int, int], None]:
    """Return what tells how much was read, every few seconds."""
    told = [time.monotonic()]

    def watch(documents: int, n_bytes: int) -> None:
        if documents % 64 == 0 and time.monotonic() - told[0] > TELL_EVERY_S:
            told[0] = time.monotonic()
            say(f"reading: {documents:,} documents, {n_bytes / 1e6:,.0f} MB")

    return watch


def make_model(options: TrainOptions, config: ModelConfig) -> DeepseekV3:
    """Return the model, drawn or with the weights to start from; for a resumed run unfilled."""
    if options.resume:
        return build_empty(config, torch.float32)
    if options.init_from:
        model = build_empty(config, torch.float32)
        load_weights(model, options.init_from)
    else:
        model = DeepseekV3(config)
    if options.nudge:
        nudge("lm_head.weight", model.lm_head.weight)
    return model


def outline_model(options: TrainOptions, config: ModelConfig) -> tuple[DeepseekV3, Weights]:
    """Return what `make_model` does for many processes: the model on `meta`, and its weights one after the other."""
    with torch.device("meta"):
        model = DeepseekV3(config)
    if options.resume:
        return model, ()
    if options.init_from:
        weights = stream_weights(model, options.init_from)
    else:
        weights = draw_in_turn(model, config.initializer_range)
    return model, itertools.starmap(nudge, weights) if options.nudge else weights


@torch.no_grad()
def nudge(name: str, weight: Tensor) -> tuple[str, Tensor]:
    """Move one number by one step of BF16, if it is the head's."""
    if name == "lm_head.weight":
        weight[0, 0] *= 1 + BF16_STEP
    return name, weight


def prepare_tokenizer(options: TrainOptions, corpus: Corpus) -> Tokenizer:
    """Return the given tokenizer, the run's own, that of the weights to start from, or one learned from the data."""
    if options.resume:
        return Tokenizer.from_file(options.run)
    if options.tokenizer:
        return Tokenizer.from_file(options.tokenizer)
    if options.init_from:
        return Tokenizer.from_file(options.init_from)
    return Tokenizer.train(corpus.texts_to_merge(), base_config(options).vocab_size)


def base_config(options: TrainOptions) -> ModelConfig:
    """Return the config that the flags name, before the tokenizer is known."""
    if options.resume:
        return ModelConfig.from_json(Path(options.run) / "config.json")
    if options.init_from:
        config = read_stored_config(options.init_from)
    else:
        config = ModelConfig.from_json(options.config) if options.config else ModelConfig.preset(options.preset)
    return config.replace(**dict(parse_change(change) for change in options.set))


def prepare_config(options: TrainOptions, tokenizer: Tokenizer) -> ModelConfig:
    """Return the config to train: room for the tokenizer, its special ids, the wanted init."""
    config = base_config(options)
    if tokenizer.vocab_size > config.vocab_size:
        raise OptionsError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the config vocab_size={config.vocab_size}; "
            f"give --set vocab_size={-(-tokenizer.vocab_size // 64) * 64}"
        )
    if options.seq_len > config.max_position_embeddings:
        raise OptionsError(
            f"--seq-len {options.seq_len} exceeds max_position_embeddings={config.max_position_embeddings} (see --set)"
        )
    changes: dict[str, Any] = {"initializer_range": options.init_std} if options.init_std else {}
    stops = list(tokenizer.stop_ids)
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": stops if stops[1:] else stops[0]}
    ids["pad_token_id"] = tokenizer.pad_id
    return config.replace(**ids, **changes, torch_dtype="float32", quantization_config=None)


def parse_change(change: str) -> tuple[str, Any]:
    """Read `key=value`; the value as JSON, else as a word."""
    key, separator, value = change.partition("=")
    if not separator:
        raise OptionsError(f"--set {change!r} must be key=value, e.g. --set num_hidden_layers=4")
    try:
        return key.strip(), json.loads(value)
    except json.JSONDecodeError:
        return key.strip(), value
