"""Every option of every command with every odd value: a word instead of a traceback, and nothing written elsewhere.

Commands and options are read from their dataclasses, so a new one is tried too. Training and the demo are cut short
where they would begin to learn; everything before is real.
"""

import dataclasses
import io
import shutil
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "weights"))
from tiny_checkpoints import random_model

from deepseek_v3 import cli, model_io
from deepseek_v3.data.tokenizer import Tokenizer
from deepseek_v3.weights.load import load_model
from deepseek_v3.weights.save import save_model

NO_NUMBER = ["", " ", "inf", "-inf", "nan", "1e400", "many", "null", "{}", "1.5.", "0x10"]
ODD = [
    *NO_NUMBER,
    *("-1", "0", "1", "-0.0", "0.5", "1e-46", "1e46", "1_000", str(10**12), "9" * 20, "-" + "9" * 20),
    *("\udcff", "a\nb", "--", "a=b", "-x", "\u202eé", "x" * 5000),
    *("text.txt", "folder", "nowhere", "nowhere/deeper/x", "text.txt/below", "../nowhere", "model"),
]
TINY = "vocab_size=331 hidden_size=22 intermediate_size=26 moe_intermediate_size=7 num_hidden_layers=2 q_lora_rank=11"
PLACES = {
    "generate": ["model"],
    "chat": ["model"],
    "serve": ["model"],
    "explore": ["model"],
    "evaluate": ["model"],
    "inspect": ["model"],
    "export": ["model", "out"],
    "import": ["model", "out"],
}
USUAL = {
    "train": f"--data text.txt --set {TINY} --seq-len 13 --precision fp32 --eval-kilobytes 1 --batch-size 2".split(),
    "generate": ["--prompt", "ab", "--max-new-tokens", "2"],
    "chat": ["--max-new-tokens", "2"],
    "serve": ["--port", "0", "--cache-tokens", "64"],
    "evaluate": ["--data", "text.txt", "--kilobytes", "1", "--seq-len", "13"],
    "size": ["--preset", "nano"],
    "explore": ["--save", "saved"],
    "plan": ["--preset", "demo", "--gpus", "8", "--pp", "2", "--ep", "2", "--batch-size", "32"],
    "sft": ["model", "--task", "sort"],
    "grpo": ["model"],
    "distill": ["model", "model", "--task", "sort"],
}
WRITES = {"train": "runs", "demo": "runs", "export": "out", "import": "out", "explore": "saved"}
NAMED_BY = {"explore": ("save",)}  # the options that name the place, where they are not run and target


def options_of(name: str) -> type:
    command = cli.COMMANDS[name]
    return getattr(import_module(f"deepseek_v3.commands.{command.module}"), command.options)


@pytest.fixture(scope="module")
def stock(tmp_path_factory) -> Path:
    """A small text, a folder, and a model with its tokenizer."""
    folder = tmp_path_factory.mktemp("stock")
    text = "\n\n".join(f"passage {i}: " + " ".join(str(i * j % 89) for j in range(40)) for i in range(30))
    (folder / "text.txt").write_text(text)
    (folder / "folder").mkdir()
    tokenizer = Tokenizer.train([text], 331)
    torch.manual_seed(3)
    save_model(random_model(vocab_size=331), folder / "model", tokenizer)
    return folder


@pytest.fixture
def desk(stock, tmp_path, monkeypatch) -> Path:
    """A copy of the stock in which the command runs; what would take long, or change this process, is cut short."""
    desk = tmp_path / "desk"
    shutil.copytree(stock, desk)
    monkeypatch.chdir(desk)
    done = SimpleNamespace(finished=True, checkpoint="none", step=0, stopped_by="")
    monkeypatch.setattr("deepseek_v3.training.trainer.Trainer.train", lambda *_: done)
    monkeypatch.setattr("deepseek_v3.training.report.write_report", lambda run: run)
    monkeypatch.setattr("deepseek_v3.training.session.choose_precision", lambda *_: ("fp32", 1e9, "a test"))
    monkeypatch.setattr("deepseek_v3.commands.demo._demonstrate", lambda _: 0)
    monkeypatch.setattr("deepseek_v3.commands.reason._reason", lambda _: 0)
    monkeypatch.setattr("deepseek_v3.post_training.session.lay_out", cut_short)
    monkeypatch.setattr("deepseek_v3.commands.doctor.describe_threads", dict)
    monkeypatch.setattr("deepseek_v3.commands.doctor.describe_compiler", dict)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr("deepseek_v3.commands.serve.make_server", lambda *_: SimpleNamespace(run=lambda sockets: None))
    monkeypatch.setattr("deepseek_v3.commands.explore.open_server", cut_short)
    monkeypatch.setattr(sys, "stdin", io.StringIO("ab\n"))
    model, tokenizer = load_model(desk / "model", tokenizer_from=Tokenizer.from_file)
    monkeypatch.setattr(Tokenizer, "train", lambda *_: tokenizer)
    load = model_io.load
    monkeypatch.setattr(model_io, "load", lambda path, **o: (model, tokenizer) if path == "model" else load(path, **o))
    return desk


