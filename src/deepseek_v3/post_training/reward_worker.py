"""The process that judges answers: problems and texts in, rewards out, one JSON line each. It imports no PyTorch.

    python -m deepseek_v3.post_training.reward_worker addition            or the path of a Python file

    {"draw": ["seed", false, 3, true]}      ->  {"problems": [...]}
    {"judge": [problem, "975"]}             ->  {"reward": 1.0}  or  {"refused": "ValueError"}
    {"solve": ["seed", false, 3, true]}     ->  {"solved": [["123+456=", "975"], ...]}

A rule reads the text of a model; nothing here runs it. What a file of a user's does, it does in this process only: it
can raise, hang or print, and the training goes on (`rewards.py` kills and starts again).
"""

import importlib.util
import json
import math
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from deepseek_v3.post_training.tasks import Problem, Task, different_problems, draw_problems, find_task, is_held_out

LONGEST = 256  # characters of an answer of a task that does not say


def load_task(name: str) -> Any:
    """Return a task of ours by its name, or somebody's Python file by its path."""
    if not name.endswith(".py"):
        return find_task(name)
    spec = importlib.util.spec_from_file_location("own_task", Path(name))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for wanted in ("problems", "reward"):
        if not callable(getattr(module, wanted, None)):
            raise ValueError(f"{name} has no function {wanted}; a task has problems() and reward(problem, text)")
    return module


def answer_request(task: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Do one thing that was asked for."""
    if "judge" in request:
        return judge_answer(task, *request["judge"])
    if "solve" in request:
        problems = list_problems(task, *request["solve"])
        return {"solved": [[problem["prompt"], str(task.demonstrate(problem))] for problem in problems]}
    if "draw" in request:
        return {"problems": list_problems(task, *request["draw"])}
    return {
        "longest": int(getattr(task, "longest", LONGEST)),
        "demonstrates": callable(getattr(task, "demonstrate", None)),
    }


def list_problems(task: Any, seed: str, held_out: bool, count: int, different: bool) -> list[Problem]:
    """Return problems of one side: of a task of ours drawn, of a file its own list in its own order."""
    if isinstance(task, Task):
        if different:
            return different_problems(task, seed, count, held_out=held_out)
        return [problem for _, problem in zip(range(count), draw_problems(task, seed, held_out=held_out))]
    problems = [name_problem(problem) for problem in task.problems()]
    return [problem for problem in problems if is_held_out(problem["key"]) == held_out]


def name_problem(problem: Any) -> Problem:
    """Return a problem as a dictionary with a prompt and a key.

    Raises:
        ValueError: it has no prompt.
    """
    found = {"prompt": problem} if not isinstance(problem, dict) else problem
    if not isinstance(found.get("prompt"), str):
        raise ValueError(f"a problem must be a text or a dictionary with a text named prompt, not {problem!r:.80}")
    return {**found, "key": str(found.get("key", found["prompt"]))}


def judge_answer(task: Any, problem: Problem, text: str) -> dict[str, Any]:
    """Return the reward of a text, or why there is none."""
    try:
        reward = task.reward(problem, text)
        if isinstance(reward, str) or not math.isfinite(reward):
            return {"refused": f"returned {reward!r}"[:80]}
        return {"reward": float(reward)}
    except Exception as error:  # a rule is code of a user: anything may come
        return {"refused": type(error).__name__}


def follow_parent(parent: int) -> None:
    """End when the training has ended, however that was, even in the middle of a rule that hangs."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main() -> None:
    """Answer requests until the other side closes; whatever a rule prints goes to standard error."""
    threading.Thread(target=follow_parent, args=(os.getppid(),), daemon=True).start()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        task = load_task(sys.argv[1])
    except BaseException as error:
        print(json.dumps({"failed": f"{type(error).__name__}: {error}"}), file=out, flush=True)
        return
    print(json.dumps({"ready": True}), file=out, flush=True)
    for line in sys.stdin:
        try:
            reply = answer_request(task, json.loads(line))
        except Exception as error:
            reply = {"failed": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=out, flush=True)


if __name__ == "__main__":
    main()
