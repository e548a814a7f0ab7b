"""The ledger: what is missing is run once, a stopped run goes on, and the verdict says what the numbers say."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from experiments.drawing import round_levels
from experiments.ledger import HERE, Claim, ClaimError, all_claims, collect, main, run_missing
from experiments.verdict import describe, interval, judge, judge_gaps, judge_order, student, weigh_gap, weigh_order

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


def test_an_arm_may_name_its_seeds(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "claim.toml").write_text(CLAIM.replace("seeds = 1", "seeds = [3, 1]"))
    claim, machine = Claim(tmp_path / "one", tmp_path / "runs"), Machine()
    assert run_missing(claim, ["b"], 9, machine) == 0
    assert [words[-1] for words in machine.asked] == ["1", "1", "3", "3"]
    assert set(collect(claim)["arms"]["b"]) == {"1", "3"}


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


@pytest.mark.parametrize("freedom", [*range(1, 16), 29, 60])
def test_ninety_five_per_cent_of_the_density_of_student_lie_within_the_bound(freedom):
    bound = student(freedom)
    at = np.linspace(-bound, bound, 200_001)
    density = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    curve = (1 + at * at / freedom) ** (-(freedom + 1) / 2)
    inside = density * (curve.sum() - (curve[0] + curve[-1]) / 2) * (at[1] - at[0])
    assert inside == pytest.approx(0.95, abs=1e-4)


@pytest.mark.parametrize(("start", "verdict"), [(0.4, "holds"), (0.41, "does not hold"), (0.19, "does not hold")])
def test_a_run_that_begins_outside_the_band_counts_for_nothing_and_is_named(claim, start, verdict):
    """Of three runs two gain enough; the third gains nothing, and only where it began can take it out."""
    claim.held["verdict"]["begins"] = [0.2, 0.4]
    outside = {0.4: 0.6, 0.41: 0.3, 0.19: 0.3}[start]
    arms = {"a": {str(i): {"series": [[0, begin], [9, begin + gain]], "number": gain}
                  for i, (begin, gain) in enumerate(((0.2, 0.4), (start, 0.4), (outside, 0.0)))}, "b": {}}  # fmt: skip
    assert judge(claim.held, arms, 0) == verdict
    page = describe(
        "one", claim.held, {"measure": claim.held["measure"], "arms": arms, "verdict": verdict}, {"a": 3, "b": 1}
    )
    named = {
        0.4: "Seed 2 of a counts for nothing: it began at 0.600",
        0.41: "Seed 1 of a counts",
        0.19: "Seed 1 of a counts",
    }
    assert page.count("counts for nothing") == 1
    assert named[start] in page


@pytest.mark.parametrize("cut", ["claim = ", "[verdict]", 'arms = ["a"]'])
def test_a_claim_that_lacks_something_is_refused(tmp_path, cut):
    (tmp_path / "claim.toml").write_text(CLAIM.replace(cut, "other = " if "=" in cut else "[other]"))
    with pytest.raises(ClaimError):
        Claim(tmp_path, tmp_path)


@pytest.mark.parametrize("name", all_claims())
def test_every_claim_of_the_repository_is_a_command_line(name):
    """All jobs of all arms are words that `deepseek-v3` or the small study reads."""
    from importlib import import_module

    from deepseek_v3.cli import COMMANDS, bind_values, join_repeats, parse_options
    from experiments.study import read_words

    claim = Claim(HERE / name)
    for arm in claim.arms:
        for job in [*claim.preparations(arm, 0), claim.job(arm, 0)]:
            if job.words[0] == "study":
                assert read_words(job.words[1:]).run == str(job.folder)
                continue
            command = COMMANDS[job.words[0]]
            kind = getattr(import_module(f"deepseek_v3.commands.{command.module}"), command.options)
            options = parse_options(kind, "x", join_repeats(kind, bind_values(kind, job.words[1:])))
            assert options.run == str(job.folder)


GAPS = {"kind": "gap", "arms": ["low"], "beside": "high", "floor": "nudged", "most": 0.0025}


def arms_with(**gaps: list[float]) -> dict:
    """Arms whose gaps to `high` are these in per cent, seed by seed; every seed's own loss is another."""
    losses = [2.0, 1.9, 2.3, 2.1, 1.7]
    arms = {"high": {str(i): {"number": loss} for i, loss in enumerate(losses)}}
    return arms | {
        arm: {str(i): {"number": losses[i] * (1 + gap / 100)} for i, gap in enumerate(each)}
        for arm, each in gaps.items()
    }


