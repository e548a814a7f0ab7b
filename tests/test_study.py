"""The small trainings of the studies: their attention, their text, and what they measure."""

import json
import re

import pytest
import torch

import deepseek_v3.ops as ops
from deepseek_v3.config import ModelConfig
from deepseek_v3.data.documents import Document
from deepseek_v3.model.rope import rope_frequencies, rotation_at
from deepseek_v3.model.transformer import DeepseekV3
from experiments import study
from experiments.key_heads import KeyHeadAttention, attention_by
from experiments.ledger import Claim, all_claims
from experiments.verdict import judge, weigh_order

CONFIG = ModelConfig.from_json(study.HERE / "study.json")


def attend_by_hand(layer: KeyHeadAttention, x_SD: torch.Tensor, turn) -> torch.Tensor:
    """Head by head and row by row, as the formula says."""
    width, heads = layer.width, layer.q_proj.out_features // layer.width
    outs = []
    for h in range(heads):
        g = h // layer.shared_by
        q = turn(x_SD @ layer.q_proj.weight[h * width : (h + 1) * width].T)
        k = turn(x_SD @ layer.k_proj.weight[g * width : (g + 1) * width].T)
        v = x_SD @ layer.v_proj.weight[g * width : (g + 1) * width].T
        rows = [torch.softmax(q[s] @ k[: s + 1].T / width**0.5, -1) @ v[: s + 1] for s in range(len(x_SD))]
        outs.append(torch.stack(rows))
    return torch.cat(outs, -1) @ layer.o_proj.weight.T


@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_attention_by_key_heads_is_its_formula(key_heads):
    torch.manual_seed(0)
    layer = KeyHeadAttention(CONFIG, key_heads)
    x_BSD = torch.randn(1, 7, CONFIG.hidden_size)
    rotation = rotation_at(torch.arange(7), rope_frequencies(CONFIG), 1.0)
    expected = attend_by_hand(layer, x_BSD[0], lambda part: ops.rotate_pairs(part.unsqueeze(-2), rotation).squeeze(-2))
    assert torch.allclose(layer(x_BSD, rotation)[0], expected, atol=1e-5)


def test_key_heads_divide_the_heads_and_have_no_cache():
    with pytest.raises(ValueError, match="3 key heads do not divide"):
        KeyHeadAttention(CONFIG, 3)
    with pytest.raises(ValueError, match="no cache"):
        KeyHeadAttention(CONFIG, 1)(torch.zeros(1, 1, 64), None, past=1)


def test_models_are_built_with_key_heads_only_meanwhile():
    with attention_by(2):
        assert isinstance(DeepseekV3(CONFIG).layers[0].self_attn, KeyHeadAttention)
    assert not isinstance(DeepseekV3(CONFIG).layers[0].self_attn, KeyHeadAttention)


def read_rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def text(tmp_path, monkeypatch):
    """A tenth of the text in a folder of its own."""
    for name, value in (("KIND_BYTES", 60_000), ("HELD_BYTES", 3_000), ("TEXT", tmp_path / "text")):
        monkeypatch.setattr(study, name, value)
    study.write_text(tmp_path / "text")
    return tmp_path / "text"


def test_as_much_of_each_kind_is_learned_and_no_story_that_is_measured(text):
    learned = [row["text"] for row in read_rows(text / "learned" / "text.jsonl")]
    held = json.loads((text / "held.json").read_text(encoding="utf-8"))
    assert all(0.7 < len("".join(texts)) / 3000 < 1.5 for texts in held.values())
    assert not set(learned) & set(held["stories"])
    told = len("".join(study.stories(study.SEED, 60_000)))
    assert 0.8 < told / len("".join(learned[len(study.stories(study.SEED, 60_000)) :])) < 1.25


def test_files_that_are_measured_are_not_learned_from(monkeypatch):
    files = [Document(f"{i}.py", f"file-{i}\n" * 400) for i in range(60)]
    monkeypatch.setattr(study, "stdlib_documents", lambda: files)
    learned, held = ("".join(study.sources(held=held, n_bytes=10**6)).split() for held in (False, True))
    assert len(set(held)) == 3
    assert set(learned) == {f"file-{i}" for i in range(60)} - set(held)


def test_a_run_measures_both_kinds_and_how_differently_experts_serve_them(text, tmp_path):
    words = ["--data", str(text / "learned"), "--tokenizer", str(text / "tokenizer.json"), "--eval-every", "1"]
    words += ["--steps", "2", "--set", "n_routed_experts=8", "--seq-len", "32", "--run", str(tmp_path / "run")]
    assert study.main(words) == 0
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert [(row["kind"], row["step"]) for row in rows] == [("heldout", 1), ("heldout", 2)]
    assert rows[1]["stories"] < rows[1]["bits_per_byte"] < rows[1]["stdlib"]
    loads = rows[1]["loads"]
    halves = [sum(abs(a - b) for a, b in zip(*both)) / 16 for both in zip(loads["stories"], loads["stdlib"])]
    assert rows[1]["apart"] == pytest.approx(sum(halves) / len(halves), abs=1e-3)
    again = tmp_path / "again"
    study.main([*words[:-1], str(again)])
    assert (again / "metrics.jsonl").read_text() == (tmp_path / "run" / "metrics.jsonl").read_text()


# -- what is committed -------------------------------------------------------------------------------------------------

STUDIES = [name for name in all_claims() if name.startswith("study_")]
TOLD = ["docs/studies.md", "02_latent_attention/README.md", "03_moe/README.md", "04_multi_token_prediction/README.md"]
TOLD += ["03_moe/notebooks/loss_free_balancing.py"]


def weigh_all() -> list:
    """Every pair of every study, from the committed results."""
    claims = [Claim(study.HERE / name) for name in STUDIES]
    return [weigh_order(pair, claim.kept["arms"]) for claim in claims for pair in claim.held["verdict"]["order"]]


def test_four_studies_of_five_seeds_and_at_most_a_hundred_runs():
    claims = [Claim(study.HERE / name) for name in STUDIES]
    runs = [len(seeds) for claim in claims for seeds in claim.kept["arms"].values()]
    tuned = [len(found["numbers"]) for claim in claims for found in claim.tuning.tuned.values()]
    assert len(claims) == 4
    assert set(runs) == {5}
    assert set(tuned) == {3}
    assert sum(runs) + sum(tuned) <= 100


@pytest.mark.parametrize("name", STUDIES)
def test_the_committed_verdict_is_what_the_committed_numbers_say(name):
    claim = Claim(study.HERE / name)
    assert claim.kept["verdict"] == judge(claim.held, claim.kept["arms"], 0)
    assert f"**Verdict: {claim.kept['verdict']}.**" in (claim.folder / "verdict.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", TOLD)
def test_a_page_tells_intervals_that_stand_in_the_results(page):
    found = {f"{abs(100 * order.mean):.2f} ± {100 * order.half:.2f}" for order in weigh_all()}
    told = re.findall(r"(\d+\.\d\d ± \d+\.\d\d)\s%", (study.HERE.parent / page).read_text(encoding="utf-8"))
    assert told
    assert set(told) <= found
