"""`make reason`: its page tells what the runs measured, its text holds nothing held out, and it runs as a whole."""

import io
import json
import re

import pytest
from rich.console import Console

from deepseek_v3.commands import reason_facts
from deepseek_v3.commands.reason import ReasonOptions, run_reason, write_text
from deepseek_v3.post_training.tasks import is_held_out

STEP = {"kind": "step", "rollout_s": 0.5, "reward_s": 0.1, "update_s": 0.4, "new_tokens": 100,
        "loss": 1.0, "bits_per_byte": 1.0, "tokens": 9, "tokens_per_s": 1.0, "max_vio": 0.0}  # fmt: skip
EXAM = {"kind": "exam", "k": 8, "problems": 200, "refused": 0}


def write_runs(folder):
    """Twelve steps whose reward rises by a tenth a step, and five moments of two problems."""
    steps = [{**STEP, "step": i, "reward": i / 10, "entropy": 1 - i / 20} for i in range(1, 13)]
    exams = [{**EXAM, "step": s, "greedy": g, "pass1": g / 2, "passk": g + 0.2} for s, g in ((0, 0.25), (12, 0.625))]
    answers = [
        {"kind": "answer", "step": s, "prompt": prompt, "text": str(s), "reward": float(s > 6)}
        for s in (0, 3, 6, 9, 12)
        for prompt in ("1+2=", "3+4=")
    ]
    for name, rows in (("grpo", [*exams[:1], *steps, *answers, *exams[1:]]), ("sft", steps[:7])):
        (folder / name).mkdir()
        (folder / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_page_tells_what_the_runs_measured(tmp_path, monkeypatch):
    write_runs(tmp_path)
    gaps = {"rerouted_tokens": 0.03, "rerouted": 0.02, "gap_own": 2e-3, "gap_replayed": 1e-3}
    monkeypatch.setattr(reason_facts, "measure_formats", lambda run: {"fp8": gaps})
    facts = reason_facts.gather_facts(tmp_path, {"pretraining": 60.0, "grpo": 120.0}, 200.0)
    facts["seconds"]["processor"], facts["task"] = 90.0, "addition:2"
    page = io.StringIO()
    reason_facts.show_facts(facts, tmp_path, Console(file=page, width=140))
    said = page.getvalue()
    for figure in ("25.0% -> 62.5%", "12.5% -> 31.2%", "45.0% -> 82.5%", "7 + 12", "200 tokens/s", "50%/10%/40%",
                   "3.3 min", "1.5 min", "3.00%", "2.0e-03, with replay 1.0e-03"):  # fmt: skip
        assert figure in said
    moments = next(line for line in said.splitlines() if line.strip().startswith("1+2="))
    assert re.findall(r"'(\d+)'(\*?)", moments) == [("0", ""), ("3", ""), ("9", "*"), ("12", "*")]


def test_the_text_to_begin_with_holds_no_sum_that_is_held_out():
    for line in write_text(3, 4000):
        for a, b in re.findall(r"^(\d+)\+(\d+)=", line):
            assert not is_held_out(f"{min(int(a), int(b))}+{max(int(a), int(b))}")


@pytest.mark.slow
def test_it_runs_as_a_whole(tmp_path, capsys):
    """Twenty steps an act, the fewest."""
    assert run_reason(ReasonOptions(run=str(tmp_path / "run"), minutes=0.01)) == 0
    said = capsys.readouterr().out
    assert "right, the likeliest answer" in said
    assert (tmp_path / "run" / "facts.json").is_file()
    assert (tmp_path / "run" / "grpo" / "report.html").is_file()