@pytest.mark.parametrize(
    ("each", "verdict"),
    [
        ([0.1, 0.12, 0.08, 0.11, 0.09], "holds"),  # 0.1 +- 0.02
        ([-0.1, -0.12, -0.08, -0.11, -0.09], "holds"),
        ([0.2, 0.22, 0.28, 0.21, 0.19], "undecided"),  # 0.22 +- 0.044: the interval ends beyond 0.25
        ([1.0, -1.0, 1.0, -1.0, 0.0], "undecided"),  # a mean of nothing proves nothing
        ([0.4, 0.42, 0.38, 0.41, 0.39], "does not hold"),
        ([-0.4, -0.42, -0.38, -0.41, -0.39], "does not hold"),  # an error, though a lucky one
        ([0.1], "undecided"),  # one seed has no interval
        ([], "open: some arm has not run yet"),
    ],
)
def test_a_gap_holds_where_its_whole_interval_does(each, verdict):
    assert judge_gaps(GAPS, arms_with(low=each, nudged=[0.01])) == verdict


def test_an_arm_that_must_be_beyond_is_judged_the_other_way_round():
    verdict = {**GAPS, "beyond": ["control"]}
    good, bad, open_, lucky = [0.1, 0.11], [0.9, 0.91], [0.2, 0.3], [-50.0, -49.5]
    for low, control, word in ((good, bad, "holds"), (good, good, "does not hold"), (bad, bad, "does not hold"),
                               (good, lucky, "does not hold"), (lucky, bad, "does not hold"),
                               (good, open_, "undecided"), (bad, open_, "does not hold")):  # fmt: skip
        assert judge_gaps(verdict, arms_with(low=low, control=control, nudged=[0.01])) == word


def test_chance_is_the_spread_of_the_floor_over_the_root_of_the_seeds():
    gap = weigh_gap(GAPS, arms_with(low=[0.1, 0.12, 0.08, 0.1], nudged=[0.3, -0.4]), "low")
    assert gap is not None
    assert gap.mean == pytest.approx(0.1e-2)
    assert gap.chance == pytest.approx(4.303 * (0.125**0.5) / 4**0.5 * 1e-2)  # rms of 0.3 and 0.4: the root of 0.125
    assert gap.beside_chance == "no"
    sure = weigh_gap(GAPS, arms_with(low=[0.9, 1.0, 0.8], nudged=[0.1, -0.1]), "low")
    assert sure is not None
    assert sure.beside_chance == "yes"


def test_seeds_are_paired_with_their_own():
    """The losses of seeds differ by 30 %; a gap of 0.1 % is seen all the same, and a seed without its pair waits."""
    arms = arms_with(low=[0.1] * 5, nudged=[0.01])
    del arms["high"]["2"]
    gap = weigh_gap(GAPS, arms, "low")
    assert gap is not None
    assert gap.each == pytest.approx([0.001] * 4)


