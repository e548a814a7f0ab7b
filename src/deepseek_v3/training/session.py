"""From flags to a trainer that stands ready: data, tokenizer, config, model, stream, and what a run folder records.

RUN/   config.json  tokenizer.json  options.json  metrics.jsonl  checkpoints/  report.html
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from deepseek_v3.config import ModelConfig
from deepseek_v3.data.corpus import Corpus, load_corpus
from deepseek_v3.data.packing import PackedStream
from deepseek_v3.data.tokenizer import Tokenizer
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.training.checkpoint import list_checkpoints, newest_checkpoint
from deepseek_v3.training.evaluate import cut_evenly
from deepseek_v3.training.machine import choose_precision
from deepseek_v3.training.options import OptionsError, TrainOptions
from deepseek_v3.training.progress import Progress
from deepseek_v3.training.results import Machine
from deepseek_v3.training.trainer import Sampler, Trainer
from deepseek_v3.weights.checkpoint import read_stored_config
from deepseek_v3.weights.load import build_empty, load_weights

OPTIONS = "options.json"
HELDOUT_BYTES = 200  # a text that is measured has about so many at least
TELL_EVERY_S = 5.0


def prepare_training(
    options: TrainOptions, *, sampler: Sampler | None = None, progress: Progress | None = None
) -> Trainer:
    """Build everything; a resumed run takes its recorded options, changed where a flag is not its default.

    Raises:
        OptionsError, DataError, ConfigError, CheckpointError: what cannot work, in one line.
    """
    run = Path(options.run)
    check_run_folder(run)
    if options.resume:
        newest_checkpoint(run)
        options = merge_options(recorded_options(run), options)
    elif list_checkpoints(run):
        raise OptionsError(f"{run} already holds a run; go on with --resume, or name another folder with --run")
    if options.threads:
        torch.set_num_threads(options.threads)
    base_config(options)  # a wrong key or preset is said before the data is read
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
    precision, peak, why = choose_precision(wish)
    say(
        f"precision {precision}: {why}; {peak / 1e9:,.0f} GFLOP/s in matrix products, {torch.get_num_threads()} threads"
    )
    torch.manual_seed(options.seed)
    model = make_model(options, config)
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
    heldout = cut_evenly(corpus.heldout_texts(max(1, n_bytes // HELDOUT_BYTES)), n_bytes)
    machine = Machine(precision, peak)
    trainer = Trainer(model, tokenizer, stream, heldout, options, machine=machine, sampler=sampler, progress=progress)
    if options.resume:
        trainer.resume(newest_checkpoint(run))
        say(f"going on from step {trainer.step}")
    record_run(run, options, corpus, config, tokenizer, precision)
    return trainer


def standing_folder(run: Path) -> Path:
    """Return the run folder, or the nearest above it that is there."""
    return next(path for path in (run.absolute(), *run.absolute().parents) if path.exists())


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
    if not options.init_from:
        return DeepseekV3(config)
    model = build_empty(config, torch.float32)
    load_weights(model, options.init_from)
    return model


def check_run_folder(run: Path) -> None:
    """Refuse a run folder that cannot be written, before anything else takes its time.

    Raises:
        OptionsError: it is a file or below one, or writing is not allowed there.
    """
    standing = standing_folder(run)
    problem = "is not a folder" if not standing.is_dir() else "cannot be written"
    if problem == "is not a folder" or not os.access(standing, os.W_OK | os.X_OK):
        raise OptionsError(f"--run {run}: {standing} {problem}; name another folder")


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


def record_run(
    run: Path, options: TrainOptions, corpus: Corpus, config: ModelConfig, tokenizer: Tokenizer, precision: str
) -> None:
    """Write what the run is made of beside its checkpoints."""
    run.mkdir(parents=True, exist_ok=True)
    config.to_json(run / "config.json")
    tokenizer.save(run)
    values = {**dataclasses.asdict(options), "resume": False}
    record = {"options": values, "data": corpus.describe(), "digest": corpus.digest, "precision": precision}
    (run / OPTIONS).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def record_steps(options: TrainOptions) -> None:
    """Write the options of a run again, after its number of steps was chosen."""
    path = Path(options.run) / OPTIONS
    record = json.loads(path.read_text(encoding="utf-8"))
    record["options"] = {**dataclasses.asdict(options), "resume": False}
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def recorded_options(run: Path) -> TrainOptions:
    """Return the options that a run was started with.

    Raises:
        OptionsError: the run folder has none that can be read.
    """
    try:
        values = json.loads((run / OPTIONS).read_text(encoding="utf-8"))["options"]
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        return TrainOptions(**values)
    except (OSError, KeyError, TypeError, json.JSONDecodeError):
        raise OptionsError(f"{run / OPTIONS} cannot be read; the run folder is not one of ours") from None


def recorded_precision(run: Path) -> str:
    """Return the precision that a run chose at its start: to go on bit by bit, it must stay."""
    return json.loads((run / OPTIONS).read_text(encoding="utf-8")).get("precision", "fp32")


def merge_options(recorded: TrainOptions, given: TrainOptions) -> TrainOptions:
    """Take the recorded options, changed by every given flag that differs from its default."""
    defaults = TrainOptions()
    changes = {
        field.name: value
        for field in dataclasses.fields(given)
        if (value := getattr(given, field.name)) != getattr(defaults, field.name)
    }
    return recorded.replace(**{**changes, "run": given.run, "resume": True})
