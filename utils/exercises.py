"""Grade the exercises of a chapter.

    make check CH=02                       your answers in 02_latent_attention/exercises.py
    python -m utils.exercises 02 --solved  the chapter's own answers, which must pass

A chapter has `exercises.py` (functions to fill in: docstring, shapes, equation, hints), `exercises_solved.py`
(the same names, answered) and `exercise_checks.py` with one `check_NAME(answer)` for each, which raises AssertionError
with a sentence that says what is wrong with the answer, not only that it is wrong.
"""

import importlib.util
import linecache
import re
import sys
import traceback
from collections.abc import Callable
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


def shapes_on_line(error: Exception, path: str) -> str:
    """Say which line of the answers file stopped, and the shapes of the arrays that stand on it."""
    frames = [(f, n) for f, n in traceback.walk_tb(error.__traceback__) if f.f_code.co_filename == path]
    if not frames:
        return ""
    frame, number = frames[-1]
    text = linecache.getline(path, number).strip()
    held = {n: v for n, v in frame.f_locals.items() if hasattr(v, "shape") and re.search(rf"\b{n}\b", text)}
    shapes = ", ".join(f"{n} is {list(v.shape)}" for n, v in held.items())
    return f"line {number} of your file stops: {text}\n           " + (f"there {shapes}; " if shapes else "")


def explain_stop(error: Exception, answers: ModuleType) -> str:
    """Put an exception into the reader's terms: where it is, what the arrays are, what is usually behind it."""
    path = str(answers.__file__)
    where = shapes_on_line(error, path)
    if not where:
        return "what you return has not the form that the docstring names under Returns (how many arrays, which axes)"
    if isinstance(error, NameError):
        return f"{where}{error}: is it spelled as in the arguments, or imported?"
    if isinstance(error, ValueError) and re.search("mismatch|broadcast|aligned|shape|axis|operand|dim", str(error)):
        return f"{where}their axes do not fit: write down the shape that you want, then see which axis must be turned"
    return f"{where}{type(error).__name__}: {error}"


def blank_exercise(error: BaseException, answers: ModuleType) -> str:
    """Name the exercise whose blank body was reached, also when another exercise called it."""
    names = [f.f_code.co_name for f, _ in traceback.walk_tb(error.__traceback__)]
    return next((n for n in reversed(names) if callable(getattr(answers, n, None))), "")


def judge(check: Callable, exercise: str, answers: ModuleType, solved: ModuleType) -> str:
    """Run one check; a blank exercise that this one calls is answered by the chapter's own, so each is judged alone."""

    def answer(*arguments, **keywords):
        result = getattr(answers, exercise)(*arguments, **keywords)
        assert result is not None, "your function returns nothing (None): is its `return` missing?"
        return result

    try:
        check(answer)
    except NotImplementedError as error:
        blank = blank_exercise(error, answers)
        if blank in ("", exercise):
            return "still blank: open exercises.py, the docstring says what is asked"
        setattr(answers, blank, getattr(solved, blank))
        return judge(check, exercise, answers, solved)
    except AssertionError as error:
        return str(error) or "wrong"
    except Exception as error:
        return explain_stop(error, answers)
    return ""


def grade(chapter: Path, *, solved: bool = False, answers: Path | None = None) -> list[tuple[str, str]]:
    """Run every check of a chapter; return (exercise, verdict) in order, the verdict empty when the answer is right.

    Args:
        solved: judge the chapter's own answers.
        answers: judge this file instead of the chapter's exercises.py.
    """
    sys.path.insert(0, str(chapter))
    own = load_file(chapter / "exercises_solved.py")
    path = chapter / "exercises_solved.py" if solved else answers or chapter / "exercises.py"
    checks = load_file(chapter / "exercise_checks.py")
    names = [n.removeprefix("check_") for n in vars(checks) if n.startswith("check_")]
    return [(n, judge(vars(checks)[f"check_{n}"], n, load_file(path), own)) for n in names]


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
