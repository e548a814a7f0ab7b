"""The page with which `deepseek-v3 demo` ends: what it measured in that very run, and how that is shown."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from deepseek_v3.training.trainer import Trainer

CODE_PROMPT = "def read_lines(path, encoding=None):\n"  # no space at its end: words bring their own
PROSE_PROMPT = "The statement is used to"


def gather_facts(trainer: "Trainer", training_s: float) -> dict[str, Any]:
    """Measure everything that the page states, in this very run."""
    from deepseek_v3.training.evaluate import compressed_bits_per_byte
    from deepseek_v3.training.metrics import read_metrics
    from deepseek_v3.training.ngram import ByteNgram

    rows = read_metrics(trainer.run / "metrics.jsonl")
    heldout = [row for row in rows if row["kind"] == "heldout"]
    steps = [row for row in rows if row["kind"] == "step"]
    seen = trainer.stream.seen_texts()
    return {
        "start": heldout[0]["bits_per_byte"],
        "end": heldout[-1]["bits_per_byte"],
        "acceptance": heldout[-1]["mtp_acceptance"],
        "max_vio": (steps[0]["max_vio"], sum(row["max_vio"] for row in steps[-20:]) / len(steps[-20:])),
        "ngram": ByteNgram(seen, order=5).bits_per_byte(trainer.heldout),
        "seen_bytes": sum(len(text.encode("utf-8", "replace")) for text in seen),
        "heldout_bytes": sum(len(text.encode("utf-8", "replace")) for text in trainer.heldout),
        "tokens": trainer.tokens_seen,
        "training_rate": sorted(row["tokens_per_s"] for row in steps)[len(steps) // 2],
        "training_s": training_s,
        "share_of_peak": steps[len(steps) // 2]["share_of_peak"],
        **compressed_bits_per_byte(trainer.heldout),
        **measure_writing(trainer),
    }


def measure_writing(trainer: "Trainer") -> dict[str, Any]:
    """Let the model write: code, prose, and greedily with and without drafts."""
    from deepseek_v3.commands.samples import continue_text
    from deepseek_v3.engine.generate import generate
    from deepseek_v3.engine.request import GenerationStatistics

    model, tokenizer = trainer.model.eval(), trainer.tokenizer
    prompt = [tokenizer.bos_id, *tokenizer.encode(CODE_PROMPT)]
    plain, drafted = GenerationStatistics(), GenerationStatistics()
    texts = []
    for statistics, speculative in ((plain, False), (drafted, True)):
        list(generate(model, prompt, max_new_tokens=8, speculative=speculative, stop_tokens=()))  # warm up
        tokens = generate(
            model, prompt, max_new_tokens=96, speculative=speculative, stop_tokens=(), statistics=statistics
        )
        texts.append(list(tokens))
    return {
        "plain_rate": plain.tokens_per_second,
        "drafted_rate": drafted.tokens_per_second,
        "drafted_share": drafted.acceptance_rate,
        "same_text": texts[0] == texts[1],
        "code": continue_text(model, tokenizer, CODE_PROMPT, tokens=72, temperature=0.6),
        "prose": continue_text(model, tokenizer, PROSE_PROMPT, tokens=72, temperature=0.6),
    }


def show_facts(facts: dict[str, Any], trainer: "Trainer", console: "Console") -> None:
    """Print the page and write the report with the same figures on top."""
    from rich.panel import Panel
    from rich.syntax import Syntax
    from rich.table import Table
    from rich.text import Text

    from deepseek_v3.training.report import write_report

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(justify="right", style="bold cyan", no_wrap=True)
    table.add_column(style="dim")
    for row in describe_facts(facts, trainer):
        table.add_row(*row)
    console.print()
    console.print(Panel(table, title="what it learned", border_style="cyan", padding=(1, 2)))
    code = Syntax(CODE_PROMPT + facts["code"], "python", theme="ansi_dark", word_wrap=True, background_color="default")
    console.print(Panel(code, title="it writes Python (given: the def line)", border_style="blue"))
    prose = Text(PROSE_PROMPT, style="bold").append(facts["prose"], style="not bold")
    console.print(Panel(prose, title="it writes prose (given: the bold words)", border_style="blue"))
    report = write_report(trainer.run, make_cards(facts))
    console.print(f"\nlook at every curve, and every expert:  [bold]{report}[/]\n\n[bold]next[/]")
    for command in next_commands(trainer.run):
        console.print(f"  {command}", soft_wrap=True, markup=False)
    console.print()


def describe_facts(facts: dict[str, Any], trainer: "Trainer") -> list[tuple[str, str, str]]:
    """Return (name, figure, explanation) of the page, in plain words."""
    from deepseek_v3.sizing import cache_values

    config = trainer.model.config
    values = cache_values(config)
    per_token = {kind: values[kind] * config.num_hidden_layers * 4 for kind in ("MHA", "MLA")}
    verdict = "the model is better" if facts["end"] < facts["ngram"] else "the model is worse"
    same = "same text" if facts["same_text"] else "another text"
    megabytes = facts["seen_bytes"] / 1e6
    return [
        ("bits per byte before", f"{facts['start']:.3f}", "on held-out files, with weights as drawn"),
        (
            "bits per byte after",
            f"{facts['end']:.3f}",
            f"on the same {facts['heldout_bytes']:,} bytes; lower is better",
        ),
        ("a 5-gram model", f"{facts['ngram']:.3f}", f"from the {megabytes:.2f} MB that the model saw; {verdict}"),
        ("gzip, xz", f"{facts['gzip']:.3f}, {facts['xz']:.3f}", "packing these bytes in one piece"),
        ("", "", ""),
        ("learned from", f"{facts['tokens']:,}", f"tokens, {facts['training_rate']:,.0f} a second"),
        ("matrix-product peak", _percent(facts["share_of_peak"]), "of the rate measured on this machine"),
        (
            "balance (MaxVio)",
            f"{facts['max_vio'][1]:.2f}",
            "busiest expert over its share; 0 is even",
        ),
        ("MTP acceptance", _percent(facts["acceptance"]), "of drafts are what the model says itself"),
        (
            "cache per token",
            f"{per_token['MLA']:,} B",
            f"{per_token['MHA']:,} B with multi-head attention",
        ),
        ("writes", f"{facts['plain_rate']:,.0f} tokens/s", "one token a step"),
        (
            "with drafts",
            f"{facts['drafted_rate']:,.0f} tokens/s",
            f"{facts['drafted_share']:.0%} of drafts accepted; {same}",
        ),
    ]


def make_cards(facts: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the cards that the report gets besides its own: what others make of the same bytes."""
    seen, held = f"{facts['seen_bytes'] / 1e6:.2f} MB", f"{facts['heldout_bytes']:,}"
    return [
        ("a 5-gram model", f"{facts['ngram']:.3f}", f"bits per byte, counted on the {seen} that the model saw"),
        ("gzip", f"{facts['gzip']:.3f}", f"bits per byte, the {held} held-out bytes in one piece"),
        ("xz", f"{facts['xz']:.3f}", f"bits per byte, the {held} held-out bytes in one piece"),
        ("writes", f"{facts['drafted_rate']:,.0f} tokens/s", f"with drafts; {facts['plain_rate']:,.0f} without"),
    ]


def next_commands(run: Any) -> list[str]:
    """Return four commands to try."""
    return [
        f".venv/bin/deepseek-v3 explore {run}",
        f".venv/bin/deepseek-v3 generate {run} --prompt 'class Parser:' --speculative 1",
        ".venv/bin/deepseek-v3 size --preset v3-671b",
        ".venv/bin/deepseek-v3 train --data FOLDER_OF_YOUR_TEXT --preset nano --run runs/mine",
    ]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
