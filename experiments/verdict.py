"""What the numbers of a claim say: each arm by itself, beside another arm and a floor of noise, or below another arm.

    kind = "number"     every seed, or the mean, is at least, at most, or above another arm
    kind = "gap"        relative gaps to another arm, seed by seed, with their interval; beside those that chance makes
    kind = "order"      pairs {lower, upper} of arms, seed by seed: by the number, at a `step`, or by another `value`

A gap is an arm's number / that of the other arm - 1, of the same seed. Its interval is Student's, 95 %, of the mean.
It *holds* that a gap is at most some number where the whole interval lies between minus and plus that number; it *does
not hold* where the whole interval lies outside; all else is *undecided*, and more seeds may follow.
The floor is an arm
that differs from the other one by something without meaning: what it gains or loses is chance. Of n seeds chance alone
moves the mean by t * rms / sqrt(n) or less, 19 times of 20.

An order *holds* where the interval of the mean of lower / upper - 1 lies below zero, *does not hold* where it lies
above, and is *undecided* else. Several orders hold together where each does.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

Arms = dict[str, dict[str, Any]]  # arm -> seed -> {"series", "number"}


def student(freedom: int) -> float:
    """Return what half of a 95 % interval is in standard errors, to three decimals: where `inside_student` is 0.95."""
    low, high = 1.9, 12.8
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if inside_student(middle, freedom) < 0.95 else (low, middle)
    return round(high, 3)


def inside_student(bound: float, freedom: int) -> float:
    """Return the probability that Student's t lies between -bound and bound, by its finite series in an angle."""
    angle, first = math.atan(bound / math.sqrt(freedom)), 1 + freedom % 2
    term, total = math.cos(angle) ** (first - 1), 0.0
    for k in range(first, freedom, 2):
        total += term
        term *= k / (k + 1) * math.cos(angle) ** 2
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if freedom % 2 else total


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half of its 95 % interval by Student's t; the half is infinite for one value."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.inf
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
    return mean, student(len(values) - 1) * spread


# -- beside another arm and a floor of noise ---------------------------------------------------------------------------


class Gap(NamedTuple):
    """Of one arm: relative gaps by seed, their mean and half its interval, what chance alone makes, and a word."""

    each: list[float]
    mean: float
    half: float
    chance: float
    word: str

    @property
    def beside_chance(self) -> str:
        """Whether it is more than chance alone would make of so many seeds."""
        return "unknown" if math.isinf(self.chance) else "yes" if abs(self.mean) > self.chance else "no"


def gaps_to(arms: Arms, arm: str, other: str) -> list[float]:
    """Relative gaps of an arm to another one, for the seeds that both have."""
    seeds = sorted(set(arms[arm]) & set(arms[other]), key=int)
    return [arms[arm][seed]["number"] / arms[other][seed]["number"] - 1 for seed in seeds]


def weigh_gap(verdict: dict[str, Any], arms: Arms, arm: str) -> Gap | None:
    """Judge one arm's gap; None where no seed has run of it and of the other."""
    each, floor = (gaps_to(arms, name, verdict["beside"]) for name in (arm, verdict["floor"]))
    if not each:
        return None
    (mean, half), chance, most = interval(each), math.inf, verdict["most"]
    if floor:
        rms = math.sqrt(sum(gap * gap for gap in floor) / len(floor))
        chance = student(len(floor)) * rms / math.sqrt(len(each))
    within, beyond = abs(mean) + half <= most, abs(mean) - half > most
    return Gap(each, mean, half, chance, "holds" if within else "does not hold" if beyond else "undecided")


def judge_gaps(verdict: dict[str, Any], arms: Arms) -> str:
    """Say whether all gaps of `arms` are at most `most`, to either side, and all of `beyond` are worse by more."""
    words = []
    for names, good, bad in ((verdict["arms"], "holds", "does not hold"),
                             (verdict.get("beyond", []), "does not hold", "holds")):  # fmt: skip
        for name in names:
            gap = weigh_gap(verdict, arms, name)
            if gap is None:
                return "open: some arm has not run yet"
            better = gap.word == "does not hold" and gap.mean < 0  # neither no gap nor a loss
            word = {good: "holds", bad: "does not hold"}.get(gap.word, "undecided")
            words.append("does not hold" if better else word)
    return next((word for word in ("does not hold", "undecided") if word in words), "holds")


def gap_series(verdict: dict[str, Any], arms: Arms) -> Arms:
    """Return the gaps in per cent over the steps, for a figure."""
    other = arms[verdict["beside"]]
    drawn: Arms = {}
    for arm, seeds in ((name, arms[name]) for name in arms if name != verdict["beside"]):
        drawn[arm] = {}
        for seed in seeds:
            base = dict(map(tuple, other[seed]["series"])) if seed in other else {}
            points = [(step, 100 * (value / base[step] - 1)) for step, value in seeds[seed]["series"] if step in base]
            if points:
                drawn[arm][seed] = {"series": points}
    return drawn