def cut_short(*_: Any) -> None:
    """Where post-training would read its model, or a server begin: what was checked before was real."""
    raise ValueError("cut short here")


def take_stock(desk: Path) -> dict[str, Any]:
    """What lies on the desk, and beside it."""
    found = [*desk.rglob("*"), *desk.parent.iterdir()]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found if path.is_file()} | {
        str(path): "folder" for path in found if path.is_dir()
    }


def is_positional(field: dataclasses.Field) -> bool:
    """Whether a field is a word without a flag: one that must be given, or that its type says is one."""
    return field.default is dataclasses.MISSING or "Positional" in repr(field.type)


def write_words(name: str, field: str, value: str) -> list[str]:
    """Return a usual command line with one odd value."""
    positional = [f.name for f in dataclasses.fields(options_of(name)) if is_positional(f)]
    places = dict(zip(positional, PLACES.get(name, [])))
    if field in places:
        return [name, *({**places, field: value}).values(), *USUAL.get(name, [])]
    usual, words = USUAL.get(name, []), []
    for i, word in enumerate(usual):
        owner = next((w for w in reversed(usual[: i + 1]) if w.startswith("--")), "")
        words += [] if owner == "--" + field.replace("_", "-") else [word]
    return [name, *places.values(), *words, f"--{field.replace('_', '-')}", value]


def tyro_takes(name: str, field: Any, value: str, known: dict[Any, Any]) -> Any:
    """Return what the parser makes of a value, asked once for each type of a command, or SystemExit."""
    key = (str(field.type), value)
    if key not in known:
        words = write_words(name, field.name, value)[1:]
        kind = options_of(name)
        try:
            parsed = PARSE(kind, "x", cli.join_repeats(kind, cli.bind_values(kind, words)))
            known[key] = getattr(parsed, field.name)
        except (SystemExit, ValueError) as end:
            known[key] = end
    return known[key]


PARSE = cli.parse_options


def usual_options(name: str) -> Any:
    """Return the options of the usual command line."""
    kind, words = options_of(name), [*PLACES.get(name, []), *USUAL.get(name, [])]
    return PARSE(kind, "x", words)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_an_odd_value_is_obeyed_or_answered_in_words(name, desk, monkeypatch, capsys):
    kind, known, wrong = options_of(name), {}, []
    usual = usual_options(name)
    for field in dataclasses.fields(kind):
        for value in ODD if str(field.type) != "bool" else ():
            taken = tyro_takes(name, field, value, known)
            if isinstance(taken, SystemExit):
                if taken.code in (0, None):
                    wrong.append((field.name, value, "the parser ended with 0"))
                continue

            def quick(*_: Any, field: Any = field, taken: Any = taken) -> Any:
                if isinstance(taken, ValueError):
                    raise taken
                return dataclasses.replace(usual, **{field.name: taken})

            monkeypatch.setattr(cli, "parse_options", quick)
            problem = try_words(name, field, value, desk, capsys)
            if problem:
                wrong.append((field.name, value[:30], problem))
    assert not wrong, "\n".join(map(str, wrong))


def try_words(name: str, field: Any, value: str, desk: Path, capsys: Any) -> str:
    """Run a command line and say what was wrong with how it ended."""
    before = take_stock(desk)
    try:
        code = cli.main(write_words(name, field.name, value))
    except BaseException as error:  # whatever it is, it should not have come so far
        code, problem = 1, f"{type(error).__name__} escaped: {error}"
    else:
        problem = ""
    said = capsys.readouterr()
    number = str(field.type).split(" ")[0].replace("<class '", "").rstrip("'>") in ("int", "float")
    if "Traceback" in said.err or "nobody foresaw" in said.err:
        problem = said.err[-300:]
    elif code and not problem and not (said.err.strip() or name == "inspect"):
        problem = f"code {code} without a word"
    elif code == 0 and number and value in NO_NUMBER:
        problem = f"taken for a number: {said.out[-100:]}"
    elif not code and said.err.startswith("deepseek-v3"):
        problem = f"code 0, but {said.err[:200]}"
    target = value if field.name in NAMED_BY.get(name, ("run", "target")) and name in WRITES else WRITES.get(name, "")
    after, place = take_stock(desk), str((desk / target).resolve()) if target.strip() else ""
    if changed := [path for path in before if before[path] != after.get(path)]:
        problem = problem or f"changed {changed}"
    for path in sorted(after.keys() - before.keys()):
        if not (place and (path.startswith(place) or place.startswith(path))):
            problem = problem or f"wrote {path}"
        shutil.rmtree(path, ignore_errors=True)
        Path(path).unlink(missing_ok=True)
    return problem
