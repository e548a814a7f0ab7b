"""Grade the exercises of a chapter.

    make check CH=02                       your answers in 02_latent_attention/exercises.py
    python -m utils.exercises 02 --solved  the chapter's own answers, which must pass

A chapter has `exercises.py` (functions to fill in: docstring, shapes, equation), `hints.md`, `exercises_solved.py`
(the same names, answered) and `exercise_checks.py` with one `check_NAME(answer)` for each, which raises AssertionError
with a sentence that says what is wrong with the answer, not only that it is wrong.
"""

import importlib.util
import linecache
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 60.0  # seconds of computing that an answer may take before it counts as one that has no end


class NoEndError(BaseException):  # no check that catches what an answer raises may swallow it
    """An answer has computed for longer than anybody waits."""


@contextmanager
def limit_computing(seconds: float) -> Iterator[None]:
    """Raise NoEndError after so much computing inside; seconds in which others use the processor do not count.

    Where there is no such clock (Windows, or not the main thread), nothing is limited.
    """

    def give_up(number, frame):
        raise NoEndError

    try:
        before = signal.signal(signal.SIGVTALRM, give_up)
    except (AttributeError, ValueError):
        yield
        return
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def load_file(path: Path) -> ModuleType:
    """Import a file by its path, under a name of its own (every chapter has an exercises.py)."""
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}.{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shapes_on_line(error: BaseException, path: str) -> str:
    """Say which line of the answers file stopped, and the shapes of the arrays that stand on it."""
    frames = [(f, n) for f, n in traceback.walk_tb(error.__traceback__) if f.f_code.co_filename == path]
    if not frames:
        return ""
    frame, number = frames[-1]
    text = linecache.getline(path, number).strip()
    held = {n: v for n, v in frame.f_locals.items() if hasattr(v, "shape") and re.search(rf"\b{n}\b", text)}
    shapes = ", ".join(f"{n} is {list(v.shape)}" for n, v in held.items())
    return f"line {number} of your file stops: {text}\n           " + (f"there {shapes}; " if shapes else "")


SHAPES = "their axes do not fit: write down the shape that you want, then see which axis must be turned"
USUAL_STOPS = (  # what Python and NumPy say, and what a reader can do about it; the first that fits is told
    (r"truth value", "an array is no single yes or no: did you mean np.where, np.all, or a loop over its rows?"),
    (r"size-1 arrays|0-dimensional|scalar", "one number is wanted there, and you give a whole array: index it first"),
    (r"boolean index", "the mask has another length than the array that it is to choose from"),
    (r"out of bounds|out of range", "a place is asked for that is not there: counted from 0, and by the right length?"),
    (r"must be integers|integer or boolean|valid ind|as an index|cannot be interpreted as an integer",
     "a place must be a whole number: did a division or a mean get into the index?"),
    (r"read-only|output array", "the argument cannot be written into: make a copy first (x.copy())"),
    (r"cast ufunc|did not contain a loop|not supported for the input types|unsupported operand",
     "numbers of different kinds meet: is one of them a list, None, text, or whole where it should be a fraction?"),
    (r"mismatch|broadcast|aligned|shape|axis|axes|operand|dimension|inhomogeneous|reshape|concatenat", SHAPES),
    (r"unpack", "more or fewer results come back than you give names to"),
    (r"not callable", "that is an array, not a function: square brackets for a place, round ones for a call"),
    (r"not subscriptable|has no len|not iterable", "that is one number or None, not an array: what was put in there?"),
    (r"positional argument|unexpected keyword|missing \d+ required", "the function there wants other arguments"),
    (r"has no attribute", "there is no such thing on this kind of value: is it an array, or a number, list or tuple?"),
    (r"buffer", "the piece that is read is no whole number of numbers long: where does it begin, where does it end?"),
    (r"division by zero|divide by zero", "something is divided by zero"),
    (r"recursion", "the function calls itself without end"),
)  # fmt: skip


def explain_stop(error: BaseException, answers: ModuleType) -> str:
    """Put an exception into the reader's terms: where it is, what the arrays are, what is usually behind it.

    What NumPy says itself is never shown: it speaks of gufuncs, casts and operands, not of the reader's line.
    """
    where = shapes_on_line(error, str(answers.__file__))
    if not where:
        return "what you return has not the form that the docstring names under Returns (how many arrays, which axes)"
    if isinstance(error, NoEndError):
        return f"{where}it has computed for {PATIENCE:.0f} seconds: which loop never sees its condition change?"
    if isinstance(error, NameError):
        return f"{where}{error}: is it spelled as in the arguments, or imported?"
    if isinstance(error, KeyError):
        return f"{where}there is no entry {error}: the docstring has the names"
    if isinstance(error, ImportError):
        return (
            f"{where}there is no such module or name to import; the exercises need NumPy and the standard library alone"
        )
    said = next((words for pattern, words in USUAL_STOPS if re.search(pattern, str(error), re.IGNORECASE)), "")
    return where + (said or f"Python calls it {type(error).__name__}; look at what each name on this line holds")


def blank_exercise(error: BaseException, answers: ModuleType) -> str:
    """Name the exercise whose blank body was reached, also when another exercise called it."""
    names = [f.f_code.co_name for f, _ in traceback.walk_tb(error.__traceback__)]
    return next((n for n in reversed(names) if callable(getattr(answers, n, None))), "")


def holds_nan(result) -> bool:
    """Whether an array in a result, or in a tuple, list or dict of them, holds NaN or infinity."""
    if isinstance(result, dict):
        return any(holds_nan(part) for part in result.values())
    if isinstance(result, tuple | list):
        return any(holds_nan(part) for part in result)
    return bool(np.issubdtype(getattr(result, "dtype", np.int64), np.floating) and not np.isfinite(result).all())


def judge(check: Callable, exercise: str, answers: ModuleType, solved: ModuleType) -> str:
    """Run one check; a blank exercise that this one calls is answered by the chapter's own, so each is judged alone."""
    returned = []

    def answer(*arguments, **keywords):
        result = getattr(answers, exercise)(*arguments, **keywords)
        assert result is not None, "your function returns nothing (None): is its `return` missing?"
        returned.append(result)
        return result

    try:
        # What overflows is told below, as NaN or infinity, and not as a warning.
        with limit_computing(PATIENCE), np.errstate(all="ignore"):
            check(answer)
    except NotImplementedError as error:
        blank = blank_exercise(error, answers)
        if blank in ("", exercise):
            return "still blank: open exercises.py, the docstring says what is asked"
        setattr(answers, blank, getattr(solved, blank))
        return judge(check, exercise, answers, solved)
    except AssertionError as error:
        nan = "your result holds NaN or infinity: a division by zero, an overflow, a root or log of a negative number; "
        told = str(error) or "wrong"
        return nan + told if returned and holds_nan(returned[-1]) and "NaN" not in told else told
    except (Exception, NoEndError) as error:
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
    try:
        load_file(path)
    except SyntaxError as error:
        kind = "the indentation" if isinstance(error, IndentationError) else "a bracket, a colon or a quote"
        line = (error.text or "").strip()
        text = f"the file cannot be read: line {error.lineno}, {line!r}; look at {kind} there or above"
        return [(n, text) for n in names]
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