def describe_gaps(verdict: dict[str, Any], arms: Arms) -> list[str]:
    """Write the gaps as a table."""
    other, most = verdict["beside"], verdict["most"]
    lines = [f"Gap to `{other}`, seed by seed, in per cent (positive: worse), beside {most:.2%}:", "",
             f"| arm | seeds | mean and 95 % interval | chance alone | more than chance | at most {most:.2%} | each |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for arm in (name for name in arms if name != other):
        gap = weigh_gap(verdict, arms, arm)
        if gap is None:
            lines.append(f"| {arm} | 0 | - | - | - | - | - |")
            continue
        mean = f"{100 * gap.mean:+.3f}" + (f" ± {100 * gap.half:.3f}" if math.isfinite(gap.half) else "")
        each = ", ".join(f"{100 * value:+.3f}" for value in gap.each)
        chance = f"± {100 * gap.chance:.3f}" if math.isfinite(gap.chance) else "-"
        asked = ("the floor", "-") if arm == verdict["floor"] else (gap.beside_chance, gap.word)
        lines.append(f"| {arm} | {len(gap.each)} | {mean} | {chance} | {asked[0]} | {asked[1]} | {each} |")
    return [*lines, ""]


# -- one arm below another --------------------------------------------------------------------------------------------


class Order(NamedTuple):
    """Of a pair of arms: lower / upper - 1 by seed, their mean and half its interval, a word, and what is compared."""

    lower: str
    upper: str
    each: list[float]
    mean: float
    half: float
    word: str
    value: str  # "" for the number
    step: int  # 0 for the last

    @property
    def name(self) -> str:
        """The pair as a sentence."""
        at = f" at step {self.step}" if self.step else ""
        return f"{self.lower} below {self.upper}{at}" + (f" in `{self.value}`" if self.value else "")


def weigh_order(pair: dict[str, Any], arms: Arms) -> Order:
    """Judge one pair by the seeds that both arms have."""
    lower, upper, seeds = pair["lower"], pair["upper"], []
    for seed in sorted(set(arms[lower]) & set(arms[upper]), key=int):
        seeds.append((number_for(pair, arms[lower][seed]), number_for(pair, arms[upper][seed])))
    each = [low / high - 1 for low, high in seeds]
    mean, half, word = math.nan, math.inf, "open"
    if each:
        mean, half = interval(each)
        word = "holds" if mean + half < 0 else "does not hold" if mean - half > 0 else "undecided"
    return Order(lower, upper, each, mean, half, word, pair.get("value", ""), pair.get("step", 0))


def number_for(pair: dict[str, Any], run: dict[str, Any]) -> float:
    """What is compared of a run."""
    if "step" in pair:
        return dict(map(tuple, run["series"]))[pair["step"]]
    return run["also"][pair["value"]] if "value" in pair else run["number"]


def judge_order(verdict: dict[str, Any], arms: Arms) -> str:
    """Say of all pairs together whether the order holds."""
    words = [weigh_order(pair, arms).word for pair in verdict["order"]]
    if "open" in words:
        return "open: some arm has not run yet"
    return next((word for word in ("does not hold", "undecided") if word in words), "holds")


def describe_order(verdict: dict[str, Any], arms: Arms) -> list[str]:
    """Write the pairs as a table."""
    lines = ["lower / upper - 1, seed by seed, in per cent (negative: the order is as claimed):", "",
             "| is | seeds | mean and 95 % interval | verdict | each |", "|---|---|---|---|---|"]  # fmt: skip
    for order in (weigh_order(pair, arms) for pair in verdict["order"]):
        mean = f"{100 * order.mean:+.2f}" + (f" ± {100 * order.half:.2f}" if math.isfinite(order.half) else "")
        each = ", ".join(f"{100 * value:+.2f}" for value in order.each)
        lines.append(f"| {order.name} | {len(order.each)} | {mean if order.each else '-'} | {order.word} | {each} |")
    return [*lines, ""]


# -- each arm by itself, and the door to all -------------------------------------------------------------------------


def split_by_start(verdict: dict[str, Any], seeds: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return the seeds that count and those that do not: their runs began outside `begins`, whatever came of them."""
    low, high = verdict.get("begins", (-math.inf, math.inf))
    order = sorted(seeds, key=int)
    counted = [seed for seed in order if low <= seeds[seed]["series"][0][1] <= high]
    return counted, [seed for seed in order if seed not in counted]


def judge_numbers(verdict: dict[str, Any], measure: dict[str, Any], arms: Arms) -> str:
    """Say whether the claim held: by every seed or by the mean, against a number or another arm."""
    named = [*verdict["arms"], *([verdict["above"]] if "above" in verdict else [])]
    counted = {arm: [arms[arm][seed] for seed in split_by_start(verdict, arms[arm])[0]] for arm in named}
    numbers = {arm: [run["number"] for run in runs] for arm, runs in counted.items()}
    if not all(numbers.values()):
        return "open: some arm has not run yet"
    if verdict.get("of", "every seed") == "mean":
        numbers = {arm: [sum(values) / len(values)] for arm, values in numbers.items()}
    sign = 1 if measure.get("higher", True) else -1
    least, most = verdict.get("least", -math.inf), verdict.get("most", math.inf)
    held = all(least <= value <= most for arm in verdict["arms"] for value in numbers[arm])
    if "above" in verdict:
        pairs = [pair for arm in verdict["arms"] for pair in zip(numbers[arm], numbers[verdict["above"]])]
        held = held and all(sign * (a - b) > 0 for a, b in pairs)
    runs = [run for arm in verdict["arms"] for run in counted[arm]]
    held = held and all(run["kept"][1] >= run["kept"][0] for run in runs if "kept" in run)
    return "holds" if held else "does not hold"


def arms_judged(verdict: dict[str, Any]) -> list[str]:
    """The arms that a verdict rests on."""
    named = [*verdict.get("arms", []), *verdict.get("beyond", [])]
    named += dict.fromkeys(pair[side] for pair in verdict.get("order", []) for side in ("lower", "upper"))
    return named + [verdict[key] for key in ("above", "beside", "floor") if key in verdict]


def judge(held: dict[str, Any], arms: Arms, lacking: int) -> str:
    """Say what the numbers say of a claim, and how many runs of the arms it rests on are missing."""
    verdict = held["verdict"]
    judges = {"gap": judge_gaps, "order": judge_order}
    judged_by = judges.get(verdict.get("kind", "number"))
    word = judged_by(verdict, arms) if judged_by else judge_numbers(verdict, held["measure"], arms)
    return f"{word} so far; {lacking} runs are missing" if lacking > 0 and not word.startswith("open") else word


def describe(
    name: str, held: dict[str, Any], results: dict[str, Any], wanted: dict[str, int], further: Sequence[str] = ()
) -> str:
    """Write the verdict as a page.

    Args:
        wanted: how many seeds each arm shall have.
        further: lines that stand below the numbers.
    """
    measure, arms, digits = results["measure"], results["arms"], held["measure"].get("digits", 3)
    source = f"Source: {held['source']}. What it must come to: {held['number']}."
    value = f"`{measure['value']}`, {measure.get('at', 'gain')} of a run:"
    lines = [f"# {name}", "", f"**{held['claim']}**", "", source, "", f"**Verdict: {results['verdict']}.**", ""]
    if held["verdict"].get("kind") == "gap":
        lines += describe_gaps(held["verdict"], arms)
    if held["verdict"].get("kind") == "order":
        lines += describe_order(held["verdict"], arms)
    lines += [value, "", "| arm | seeds | mean and 95 % interval | each |", "|---|---|---|---|"]
    for arm, seeds in arms.items():
        values = [seeds[seed]["number"] for seed in sorted(seeds, key=int)]
        if not values:
            lines.append(f"| {arm} | 0 of {wanted[arm]} | - | - |")
            continue
        mean, half = interval(values)
        shown = f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if math.isfinite(half) else "")
        each = ", ".join(f"{value:.{digits}f}" for value in values)
        lines.append(f"| {arm} | {len(values)} of {wanted[arm]} | {shown} | {each} |")
    for arm in (arm for arm in held["verdict"].get("arms", []) if "begins" in held["verdict"]):
        low, high = held["verdict"]["begins"]
        for seed in split_by_start(held["verdict"], arms[arm])[1]:
            start = arms[arm][seed]["series"][0][1]
            lines += ["", f"Seed {seed} of {arm} counts for nothing: it began at {start:.3f}, not at {low} to {high}."]
    for arm, seeds in arms.items():
        ends = [seeds[seed]["kept"] for seed in sorted(seeds, key=int) if "kept" in seeds[seed]]
        kept = ", ".join(f"{first:.3f} -> {last:.3f}" for first, last in ends)
        lines += ["", f"`{held['verdict']['keeps']}` of {arm}, from its start to its end: {kept}"] if kept else []
    lines += ["", *further[:-1]] if further else []
    lines += ["", *(["![the runs](figure.svg)", ""] if any(arms.values()) else [])]
    lines += [f"Again, or what is missing: `python -m experiments.ledger {name} --run`", ""]
    return "\n".join(lines)
