"""book_model/ is what `make book` makes: its config, its text, its tokenizer, its steps; as good as its record says."""

import dataclasses
import json
import math

import pytest

from deepseek_v3.config import ModelConfig
from deepseek_v3.data.tokenizer import Tokenizer
from deepseek_v3.model_io import load
from deepseek_v3.sizing import count_parameters
from deepseek_v3.training.evaluate import measure_model
from deepseek_v3.training.metrics import read_metrics
from deepseek_v3.training.options import TrainOptions
from deepseek_v3.weights.manifest import verify_manifest
from experiments import book
from utils.story_book import tell_story, write_book

RECORD = json.loads((book.MODEL / "training.json").read_text(encoding="utf-8"))
SAME_SOURCES = RECORD["sources"]["sha256"] == book.digest_sources()


@pytest.fixture(scope="module")
def model():
    return load(book.MODEL)


def test_the_config_is_the_preset_and_small_enough():
    config = ModelConfig.from_json(book.MODEL / "config.json")
    assert config.replace(torch_dtype="float32") == ModelConfig.preset("book").replace(torch_dtype="float32")
    assert count_parameters(config).total <= 4_000_000
    assert (book.MODEL / "model.safetensors").stat().st_size <= 8_000_000


def test_the_options_and_the_text_are_those_of_the_command():
    options = json.loads(json.dumps(dataclasses.asdict(book.recipe())))
    usual = dataclasses.asdict(TrainOptions())  # an option that came later was as it is now by default
    differ = {name for name, value in options.items() if RECORD["options"].get(name, usual[name]) != value}
    assert differ <= {"run", "data", "resume"}
    assert RECORD["steps"] == book.STEPS
    assert RECORD["stories"]["seed"] == book.SEED
    assert RECORD["stories"]["count"] == book.N_STORIES
    assert RECORD["stories"]["first_1000"] == book.digest_lines(write_book(book.SEED, 1000))


def test_no_byte_of_it_was_changed_since():
    verify_manifest(book.MODEL)
    held = json.loads((book.MODEL / "manifest.json").read_text(encoding="utf-8"))["files"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= held.keys()


def test_new_stories_cost_what_the_record_says(model):
    texts = [tell_story(book.NEW_SEED, 10_000 + number).text for number in range(60)]
    found = measure_model(*model, texts, 256)
    said = RECORD["heldout"]["stories"]
    assert found.bits_per_byte == pytest.approx(said["bits_per_byte"], rel=0.06)
    assert found.mtp_acceptance == pytest.approx(said["acceptance_by_depth"][0], abs=0.04)
    assert said["bits_per_byte"] < said["xz"] / 1.2


def test_questions_about_new_stories_are_answered_as_the_record_says(model):
    stories = [tell_story(book.NEW_SEED, number) for number in range(20_000, 20_030)]
    counts = book.examine_answers(*model, stories)
    right, asked = (sum(counted[i] for counted in counts.values()) for i in (0, 1))
    said = sum(counted[0] for counted in RECORD["answers"].values())
    share = said / sum(counted[1] for counted in RECORD["answers"].values())
    assert abs(right / asked - share) < 3 * math.sqrt(0.25 / asked)


@pytest.mark.slow
def test_all_stories_are_those_that_were_learned_from():
    assert RECORD["stories"]["sha256"] == book.digest_lines(write_book(book.SEED, book.N_STORIES))


@pytest.mark.slow
@pytest.mark.skipif(not SAME_SOURCES, reason=f"the standard library is not that of {RECORD['sources']['python']}")
def test_the_command_begins_as_the_log_does_with_the_tokenizer_that_lies_there(tmp_path):
    """Digest of the text, every merge of the tokenizer, and the losses of the first steps."""
    options = book.recipe(tmp_path / "run", tmp_path / "text")
    book.write_text(tmp_path / "text")
    trainer = book.prepare_training(options)
    try:
        assert book.read_record(tmp_path / "run")["digest"] == RECORD["data"]
        assert trainer.tokenizer.to_json() == Tokenizer.from_file(book.MODEL).to_json()
        log = [row for row in read_metrics(book.MODEL / "log.jsonl") if row["kind"] == "step"]
        for row in log[:3]:
            assert trainer.run_step().loss == pytest.approx(row["loss"], rel=2e-3)
    finally:
        trainer.lock.release()


@pytest.mark.slow
def test_stopped_and_called_again_it_goes_on_to_the_export(tmp_path, monkeypatch, capsys):
    """Cut down to a few stories and steps; a checkpoint half-way is what a stop leaves."""
    monkeypatch.setattr(book, "stdlib_documents", lambda: iter(()))
    monkeypatch.setattr(book, "ASKED_STORIES", 2)
    monkeypatch.setattr(book, "measure_book", lambda folder, corpus: {"heldout": {}, "answers": {}, "samples": {}})
    options = book.recipe(tmp_path / "run", tmp_path / "text").replace(
        lanes=4, batch_size=2, micro_batch=2, eval_every=0, eval_kilobytes=1, sample_prompts=(), set=("vocab_size=320",)
    )
    assert book.train_book(options.replace(steps=2), 200, tmp_path / "first") == 0
    assert book.train_book(options.replace(steps=4), 200, tmp_path / "model") == 0
    assert "going on from step 2" in capsys.readouterr().out
    record = json.loads((tmp_path / "model" / "training.json").read_text())
    assert record["steps"] == 4
    assert record["stories"]["sha256"] == book.digest_lines(write_book(book.SEED, 200))
    load(tmp_path / "model")
