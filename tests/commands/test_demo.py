"""`make demo`: its page says what it measured, and the model is better than a 5-gram."""

import dataclasses
import json

import pytest

from deepseek_v3.commands.demo import DemoOptions, clear_former_demo, demo_recipe, run_demo
from deepseek_v3.commands.demo_facts import next_commands
from deepseek_v3.training.options import TrainOptions


def test_a_former_demo_is_replaced_and_nothing_else(tmp_path):
    clear_former_demo(str(tmp_path / "absent"))
    (tmp_path / "notes.txt").write_text("mine")
    for record in (None, {}, {"options": dataclasses.asdict(TrainOptions())}):
        if record is not None:
            (tmp_path / "options.json").write_text(json.dumps(record))
        with pytest.raises(ValueError, match=r"holds something that is no demo|not one of ours"):
            clear_former_demo(str(tmp_path))
    assert (tmp_path / "notes.txt").exists()
    recipe = demo_recipe(DemoOptions(run=str(tmp_path)))
    (tmp_path / "options.json").write_text(json.dumps({"options": dataclasses.asdict(recipe)}))
    clear_former_demo(str(tmp_path))
    assert not tmp_path.exists()


@pytest.mark.parametrize("changes", [{"minutes": 0.0}, {"minutes": float("nan")}, {"steps": -1}, {"max_steps": 0}])
def test_an_option_out_of_range_is_refused_before_a_former_demo_is_touched(changes):
    with pytest.raises(ValueError, match=f"--{next(iter(changes)).replace('_', '-')} .* must be"):
        DemoOptions(**changes)


def test_the_page_ends_with_four_commands(tmp_path):
    commands = next_commands(tmp_path)
    assert len(commands) == 4
    assert all("deepseek-v3 " in command for command in commands)


def test_the_recipe_fits_the_demo_preset():
    from deepseek_v3.config import ModelConfig

    recipe, config = demo_recipe(DemoOptions()), ModelConfig.preset("demo")
    assert recipe.preset == "demo"
    assert recipe.seq_len <= config.max_position_embeddings
    assert config.num_nextn_predict_layers == 1


@pytest.mark.slow
def test_the_page_states_every_figure_even_after_a_few_steps(tmp_path, capsys):
    assert run_demo(DemoOptions(run=str(tmp_path / "run"), steps=3)) == 0
    page = capsys.readouterr().out
    for words in ("bits per byte", "5-gram", "gzip, xz", "MaxVio", "MTP acceptance", "cache per token", "tokens/s"):
        assert words in page
    assert (tmp_path / "run" / "report.html").stat().st_size > 20_000


@pytest.mark.slow
def test_held_out_files_cost_fewer_bits_than_with_a_5_gram_of_the_same_bytes(tmp_path):
    """Requirement of the demo, at the steps that two quiet cores reach in its minutes."""
    run_demo(DemoOptions(run=str(tmp_path / "run"), steps=900))
    facts = json.loads((tmp_path / "run" / "facts.json").read_text())
    assert facts["end"] < facts["ngram"]
    assert facts["end"] < facts["start"] - 1.5
    assert facts["max_vio"][1] < 0.6
    assert facts["acceptance"] > 0.4
    assert facts["same_text"]
