"""The page of `make reason`: what the runs themselves have measured, and what to try next."""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepseek_v3.training.metrics import read_metrics

if TYPE_CHECKING:
    from rich.console import Console

FORMATS = ("fp32", "bf16", "fp8")
MOMENTS = 4
WHOLE = ("all", "processor")


def gather_facts(folder: Path, spent: dict[str, float], all_s: float) -> dict[str, Any]:
    """Read the runs, and ask once what samplers in other number formats would have done."""
    rows = read_metrics(folder / "grpo" / "metrics.jsonl")
    exams = [row for row in rows if row["kind"] == "exam"]
    steps = [row for row in rows if row["kind"] == "step"]
    answers = [row for row in rows if row["kind"] == "answer"]
    return {
        "seconds": {**spent, "all": all_s},
        "steps": {act: count_steps(folder / name) for act, name in (("sft", "sft"), ("grpo", "grpo"))},
        "before": exams[0],
        "after": exams[-1],
        "entropy": [mean(steps[:5], "entropy"), mean(steps[-5:], "entropy")],
        "reward": [mean(steps[:5], "reward"), mean(steps[-5:], "reward")],
        "shares": {name: sum(row[name] for row in steps) for name in ("rollout_s", "reward_s", "update_s")},
        "tokens_per_s": sum(row["new_tokens"] for row in steps) / max(1e-9, sum(row["rollout_s"] for row in steps)),
        "moments": pick_moments(answers),
        "mismatch": measure_formats(folder / "grpo"),
    }


def count_steps(run: Path) -> int:
    """How many updates a run took."""
    return max((row["step"] for row in read_metrics(run / "metrics.jsonl")), default=0)


def mean(rows: list[dict[str, Any]], name: str) -> float:
    """The average of a figure."""
    return sum(row[name] for row in rows) / max(1, len(rows))


def pick_moments(answers: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return, of every shown problem, its answers at four moments."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in answers:
        found.setdefault(row["prompt"], []).append({name: row[name] for name in ("step", "text", "reward")})
    chosen = {}
    for prompt, rows in found.items():
        places = sorted({round(i * (len(rows) - 1) / (MOMENTS - 1)) for i in range(MOMENTS)})
        chosen[prompt] = [rows[place] for place in places]
    return chosen


def measure_formats(run: Path) -> dict[str, dict[str, float]]:
    """Let samplers in three formats write, and count which tokens the FP32 trainer sends elsewhere."""
    import torch

    from deepseek_v3.data.tokenizer import Tokenizer
    from deepseek_v3.post_training.policy import measure_mismatch, stack_answers
    from deepseek_v3.post_training.rollout import Writer
    from deepseek_v3.post_training.session import find_checkpoint, read_model
    from deepseek_v3.post_training.tasks import different_problems, find_task
    from deepseek_v3.post_training.wording import Wording
    from deepseek_v3.training.run_folder import OPTIONS

    home = find_checkpoint(run)
    model, wording = read_model(home), Wording(Tokenizer.from_file(home))
    task = find_task(json.loads((run / OPTIONS).read_text(encoding="utf-8"))["options"]["task"])
    problems = different_problems(task, "mismatch", 64, held_out=True)
    prompts = [wording.ask(problem["prompt"]) for problem in problems]
    found = {}
    for number_format in FORMATS:
        writer = Writer(
            model, stop_tokens=wording.tokenizer.stop_ids, max_new_tokens=task.longest + 1, choices=True,
            number_format=number_format,
        )  # fmt: skip
        rollouts = writer.write(prompts, 8, temperature=1.0, seed=1)
        batch = stack_answers(rollouts, torch.zeros(len(rollouts)), wording.pad)
        found[number_format] = measure_mismatch(model, batch, 256)
    return found


def show_facts(facts: dict[str, Any], folder: Path, console: "Console") -> None:
    """Print the page."""
    before, after, s = facts["before"], facts["after"], facts["seconds"]
    all_s = sum(facts["shares"].values()) or 1.0
    rows = [
        ("right, the likeliest answer", f"{before['greedy']:.1%} -> {after['greedy']:.1%}", "of held-out sums"),
        ("right, a drawn answer", f"{before['pass1']:.1%} -> {after['pass1']:.1%}", "pass@1"),
        (f"one of {after['k']} drawn", f"{before['passk']:.1%} -> {after['passk']:.1%}", f"pass@{after['k']}"),
        ("entropy", f"{facts['entropy'][0]:.3f} -> {facts['entropy'][1]:.3f}", "nats a written token"),
        ("updates", f"{facts['steps']['sft']} + {facts['steps']['grpo']}", "fine-tuning, then GRPO"),
        ("writes", f"{facts['tokens_per_s']:,.0f} tokens/s", "32 questions, 16 answers each"),
        ("write/judge/learn", "/".join(f"{v / all_s:.0%}" for v in facts["shares"].values()), "of GRPO's time"),
        ("all of it", f"{s['all'] / 60:.1f} min", ", ".join(f"{a} {s[a]:.0f} s" for a in s if a not in WHOLE)),
        ("processor time", f"{s['processor'] / 60:.1f} min", "of all threads; the machine may have had more to do"),
    ]
    console.print()
    for name, value, why in rows:
        console.print(f"  {name:<30}{value:>20}  [dim]{why}[/]")
    console.print("\n  likeliest answers on the way (units first; * is right)")
    for prompt, moments in facts["moments"].items():
        texts = [f"{m['text'][:9]!r}{'*' if m['reward'] >= 1 else ' '}" for m in moments]
        console.print(f"    {prompt:<12}" + "".join(f"{text:<14}" for text in texts), markup=False)
    console.print("\n  tokens that the FP32 trainer sends to other experts than the sampler did")
    for name, found in facts["mismatch"].items():
        gap = f"mean |log ratio| {found['gap_own']:.1e}, with replay {found['gap_replayed']:.1e}"
        console.print(f"    sampler in {name:<5} {found['rerouted_tokens']:7.2%}   {gap}")
    run, sft = (shlex.quote(str(folder / name)) for name in ("grpo", "sft"))
    console.print(f"\n  report: {folder / 'grpo' / 'report.html'}")
    console.print(f"  go on:  deepseek-v3 grpo --run {run} --resume --steps {2 * facts['steps']['grpo']}")
    console.print(
        f"  try:    deepseek-v3 grpo {sft} --task {facts['task']} --run runs/try --loss gspo, or --control flipped"
    )
