"""The command `doctor`: every part is there, and what it says of the kernels is what happens."""

import json

import pytest
import torch

from deepseek_v3.cli import main
from deepseek_v3.native.build import SWITCH, compiler_command, have_kernels, kept_library

PARTS = ["processor", "compiler", "kernels", "threads", "devices", "FP8 training", "packages", "operations"]


def ask_doctor(capsys, *words: str) -> dict:
    assert main(["doctor", "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(autouse=True)
def _threads_of_the_tests_wait_as_they_did(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")


def test_every_part_is_there_in_text_and_in_json(capsys):
    facts = ask_doctor(capsys)
    assert list(facts) == PARTS
    assert all(facts.values())
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for part in PARTS:
        assert part in text
    assert torch.__version__ in text
    assert str(torch.get_num_threads()) in facts["threads"]["serve"]


def test_it_says_where_the_kernels_are_kept_and_that_they_serve(capsys):
    if not have_kernels():
        pytest.skip("no C++ compiler here")
    facts = ask_doctor(capsys)
    assert facts["kernels"] == {"serve": "yes", "kept in": str(kept_library())}
    assert facts["compiler"]["command"] == " ".join(compiler_command() or [])
    assert "C++ kernel" in {form["form"] for form in facts["operations"]["128 tokens"]}


def test_switched_off_kernels_serve_nowhere_and_it_says_why(capsys, monkeypatch):
    monkeypatch.setenv(SWITCH, "0")
    facts = ask_doctor(capsys)
    assert facts["kernels"] == {"serve": f"no: switched off by {SWITCH}=0"}
    for forms in facts["operations"].values():
        assert all(form["form"] != "C++ kernel" and form["why"] for form in forms)


def test_a_compiler_that_does_not_run_is_told_and_not_a_traceback(capsys, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler --fast")
    assert "does not run" in ask_doctor(capsys)["compiler"]["version"]


@pytest.mark.parametrize("word", ["0", "false", "No", "off"])
def test_kernels_are_switched_off_by_any_word_that_says_so(word, monkeypatch):
    monkeypatch.setenv(SWITCH, word)
    assert not have_kernels()