def test_the_page_and_the_figure_of_a_gap(tmp_path):
    (tmp_path / "one").mkdir()
    arms = '[arms.a]\n[arms.b]\n[arms.c]\n[measure]\nkind = "exam"\nvalue = "greedy"\nat = "last"\nhigher = false\n'
    text = CLAIM[: CLAIM.index("[arms.a]")].replace(
        'prepare = [["train", "--preset", "nano"], ["sft", "{start}"', 'unused = [["a"'
    )
    text += arms + '[verdict]\nkind = "gap"\narms = ["b"]\nbeside = "a"\nfloor = "c"\nmost = 0.01\n'
    (tmp_path / "one" / "claim.toml").write_text(text.replace('["{start}"]', "[]"))
    claim = Claim(tmp_path / "one", tmp_path / "runs")
    ends = {"a": 0.4, "b": 0.4008, "c": 0.4004}
    machine = Machine(gain=lambda words: ends[Path(words[words.index("--run") + 1]).parent.name])
    assert run_missing(claim, ["a", "b", "c"], 9, machine, only=["a/1", "b/1"]) == 0
    assert len(machine.asked) == 2
    run_missing(claim, ["a", "b", "c"], 9, machine)
    assert collect(claim)["verdict"] == "holds"
    page = (claim.folder / "verdict.md").read_text()
    assert "| b | 2 | +0.133 ± 0.000 | ± 0.203 | no | holds | +0.133, +0.133 |" in page  # 4.303 * 0.0667 / sqrt(2)
    assert "| c | 2 | +0.067 ± 0.000 | ± 0.203 | the floor | - | +0.067, +0.067 |" in page
    assert (claim.folder / "figure.svg").read_text().count("<path") == 4


@pytest.mark.parametrize(("low", "high"), [(-1.27, 1.03), (0, 3.2), (0, 1), (0, 1e-5), (-500, 12345), (0.99, 1.01)])
def test_the_levels_of_a_figure_are_round_numbers_and_zero_is_one(low, high):
    levels = round_levels(low, high)
    assert 4 <= len(levels) <= 10
    assert low <= levels[0] <= levels[-1] <= high
    assert len({round(b - a, 9) for a, b in itertools.pairwise(levels)}) == 1
    assert all(len(f"{level:g}") <= 6 for level in levels)
    assert (0 in levels) == (low <= 0 <= high)


def test_only_names_runs_and_a_wrong_one_is_refused(capsys):
    assert main(["fp8", "--only", "fp8/99"]) == 1
    assert "no run 'fp8/99'; it has bf16/0" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["beside", "floor", "most"])
def test_a_verdict_on_gaps_that_lacks_something_is_refused(tmp_path, key):
    text = (HERE / "fp8" / "claim.toml").read_text(encoding="utf-8")
    (tmp_path / "claim.toml").write_text(
        "\n".join(line for line in text.splitlines() if not line.startswith(f"{key} ="))
    )
    with pytest.raises(ClaimError, match=key):
        Claim(tmp_path, tmp_path)


# -- an option is tuned before the seeds run ---------------------------------------------------------------------------

TUNE = """
[tune]
option = "--lr"
values = ["1e-3", "2e-3", "4e-3"]
seed = 100
as = { b = "a" }
"""


@pytest.fixture
def tuned(tmp_path) -> Claim:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "claim.toml").write_text(CLAIM.replace('options = ["--lr", "0"]', "") + TUNE)
    return Claim(tmp_path / "one", tmp_path / "runs")


def by_rate(words: list[str]) -> float:
    """2e-3 gains most."""
    return {"1e-3": 0.35, "2e-3": 0.5, "4e-3": 0.1}[words[words.index("--lr") + 1]] if "--lr" in words else 0


def test_every_seed_runs_with_the_value_that_was_best_with_a_seed_of_its_own(tuned):
    machine = Machine(gain=by_rate)
    assert run_missing(tuned, ["a", "b"], 9, machine) == 0
    runs = [(words[words.index("--lr") + 1], words[-1]) for words in machine.asked if "--lr" in words]
    tried = [("1e-3", "100"), ("2e-3", "100"), ("4e-3", "100")]
    assert runs == [*tried, ("2e-3", "0"), ("2e-3", "0"), ("2e-3", "1")]  # a, b as a, a
    results = collect(tuned)
    assert results["tuned"] == {"a": {"numbers": pytest.approx({"1e-3": 0.35, "2e-3": 0.5, "4e-3": 0.1}),
                                      "chosen": "2e-3"}}  # fmt: skip
    assert "| a | 0.3500 | **0.5000** | 0.1000 | b |" in (tuned.folder / "verdict.md").read_text()


