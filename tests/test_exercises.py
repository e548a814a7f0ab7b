"""The chapter's own answers pass its exercises, and a blank file fails with a friendly word."""

import pytest

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
    ],
)
def test_a_stop_is_told_in_the_readers_terms(tmp_path, name, body, words):
    head = {"score_absorbed": "(q, q_rope, latent, k_rope, w)", "compress_hidden": "(x, weight, norm, angles)"}[name]
    verdict = answer_file(tmp_path, f"def {name}{head}:\n{body}\n")[name]
    assert all(w in verdict for w in words), verdict
    assert "gufunc" not in verdict
