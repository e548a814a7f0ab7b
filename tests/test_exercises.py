"""The chapter's own answers pass its exercises, and a blank file fails with a friendly word."""

import ast
import re

import pytest

from utils import exercises
from utils.exercises import ROOT, grade

CHAPTERS = [p.parent for p in sorted(ROOT.glob("0[0-8]_*/exercises.py"))]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda p: p.name)
def test_the_solutions_pass(chapter):
    assert not [v for v in grade(chapter, solved=True) if v[1]]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda p: p.name)
def test_the_blank_file_is_told_what_to_do(chapter):
    verdicts = grade(chapter)
    assert verdicts
    assert all("still blank" in verdict for _, verdict in verdicts)


# every backward pass of chapters 01 to 05, and the exercises that grade it and its parts
GRADED_BY = {
    "self_attention": {
        "attend": "01 softmax_backward, 01 attention_backward",
        "self_attend": "01 three_roles_backward",
    },
    "causal_attention": {"attend_causally": "01 causal_attention_backward"},
    "multi_head_attention": {"multi_head": "01 multi_head_backward"},
    "rms_norm": {"rms_norm": "01 rms_norm_backward"},
    "swiglu": {"swiglu": "01 swiglu_backward"},
    "transformer_block": {"block": "01 block_backward", "stack": "01 block_backward"},
    "kv_cache": {
        "attend": "02 attention_backward",
        "cached_attention": "01 multi_head_backward, 02 attention_backward",
    },
    "multi_query_attention": {"multi_query": "02 shared_key_backward, 01 multi_head_backward"},
    "grouped_query_attention": {
        "share_heads": "02 shared_key_backward",
        "grouped_query": "02 shared_key_backward, 01 multi_head_backward",
    },
    "latent_attention": {"latent_attention": "02 expand_latent_backward, 02 mla_backward"},
    "rotary_embedding": {
        "rotate_pairs": "02 rotate_neighbours_backward",
        "rotate_halves": "02 rotate_neighbours_backward",
    },
    "decoupled_rope": {
        "normalize_latent": "02 compress_hidden_backward",
        "project_queries": "02 mla_backward",
        "compress_tokens": "02 compress_hidden_backward",
        "decoupled_attention": "02 mla_backward",
    },
    "absorbed_attention": {"absorbed_attention": "02 score_absorbed_backward, 02 mla_backward"},
    "expert_routing": {
        "softmax_scores": "03 softmax_router_backward",
        "sigmoid_scores": "03 router_backward",
        "normalize_gates": "03 teach_router",
        "softmax_gate": "03 softmax_router_backward",
        "sigmoid_gate": "03 router_backward",
    },
    "classic_moe": {
        "relu_experts": "03 relu_expert_backward",
        "dispatch_combine": "03 combine_backward, 03 relu_expert_backward",
        "classic_moe": "03 softmax_router_backward, 03 combine_backward, 03 relu_expert_backward",
        "expert_choice": "03 expert_choice_backward, 03 softmax_router_backward",
    },
    "load_balancing": {
        "expert_balance": "03 balance_batch_backward",
        "sequence_balance": "03 balance_sequences_backward",
    },
    "loss_free_balancing": {"loss_free_gate": "03 router_backward"},
    "fine_grained_experts": {"every_expert": "03 gated_expert_backward", "fine_grained": "03 gated_expert_backward"},
    "deepseek_moe": {
        "route_tokens": "03 moe_backward",
        "swiglu_slice": "03 gated_expert_backward",
        "routed_experts": "03 moe_backward",
        "deepseek_moe": "03 moe_backward",
    },
    "cross_entropy": {"cross_entropy": "04 loss_gradient", "head_loss": "04 head_backward"},
    "causal_block": {"compact_block": "04 relu_squared_backward, 01 block_backward, 01 multi_head_backward"},
    "mtp_module": {
        "norm_rows": "01 rms_norm_backward",
        "combine": "04 join_pair_backward",
        "mtp": "04 module_backward",
    },
    "mtp_pretraining": {"mtp_loss": "04 chain_backward, 04 head_backward", "parallel_loss": "04 parallel_backward"},
    "small_language_model": {"main": "04 look_up_backward, 01 block_backward, 01 rms_norm_backward"},
    "mantissa_exponent": {
        "linear": "05 linear_backward",
        "network": "05 kept_swiglu_backward, 01 rms_norm_backward, 00 embed_backward",
    },
    "mixed_precision": {"fp8": "05 linear_backward", "fp8_swiglu": "05 kept_swiglu_backward"},
}


