"""Grade the exercises of a chapter.

    make check CH=02                       your answers in 02_latent_attention/exercises.py
    python -m utils.exercises 02 --solved  the chapter's own answers, which must pass

A chapter has `exercises.py` (functions to fill in: docstring, shapes, equation, three hints), `exercises_solved.py`
(the same names, answered) and `exercise_checks.py` with one `check_NAME(answer)` for each, which raises AssertionError
with a sentence that says what is wrong with the answer, not only that it is wrong.
"""

import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent


def load_file(path: Path) -> ModuleType:
    """Import a file by its path, under a name of its own (every chapter has an exercises.py)."""
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}.{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def grade(chapter: Path, *, solved: bool = False) -> list[tuple[str, str]]:
    """Run every check of a chapter; return (exercise, verdict) in order, the verdict empty when the answer is right."""
    sys.path.insert(0, str(chapter))
    answers = load_file(chapter / ("exercises_solved.py" if solved else "exercises.py"))
    checks = load_file(chapter / "exercise_checks.py")
    verdicts = []
    for name, check in vars(checks).items():
        if not name.startswith("check_"):
            continue
        exercise = name.removeprefix("check_")
        try:
            check(getattr(answers, exercise))
            verdict = ""
        except NotImplementedError:
            verdict = "still blank: open exercises.py, the docstring has the equation and three hints"
        except AssertionError as error:
            verdict = str(error) or "wrong"
        except Exception as error:
            line = traceback.extract_tb(error.__traceback__)[-1]
            verdict = f"stopped with {type(error).__name__}: {error} ({Path(line.filename).name}, line {line.lineno})"
        verdicts.append((exercise, verdict))
    return verdicts


def main(arguments: list[str]) -> int:
    """Grade the chapter named by the first argument and print the result; 0 when all answers are right."""
    number = arguments[0].zfill(2) if arguments else ""
    chapters = sorted(ROOT.glob(f"{number}_*/exercises.py")) if number else []
    if len(chapters) != 1:
        have = sorted(p.parent.name[:2] for p in ROOT.glob("0[0-8]_*/exercises.py"))
        print(f"no exercises for chapter {number!r}; choose one of {', '.join(have)}, as in: make check CH=01")
        return 2
    verdicts = grade(chapters[0].parent, solved="--solved" in arguments)
    for exercise, verdict in verdicts:
        print(
            f"  {'right ' if not verdict else 'not yet'}  {exercise}" + (f"\n           {verdict}" if verdict else "")
        )
    right = sum(not v for _, v in verdicts)
    print(f"{chapters[0].parent.name}: {right} of {len(verdicts)} right")
    return int(right < len(verdicts))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
