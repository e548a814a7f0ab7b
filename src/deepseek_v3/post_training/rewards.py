"""Rewards by rule, in a process of their own with a time limit: what goes wrong there is counted, told, and gives 0.

    with RewardProcess("addition") as judge:
        problems = judge.draw("seed 1", 32)
        tally = judge.judge(problems, texts)        tally.rewards, tally.refused {"no answer in 2 s": 1, ...}

The text of a model is never executed. The rule may be somebody's Python file, so it runs apart from the training: one
that raises, hangs, kills its process, returns NaN or a string costs its answer the reward and nothing else.
"""

import json
import os
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from deepseek_v3.post_training.tasks import Problem, find_task

START_S = 60.0  # for the process to begin, and for a list of problems
MOST_BYTES = 1 << 26  # of one line of its replies
HANGS_IN_A_BATCH = 8  # then the rest of the batch is not asked: a rule that always hangs must not stop the training


class Tally(NamedTuple):
    """What a rule said about a batch of texts."""

    rewards: list[float]
    refused: dict[str, int]  # how often the rule itself failed, by the kind of failure


class RewardError(ValueError):
    """The task itself cannot be used; the message says why."""


class RewardProcess:
    """A task at work in another process, started when it is first needed and again after it was killed."""

    def __init__(self, task: str, limit_s: float = 2.0) -> None:
        """Name the task.

        Raises:
            ValueError: no task of that name, no file of that path.
        """
        if task.endswith(".py"):
            if not Path(task).is_file():
                raise ValueError(f"there is no {task}; a task of your own is named by the path of its file")
            task = str(Path(task).absolute())
        else:
            find_task(task)
        self.task, self.limit_s = task, limit_s
        self._process: subprocess.Popen[bytes] | None = None
        self._held = b""

    def __enter__(self) -> "RewardProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def about(self) -> dict[str, Any]:
        """Return what the task says of itself: longest, demonstrates."""
        return self._demand({"about": True})

    def draw(self, seed: str, count: int, *, held_out: bool = False, different: bool = False) -> list[Problem]:
        """Return problems: of a task of ours `count` drawn from a seed, of a file all of its side."""
        return self._demand({"draw": [seed, held_out, count, different]})["problems"]

    def solve(self, seed: str, count: int, *, held_out: bool = False, different: bool = False) -> list[tuple[str, str]]:
        """Return the problems that `draw` returns, as a prompt and a right answer each."""
        solved = self._demand({"solve": [seed, held_out, count, different]})["solved"]
        return [(prompt, text) for prompt, text in solved]

    def judge(self, problems: Sequence[Problem], texts: Sequence[str]) -> Tally:
        """Return the reward of every text for its own problem.

        Raises:
            ValueError: texts and problems are not pairs.
        """
        if len(problems) != len(texts):
            raise ValueError(f"{len(problems)} problems and {len(texts)} texts: every text needs its own problem")
        rewards, refused, hangs = [], Counter[str](), 0
        for problem, text in zip(problems, texts):
            if hangs >= HANGS_IN_A_BATCH:
                reply: dict[str, Any] = {"refused": f"not asked after {HANGS_IN_A_BATCH} hangs"}
            else:
                reply = self._ask({"judge": [problem, text]}, self.limit_s)
            hangs += "hang" in reply
            rewards.append(float(reply.get("reward", 0.0)))
            if "reward" not in reply:
                refused[str(reply.get("refused") or reply.get("failed"))] += 1
        return Tally(rewards, dict(refused))

    def close(self) -> None:
        """End the process."""
        process, self._process, self._held = self._process, None, b""
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError):
                    if pipe is not None:
                        pipe.close()

    def _demand(self, request: dict[str, Any]) -> dict[str, Any]:
        reply = self._ask(request, START_S)
        if problem := reply.get("failed") or reply.get("refused"):
            raise RewardError(f"the task {self.task} cannot be used: {problem}")
        return reply

    def _ask(self, request: dict[str, Any], limit_s: float) -> dict[str, Any]:
        """Send one line and wait for one; what takes too long is killed."""
        try:
            process = self._running()
            assert process.stdin is not None
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            return self._hear(process, limit_s)
        except RewardError:
            raise
        except TimeoutError:
            self.close()
            return {"refused": f"no answer in {limit_s:g} s", "hang": True}
        except (OSError, EOFError, ValueError):
            self.close()
            return {"refused": "its process ended"}

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            words = [sys.executable, "-m", "deepseek_v3.post_training.reward_worker", self.task]
            roots = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": roots, "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is the training's
            )
            reply = self._hear(self._process, START_S)
            if "failed" in reply:
                self.close()
                raise RewardError(f"the task {self.task} cannot be used: {reply['failed']}")
        return self._process

    def _hear(self, process: subprocess.Popen[bytes], limit_s: float) -> dict[str, Any]:
        """Return the next line of the process.

        Raises:
            TimeoutError, EOFError, ValueError: none in time, no process, no JSON.
        """
        assert process.stdout is not None
        deadline, handle = time.monotonic() + limit_s, process.stdout.fileno()
        while b"\n" not in self._held:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([handle], [], [], left)[0]:
                raise TimeoutError
            piece = os.read(handle, 1 << 16)
            if not piece or len(self._held) > MOST_BYTES:
                raise EOFError
            self._held += piece
        line, _, self._held = self._held.partition(b"\n")
        reply = json.loads(line)
        if not isinstance(reply, dict):
            raise ValueError(f"a reply of another kind: {reply!r:.80}")
        return reply