def functions_of(path) -> set[str]:
    return {n.name for n in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(n, ast.FunctionDef)}


def test_every_backward_pass_of_the_first_five_chapters_is_graded():
    modules = [p for c in sorted(ROOT.glob("0[1-5]_*")) for p in c.glob("*.py") if not p.stem.startswith("exercise")]
    passes = {p.stem: {n for n in functions_of(p) if n.endswith("_backward") and n[0] != "_"} for p in modules}
    told = {module: {f"{name}_backward" for name in rows} for module, rows in GRADED_BY.items()}
    assert {module: names for module, names in passes.items() if names} == told
    graded = {f"{c.name[:2]} {name}" for c in CHAPTERS for name in functions_of(c / "exercises.py")}
    named = {e for rows in GRADED_BY.values() for row in rows.values() for e in row.split(", ")}
    assert named <= graded, named - graded
    lonely = {e for e in graded if re.match("0[1-5].*_backward$", e)} - named
    assert not lonely, f"{lonely} grade no backward pass of a module"


def test_the_last_exercise_of_a_chapter_is_its_module_from_an_empty_file():
    for chapter in CHAPTERS:
        body = ast.parse((chapter / "exercises.py").read_text(encoding="utf-8")).body
        assert [n.name for n in body if isinstance(n, ast.FunctionDef)][-1].endswith("_from_an_empty_file"), chapter


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda p: p.name)
def test_every_exercise_has_three_hints_that_are_folded_one_by_one(chapter):
    names = [n.name for n in ast.parse((chapter / "exercises.py").read_text("utf-8")).body if hasattr(n, "name")]
    parts = re.split(r"^## `(\w+)`$", (chapter / "hints.md").read_text("utf-8"), flags=re.MULTILINE)[1:]
    assert parts[::2] == names
    fold = r"\n*<details><summary>Hint ([123])</summary>\n\n((?:(?!</?details>).)+?)\n\n</details>"
    for name, text in zip(names, parts[1::2]):
        assert [number for number, _ in re.findall(fold, text, re.DOTALL)] == ["1", "2", "3"], name
        assert not re.sub(fold, "", text, flags=re.DOTALL).strip(), f"{name}: something lies open between its hints"
    assert "Hint 1" not in (chapter / "exercises.py").read_text("utf-8"), "hints stand open in the docstrings"


def test_an_answer_without_an_end_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setattr(exercises, "PATIENCE", 0.05)
    verdict = answer_file(
        tmp_path, "def score_absorbed(q, q_rope, latent, k_rope, w):\n    while True:\n        pass\n"
    )
    assert "which loop never sees its condition change?" in verdict["score_absorbed"]
    assert "while True" in verdict["score_absorbed"] or "pass" in verdict["score_absorbed"]


def answer_file(tmp_path, *bodies: str):
    """Chapter 02's blank exercises with some functions written anew at the end of the file."""
    path = tmp_path / "exercises.py"
    blank = (ROOT / "02_latent_attention" / "exercises.py").read_text(encoding="utf-8")
    path.write_text(blank + "\n\n" + "\n\n".join(bodies), encoding="utf-8")
    return dict(grade(ROOT / "02_latent_attention", answers=path))


