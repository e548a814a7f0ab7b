"""report.html of a run: one file without a network, drawn from metrics.jsonl.

write_report("runs/demo")

Curves and heat maps are inline SVG and canvas, made by the small script in report_page.html from the numbers that stand
in the page itself, so that the page can be mailed, and its numbers read by a program (`<script id="data">`).
"""

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepseek_v3.config import ModelConfig
from deepseek_v3.training.metrics import read_metrics
from deepseek_v3.weights.files import replace_file

PAGE = Path(__file__).with_name("report_page.html")
POINTS = 400  # of a curve; more cannot be seen
HEAT_COLUMNS = 160


def write_report(run: str | Path, facts: Sequence[tuple[str, str, str]] = ()) -> Path:
    """Write RUN/report.html and return its path.

    Args:
        facts: (name, value, explanation) cards that stand on top, after those that every run has.
    """
    run = Path(run)
    rows = read_metrics(run / "metrics.jsonl")
    record = json.loads((run / "options.json").read_text(encoding="utf-8")) if (run / "options.json").is_file() else {}
    data = collect_data(rows)
    data["facts"] = [list(fact) for fact in [*common_facts(rows), *facts]]
    data["title"], data["about"] = run.name, record.get("data", "")
    data["options"] = record.get("options", {})
    data["layer_names"] = name_layers(run, len(data["loads"]["layers"]))
    page = PAGE.read_text(encoding="utf-8")
    page = page.replace("@TITLE@", html.escape(run.name))
    page = page.replace("@DATA@", json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"))
    target = run / "report.html"
    replace_file(target, page.encode())
    return target


def collect_data(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the series of the page: curves, loads and samples."""
    steps = [row for row in rows if row["kind"] == "step"]
    thin = steps[:: max(1, -(-len(steps) // POINTS))]
    heldout = [row for row in rows if row["kind"] == "heldout"]
    loaded = [row for row in steps if row.get("loads")]
    loaded = loaded[:: max(1, -(-len(loaded) // HEAT_COLUMNS))]
    keys = ("loss", "mtp_loss", "bits_per_byte", "lr", "grad_norm", "max_vio", "tokens_per_s", "tokens")
    return {
        "steps": {"step": [r["step"] for r in thin], **{k: [_short(r.get(k)) for r in thin] for k in keys}},
        "heldout": {k: [_short(r.get(k)) for r in heldout] for k in ("step", "bits_per_byte", "mtp_acceptance")},
        "loads": {"step": [r["step"] for r in loaded], "layers": _by_layer([r["loads"] for r in loaded])},
        "samples": [{k: r[k] for k in ("step", "prompt", "text")} for r in rows if r["kind"] == "sample"],
        "skipped": [r["step"] for r in rows if r["kind"] == "skipped"],
        "policy": collect_policy(rows, thin),
    }


def collect_policy(rows: list[dict[str, Any]], thin: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what a training on judged answers tells: curves, examinations, the experts' mismatch, chosen answers."""
    judged = [row for row in thin if "reward" in row]
    keys = ("reward", "entropy", "length", "clipped", "sampler_gap", "alike", "rollout_s", "reward_s", "update_s")
    exams = [row for row in rows if row["kind"] == "exam"]
    meters = [row for row in rows if row["kind"] == "mismatch"]
    answers = [row for row in rows if row["kind"] == "answer"]
    return {
        "steps": {"step": [r["step"] for r in judged], **{k: [_short(r.get(k)) for r in judged] for k in keys}},
        "exams": {k: [_short(r[k]) for r in exams] for k in ("step", "greedy", "pass1", "passk", "k", "problems")},
        "meters": {k: [_short(r[k]) for r in meters] for k in ("step", "rerouted_tokens", "gap_replayed", "gap_own")},
        "answers": [{k: r[k] for k in ("step", "prompt", "text", "reward")} for r in answers],
    }


def name_layers(run: Path, count: int) -> list[str]:
    """Return what to call the layers with experts, MTP modules last; an empty list if the config is not there."""
    try:
        config = ModelConfig.from_json(run / "config.json")
    except (OSError, ValueError):
        return []
    main = [i for i in range(config.num_hidden_layers) if config.is_moe_layer(i)]
    names = [f"layer {i + 1} of {config.num_hidden_layers}" for i in main]
    return [*names, *(f"MTP module {k + 1}" for k in range(count - len(main)))]


def common_facts(rows: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Return the cards that every run has: where it began, where it stands."""
    steps = [row for row in rows if row["kind"] == "step"]
    heldout = [row for row in rows if row["kind"] == "heldout"]
    facts = examination_facts(rows)
    if heldout:
        first, last = heldout[0], heldout[-1]
        facts.append(
            (
                "held-out text",
                f"{last['bits_per_byte']:.3f}",
                f"bits per byte; {first['bits_per_byte']:.2f} at the start",
            )
        )
        if last.get("mtp_acceptance") is not None:
            facts.append(
                ("MTP acceptance", f"{last['mtp_acceptance']:.0%}", "of its drafts are what the model says itself")
            )
    if steps:
        rate = sorted(row["tokens_per_s"] for row in steps)[len(steps) // 2]
        facts.append(("tokens learned from", f"{steps[-1]['tokens']:,}", f"in {steps[-1]['step']:,} steps"))
        facts.append(("tokens per second", f"{rate:,.0f}", "median over the run"))
    return facts


def examination_facts(rows: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Return the cards of held-out problems, if any were asked."""
    exams = [row for row in rows if row["kind"] == "exam"]
    if not exams:
        return []
    first, last = exams[0], exams[-1]
    facts = [
        ("held-out problems right", f"{last['greedy']:.1%}", f"of {last['problems']}; {first['greedy']:.1%} at first")
    ]
    if last["k"]:
        facts.append(
            (f"pass@{last['k']}", f"{last['passk']:.1%}", f"one of {last['k']} draws; {first['passk']:.1%} at first")
        )
    return facts


def _by_layer(loads: list[list[list[float]]]) -> list[list[list[float]]]:
    """Turn [time][layer][expert] into [layer][expert][time]."""
    if not loads:
        return []
    return [
        [[moment[layer][e] for moment in loads] for e in range(len(loads[0][layer]))] for layer in range(len(loads[0]))
    ]


def _short(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value
