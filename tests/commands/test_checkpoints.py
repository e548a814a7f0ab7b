"""The commands import, export and inspect, as a user types them."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "weights"))
from tiny_checkpoints import random_model

from deepseek_v3.cli import main
from deepseek_v3.commands.rewriting import newest_of_run
from deepseek_v3.training.training_state import STATE
from deepseek_v3.weights.load import load_model
from deepseek_v3.weights.save import save_model

pytest.importorskip("gguf")


def test_import_export_and_inspect(tmp_path, capsys):
    model = random_model()
    save_model(model.bfloat16(), tmp_path / "ours")
    (tmp_path / "ours" / "manifest.json").rename(tmp_path / "kept.json")  # as if downloaded
    a, b, c = (str(tmp_path / name) for name in "abc")
    assert main(["import", str(tmp_path / "ours"), a, "--shard-mb", "0.02"]) == 0
    assert main(["export", a, b, "--to", "fp8"]) == 0
    assert main(["export", b, c, "--to", "bf16"]) == 0
    assert load_model(c)[0].config == load_model(a)[0].config
    assert main(["inspect", b, "--verify"]) == 0
    assert "every tensor is there" in capsys.readouterr().out
    assert main(["inspect", b, "--json"]) == 0
    assert main(["export", a, str(tmp_path / "model.gguf")]) == 0
    assert main(["import", str(tmp_path / "model.gguf"), str(tmp_path / "d")]) == 0
    assert torch.equal(load_model(tmp_path / "d")[0].lm_head.weight, model.lm_head.weight)


def test_a_refusal_is_one_line_and_exit_code_1(tmp_path, capsys):
    save_model(random_model(), tmp_path / "a")
    (tmp_path / "a" / "model.safetensors").write_bytes(b"")
    assert main(["export", str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "model.safetensors: has 0 bytes, not" in said[0]
    assert not (tmp_path / "b").exists()
    assert main(["export", str(tmp_path / "a"), str(tmp_path / "b"), "--shard-mb", "0"]) == 1


def test_a_checkpoint_that_does_not_fit_exits_with_1(tmp_path, capsys):
    save_model(random_model(num_nextn_predict_layers=0), tmp_path / "a")
    config = tmp_path / "a" / "config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 3', '"num_hidden_layers": 4'))
    assert main(["inspect", str(tmp_path / "a")]) == 1
    assert "model.layers.3.self_attn.o_proj.weight" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("import m.gguf out.gguf", "out.gguf: import writes a folder; `deepseek-v3 export` writes .gguf files"),
        ("export m.gguf out", "m.gguf is a file of others; `deepseek-v3 import` makes it a folder of ours first"),
    ],
)
def test_each_direction_has_one_command(words, line, capsys):
    assert main(words.split()) == 1
    assert capsys.readouterr().err == f"deepseek-v3 {words.split()[0]}: {line}\n"


def test_a_run_folder_stands_for_its_newest_checkpoint(tmp_path):
    for step in (2, 10, 11):
        (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
        if step != 11:  # a folder without a training state is no checkpoint of a run
            (tmp_path / "checkpoints" / f"step-{step:08d}" / f"{STATE}.json").write_text("{}")
    assert newest_of_run(str(tmp_path)) == str(tmp_path / "checkpoints" / "step-00000010")
    assert newest_of_run(str(tmp_path / "checkpoints")) == str(tmp_path / "checkpoints")