RIGHT_COMPRESSION = """
def compress_hidden(x, weight, norm, angles):
    c, k = np.split(x @ weight.T, [len(norm)], axis=-1)
    return norm * c / np.sqrt(np.mean(c * c, axis=-1, keepdims=True) + 1e-6), rotate_neighbours(k, angles)
"""


def test_a_right_answer_is_right_while_the_exercise_that_it_calls_is_blank(tmp_path):
    verdicts = answer_file(tmp_path, RIGHT_COMPRESSION)
    assert verdicts["compress_hidden"] == ""
    assert "still blank" in verdicts["rotate_neighbours"]


@pytest.mark.parametrize(
    ("name", "body", "words"),
    [
        ("score_absorbed", "    return q @ latent", ["q is [3, 2]", "latent is [11, 5]", "axes do not fit"]),
        ("score_absorbed", "    np.einsum('hk,hkc->hc', q, w)", ["is its `return` missing?"]),
        ("score_absorbed", "    return quarry", ["spelled as in the arguments"]),
        ("compress_hidden", "    return 3.0", ["has not the form that the docstring names"]),
        ("score_absorbed", "    return 0 if q else 1", ["an array is no single yes or no"]),
        ("score_absorbed", "    return q[:, 5]", ["a place is asked for that is not there", "q is [3, 2]"]),
        ("score_absorbed", "    return q[0.5]", ["a place must be a whole number"]),
        ("score_absorbed", "    return q[np.ones(4, dtype=bool)]", ["the mask has another length"]),
        ("score_absorbed", "    return q(0)", ["square brackets for a place"]),
        ("score_absorbed", "    return q.transposed()", ["no such thing on this kind of value"]),
        ("score_absorbed", "    a, b = q\n    return a", ["more or fewer results"]),
        ("score_absorbed", "    return q.reshape(4, 4)", ["their axes do not fit"]),
        ("score_absorbed", "    return np.concatenate([q, latent])", ["their axes do not fit"]),
        ("score_absorbed", "    return q + 'x'", ["numbers of different kinds meet"]),
        ("score_absorbed", "    return np.add(q, None)", ["numbers of different kinds meet"]),
        ("score_absorbed", "    return {}['kv_b']", ["no entry 'kv_b'"]),
        ("score_absorbed", "    import torches", ["no such module or name to import"]),
        ("score_absorbed", "    return score_absorbed(q, q_rope, latent, k_rope, w)", ["calls itself without end"]),
        ("score_absorbed", "    return np.einsum('hk,tc->ht', q, latent) / 0", ["your result holds NaN or infinity"]),
        ("score_absorbed", "    return np.linalg.inv(q)", ["their axes do not fit"]),
    ],
)
def test_a_stop_is_told_in_the_readers_terms(tmp_path, name, body, words):
    head = {"score_absorbed": "(q, q_rope, latent, k_rope, w)", "compress_hidden": "(x, weight, norm, angles)"}[name]
    verdict = answer_file(tmp_path, f"def {name}{head}:\n{body}\n")[name]
    assert all(w in verdict for w in words), verdict
    assert not re.search("gufunc|ufunc|operand|cast|truth value|out of bounds|Error", verdict), verdict


def test_a_file_that_cannot_be_read_is_told_where(tmp_path):
    verdicts = answer_file(tmp_path, "def score_absorbed(q:\n    return q\n")
    assert all("the file cannot be read: line" in verdict for verdict in verdicts.values())


def test_what_overflows_is_told_and_not_warned_of(tmp_path):
    body = "    return np.exp(1e4 * np.abs(q)) - np.exp(1e4 * np.abs(q)) + 0 * np.log(-1.0)"
    verdict = answer_file(tmp_path, f"def score_absorbed(q, q_rope, latent, k_rope, w):\n{body}\n")["score_absorbed"]
    assert verdict.startswith("your result holds NaN or infinity")