def test_the_lowest_is_chosen_where_lower_is_better(tuned):
    tuned.held["measure"]["higher"] = False
    run_missing(tuned, ["a"], 1, Machine(gain=by_rate))
    assert tuned.tuning.words("a") == ["--lr", "4e-3"]


def test_what_was_tuned_elsewhere_is_not_tuned_again(tuned):
    run_missing(tuned, ["a"], 0, Machine(gain=by_rate))
    elsewhere, machine = Claim(tuned.folder, tuned.runs / "elsewhere"), Machine()
    run_missing(elsewhere, ["b"], 1, machine)
    assert [words[words.index("--lr") + 1] for words in machine.asked if "--lr" in words] == ["2e-3"]


# -- one arm below another ---------------------------------------------------------------------------------------------

ORDER = {"kind": "order", "order": [{"lower": "low", "upper": "high"}]}


@pytest.mark.parametrize(
    ("each", "word"),
    [
        ([-1.0, -1.2, -0.8, -1.1, -0.9], "holds"),
        ([1.0, 1.2, 0.8, 1.1, 0.9], "does not hold"),
        ([-1.0, 1.2, -0.8, 1.1, -0.9], "undecided"),
        ([-1.0], "undecided"),  # one seed has no interval
        ([], "open"),
    ],
)
def test_an_order_holds_where_its_whole_interval_lies_below_zero(each, word):
    order = weigh_order(ORDER["order"][0], arms_with(low=each))
    assert order.word == word
    assert order.each == pytest.approx([gap / 100 for gap in each])


def test_orders_hold_together_where_each_does():
    good, bad, open_ = [-1.0, -1.1], [1.0, 1.1], [-1.0, 1.0]
    verdict = {"order": [{"lower": "b", "upper": "high"}, {"lower": "c", "upper": "high"}]}
    for b, c, word in ((good, good, "holds"), (good, open_, "undecided"), (bad, open_, "does not hold")):
        assert judge_order(verdict, arms_with(b=b, c=c)) == word
    assert judge_order(verdict, arms_with(b=good, c=[])).startswith("open")


def test_an_order_at_a_step_and_of_another_value():
    run = {"number": 1.0, "series": [[10, 4.0], [20, 1.0]], "also": {"apart": 0.2}}
    other = {"number": 2.0, "series": [[10, 2.0], [20, 2.0]], "also": {"apart": 0.4}}
    arms = {"low": {"0": run, "1": run}, "high": {"0": other, "1": other}}
    pair = {"lower": "low", "upper": "high"}
    assert weigh_order(pair, arms).each == pytest.approx([-0.5, -0.5])
    assert weigh_order({**pair, "step": 10}, arms).each == pytest.approx([1.0, 1.0])
    assert weigh_order({**pair, "value": "apart"}, arms).each == pytest.approx([-0.5, -0.5])


def test_the_page_and_the_figure_of_an_order(claim):
    claim.held["verdict"] = {"kind": "order", "order": [{"lower": "b", "upper": "a"}]}
    claim.held["measure"]["also"] = ["greedy"]
    ends = {"a": 0.4, "b": 0.1}
    run_missing(claim, ["a", "b"], 9, Machine(gain=lambda w: ends.get(Path(w[w.index("--run") + 1]).parent.name, 0)))
    results = collect(claim)
    assert results["arms"]["a"]["1"]["also"] == {"greedy": pytest.approx(0.6)}
    assert results["verdict"] == "undecided"  # b has one seed
    assert "| b below a | 1 | -75.00 | undecided | -75.00 |" in (claim.folder / "verdict.md").read_text()
    figure = (claim.folder / "figure.svg").read_text()
    assert figure.count("<circle") == 4  # two seeds of a, one of b, one pair
