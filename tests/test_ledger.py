"""The ledger: what is missing is run once, a stopped run goes on, and the verdict says what the numbers say."""

import json
from pathlib import Path

import pytest

from experiments.ledger import HERE, Claim, ClaimError, all_claims, collect, interval, run_missing

CLAIM = """
claim = "b learns more than a"
source = "a test"
number = "0.3"
seeds = 2
prepare = [["train", "--preset", "nano"], ["sft", "{start}", "--task", "sort"]]
command = "grpo"
options = ["{start}"]

[arms.a]
options = ["--lr", "0"]

[arms.b]
seeds = 1
command = "sft"
prepare = 1

[measure]
kind = "exam"
value = "greedy"

[verdict]
arms = ["a"]
least = 0.3
"""


@pytest.fixture
def claim(tmp_path) -> Claim:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "claim.toml").write_text(CLAIM)
    return Claim(tmp_path / "one", tmp_path / "runs")


class Machine:
    """Stands for `deepseek-v3`: notes what was asked and writes what a run would."""

    def __init__(self, gain=lambda words: 0.4, fails_at: int = -1) -> None:
        self.asked: list[list[str]] = []
        self.gain, self.fails_at = gain, fails_at

    def __call__(self, words: list[str]) -> int:
        folder = Path(words[words.index("--run") + 1])
        (folder / "checkpoints" / "step-00000001").mkdir(parents=True, exist_ok=True)
        self.asked.append(words)
        if len(self.asked) - 1 == self.fails_at:
            return 143
        rows = [(0, 0.2), (10, 0.2 + self.gain(words))]
        lines = [json.dumps({"kind": "exam", "step": s, "greedy": g}) for s, g in rows]
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        return 0


def test_preparations_are_made_once_and_everything_is_run_once(claim):
    machine = Machine()
    assert run_missing(claim, ["a", "b"], 9, machine) == 0
    names = [
        (words[0], *Path(words[words.index("--run") + 1]).relative_to(claim.runs.parent).parts)
        for words in machine.asked
    ]
    text, sft = names[0][2], names[1][2]
    assert names == [
        ("train", "starts", text, "0"), ("sft", "starts", sft, "0"),
        ("grpo", "one", "a", "0"), ("sft", "one", "b", "0"),
        ("train", "starts", text, "1"), ("sft", "starts", sft, "1"), ("grpo", "one", "a", "1"),
    ]  # fmt: skip
    assert machine.asked[2][:4] == ["grpo", str(claim.starts / sft / "0"), "--lr", "0"]
    assert machine.asked[3][1] == str(claim.starts / text / "0")
    assert machine.asked[6][-2:] == ["--seed", "1"]
    again = Machine()
    assert run_missing(claim, ["a", "b"], 9, again) == 0
    assert again.asked == []


def test_claims_with_the_same_preparations_share_them_and_others_do_not(claim, tmp_path):
    run_missing(claim, ["a"], 1, Machine())
    other = CLAIM.replace("sort", "reverse")
    for name, changed, asked in (("same", CLAIM, ["grpo"]), ("other", other, ["sft", "grpo"])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "claim.toml").write_text(changed)
        machine = Machine()
        run_missing(Claim(tmp_path / name, tmp_path / "runs"), ["a"], 1, machine)
        assert [words[0] for words in machine.asked] == asked


@pytest.mark.parametrize(("ends", "verdict"), [(0.5, "holds"), (0.4, "does not hold")])
def test_a_gain_that_costs_what_is_to_be_kept_does_not_hold(tmp_path, ends, verdict):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "claim.toml").write_text(CLAIM.replace("seeds = 2", "seeds = 1") + 'keeps = "passk"\n')
    claim = Claim(tmp_path / "one", tmp_path / "runs")
    run_missing(claim, ["a"], 1, Machine())
    rows = [{"kind": "exam", "step": s, "greedy": s / 10, "passk": p} for s, p in ((0, 0.5), (10, ends))]
    (claim.folder_of("a", 0) / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    assert collect(claim)["verdict"] == verdict
    assert f"0.500 -> {ends:.3f}" in (claim.folder / "verdict.md").read_text()


def test_a_run_that_was_stopped_goes_on_where_it_stood(claim):
    stopped = Machine(fails_at=2)
    assert run_missing(claim, ["a"], 1, stopped) == 143
    again = Machine()
    assert run_missing(claim, ["a"], 1, again) == 0
    assert again.asked == [["grpo", "--run", str(claim.runs / "a" / "0"), "--resume"]]


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [((0.4, 0.35), "holds"), ((0.4, 0.1), "does not hold"), ((0.4,), "holds so far; 1 runs are missing")],
)
def test_the_verdict_is_what_the_numbers_say(claim, gains, verdict):
    seen = iter(gains)
    run_missing(claim, ["a"], len(gains), Machine(gain=lambda words: next(seen) if words[0] == "grpo" else 0))
    results = collect(claim)
    assert results["verdict"] == verdict
    assert [run["number"] for run in results["arms"]["a"].values()] == pytest.approx(list(gains))
    page = (claim.folder / "verdict.md").read_text()
    assert verdict in page
    assert (claim.folder / "figure.svg").read_text().count("<path") == len(gains)


def test_results_of_another_machine_stay(claim):
    run_missing(claim, ["a"], 1, Machine())
    collect(claim)
    elsewhere = Claim(claim.folder, claim.runs / "elsewhere")
    assert list(collect(elsewhere)["arms"]["a"]) == ["0"]


def test_an_interval_is_students():
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 4.303 / 3**0.5), rel=1e-4)


@pytest.mark.parametrize("cut", ["claim = ", "[verdict]", 'arms = ["a"]'])
def test_a_claim_that_lacks_something_is_refused(tmp_path, cut):
    (tmp_path / "claim.toml").write_text(CLAIM.replace(cut, "other = " if "=" in cut else "[other]"))
    with pytest.raises(ClaimError):
        Claim(tmp_path, tmp_path)


@pytest.mark.parametrize("name", all_claims())
def test_every_claim_of_the_repository_is_a_command_line(name):
    """All jobs of all arms are words that `deepseek-v3` reads."""
    from importlib import import_module

    from deepseek_v3.cli import COMMANDS, bind_values, join_repeats, parse_options

    claim = Claim(HERE / name)
    for arm in claim.arms:
        for job in [*claim.preparations(arm, 0), claim.job(arm, 0)]:
            command = COMMANDS[job.words[0]]
            kind = getattr(import_module(f"deepseek_v3.commands.{command.module}"), command.options)
            options = parse_options(kind, "x", join_repeats(kind, bind_values(kind, job.words[1:])))
            assert options.run == str(job.folder)
