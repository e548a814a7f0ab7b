"""`evaluate` says what the trainer says, of any checkpoint on any text."""

import json
import math

import pytest
import torch

from deepseek_v3.cli import main
from deepseek_v3.config import ModelConfig
from deepseek_v3.data.tokenizer import Tokenizer
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.model_io import save
from deepseek_v3.training.evaluate import measure_model

TEXT = "the cat sat on the mat, and a dog ate the log. " * 5


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    torch.manual_seed(5)
    shape = {"hidden_size": 22, "intermediate_size": 26, "moe_intermediate_size": 7, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "kv_lora_rank": 5, "qk_nope_head_dim": 7, "qk_rope_head_dim": 4, "v_head_dim": 3}
    experts = {"n_routed_experts": 6, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "initializer_range": 0.2}
    config = ModelConfig(vocab_size=290, num_nextn_predict_layers=2, **shape, **heads, **experts)
    model, tokenizer = DeepseekV3(config).eval(), Tokenizer.train([TEXT], 290)
    save(model, folder / "model", tokenizer)
    (folder / "text.txt").write_text(TEXT)
    return folder, model, tokenizer


def evaluate(folder, capsys, *words: str) -> dict:
    assert main(["evaluate", str(folder / "model"), "--data", str(folder / "text.txt"), "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_figures_are_the_trainers_own(saved, capsys):
    folder, model, tokenizer = saved
    found = evaluate(folder, capsys, "--seq-len", "16")
    own = measure_model(model, tokenizer, [TEXT], 16)
    assert found["bits_per_byte"] == own.bits_per_byte
    assert found["acceptance_by_depth"] == list(own.acceptance_by_depth)
    assert len(found["acceptance_by_depth"]) == 2


def test_in_one_window_they_are_what_the_definitions_say(saved, capsys):
    """Perplexity, bits and agreement by hand, from the logits of one pass in FP64."""
    folder, model, tokenizer = saved
    found = evaluate(folder, capsys, "--seq-len", "1000")
    tokens = torch.tensor([[tokenizer.bos_id, *tokenizer.encode(TEXT), tokenizer.eos_id]])
    with torch.no_grad():
        logits, drafts = model(tokens[:, :-1], mtp=True)
    nats = -logits.double().log_softmax(-1).gather(-1, tokens[:, 1:, None]).sum().item()
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(TEXT.encode()), rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(nats / (tokens.numel() - 1)), rel=1e-6)
    main_says = logits[0].argmax(-1).tolist()
    for depth, draft in enumerate(drafts):
        guesses = draft[0].argmax(-1).tolist()
        pairs = list(zip(guesses, main_says[depth + 1 :]))
        assert found["acceptance_by_depth"][depth] == sum(a == b for a, b in pairs) / len(pairs)


def test_options_that_cannot_work_are_refused_in_one_line(saved, capsys):
    folder, _, _ = saved
    for words, message in ((["--seq-len", "1"], "--seq-len 1"), (["--seq-len", "99999"], "max_position_embeddings")):
        assert main(["evaluate", str(folder / "model"), "--data", str(folder / "text.txt"), *words]) == 1
        assert message in capsys.readouterr().err
    (folder / "empty.txt").write_text("  ")
    assert main(["evaluate", str(folder / "model"), "--data", str(folder / "empty.txt")]) == 1


def test_tables_name_every_depth_and_mtp_can_be_left_out(saved, capsys):
    folder, _, _ = saved
    words = ["evaluate", str(folder / "model"), "--data", str(folder / "text.txt"), "--kilobytes", "1"]
    assert main(words) == 0
    assert "MTP, depth 2" in capsys.readouterr().out
    assert main([*words, "--without-mtp"]) == 0
    assert "MTP" not in capsys.readouterr().out
