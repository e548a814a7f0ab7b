"""Folders that other tools made, as a user of `generate` meets them: several ends, other names, no MTP layer."""

import json
import sys
from pathlib import Path

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent.parent / "weights"))
from tiny_checkpoints import random_model

from deepseek_v3.cli import main
from deepseek_v3.data.tokenizer import BOS, EOS, Tokenizer
from deepseek_v3.weights.save import save_model

TEXTS = ["ab cd the quick brown fox"] * 3


def saved(folder: Path, tokenizer: Tokenizer | None = None, says: int | None = None, **changes) -> str:
    """A model that always says the token `says`, or a random one, with a tokenizer and as if downloaded."""
    model = random_model(vocab_size=300, **changes)
    if says is not None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(("o_proj.weight", "down_proj")) or "down_proj" in name:
                    parameter.zero_()
            model.embed_tokens.weight.zero_()[:, 0] = 1
            model.norm.weight.fill_(1)
            model.lm_head.weight.zero_()[says, 0] = 5
    save_model(model, folder, tokenizer or Tokenizer.train(TEXTS, 300))
    (folder / "manifest.json").unlink()
    return str(folder)


def generate(capsys, folder: str, *words: str) -> tuple[int, str]:
    """The exit code, and what stands on standard error."""
    code = main(["generate", folder, "--prompt", "a", "--max-new-tokens", "5", "--temperature", "0", *words])
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "generation_config"), [(7, None), ([11, 7], None), (11, 7), (None, [11, 7])], ids=str
)
def test_generate_stops_at_every_end_that_the_folder_names(tmp_path, capsys, config, generation_config):
    """Of 300 tokens that a model of one word could say it says 7: nothing is said, unless 7 is no end."""
    folder = saved(tmp_path / "a", says=7, eos_token_id=config)
    if generation_config is not None:
        assert "+ 5 tokens" in generate(capsys, folder)[1]
        (tmp_path / "a" / "generation_config.json").write_text(json.dumps({"eos_token_id": generation_config}))
    code, said = generate(capsys, folder)
    assert code == 0
    assert "+ 0 tokens" in said


def test_generate_begins_with_the_token_that_the_config_names(tmp_path, capsys):
    """GigaChat's and Kimi's tokens are called otherwise than the released ones."""
    text = Tokenizer.train(TEXTS, 300).to_json().replace(BOS, "<s>").replace(EOS, "</s>")
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(text))
    folder = saved(tmp_path / "a", tokenizer, says=9, bos_token_id=0, eos_token_id=1)
    code, said = generate(capsys, folder)
    assert code == 0
    assert "[2 + 5 tokens" in said
    (tmp_path / "a" / "config.json").write_text(
        (tmp_path / "a" / "config.json").read_text().replace('"bos_token_id": 0', '"bos_token_id": null')
    )
    for name in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        (tmp_path / "a" / name).unlink(missing_ok=True)
    code, said = generate(capsys, folder)
    assert code == 1
    assert "bos_token_id" in said


def test_generate_goes_on_without_an_mtp_layer_and_names_a_flag_that_it_has_for_half_a_layer(tmp_path, capsys):
    folder = saved(tmp_path / "a")
    path = tmp_path / "a" / "model.safetensors"
    whole = load_file(path)
    save_file({name: t for name, t in whole.items() if name != "model.layers.3.enorm.weight"}, path)
    code, said = generate(capsys, folder)
    assert code == 1
    assert "--without-mtp" in said
    code, said = generate(capsys, folder, "--without-mtp")
    assert code == 0
    assert "tokens/s" in said
    save_file({name: t for name, t in whole.items() if not name.startswith("model.layers.3.")}, path)
    code, said = generate(capsys, folder)
    assert code == 0
    assert "tokens/s" in said


@pytest.mark.parametrize("temperature", ["0", "1"])
def test_generate_from_weights_that_hold_nan_is_an_error_that_says_where(tmp_path, capsys, temperature):
    folder = saved(tmp_path / "a")
    path = tmp_path / "a" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.input_layernorm.weight"][3] = float("nan")
    save_file(tensors, path)
    code, said = generate(capsys, folder, "--temperature", temperature)
    assert code == 1
    assert "layers.1.input_layernorm.weight holds NaN" in said
