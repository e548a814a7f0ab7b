"""The process of rewards: a rule that raises, hangs, dies, prints, returns NaN or a string costs its answer alone."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deepseek_v3.post_training.rewards import RewardError, RewardProcess

OWN = """
import os, sys, time

def problems():
    return ["p%d" % i for i in range(40)] + [{"prompt": "q", "key": "one", "more": [1, 2]}]

def reward(problem, text):
    print("noise")
    sys.stdout.write("more noise")
    if text == "raise": raise KeyError("no")
    if text == "hang": time.sleep(60)
    if text == "spin":
        while True: pass
    if text == "die": os._exit(3)
    if text == "nan": return float("nan")
    if text == "inf": return float("inf")
    if text == "string": return "1"
    if text == "none": return None
    return 1.0 if text == problem["prompt"] else 0.25
"""


@pytest.fixture
def own(tmp_path) -> Path:
    path = tmp_path / "own_task.py"
    path.write_text(OWN)
    return path


def test_what_goes_wrong_is_counted_gives_0_and_stops_nothing(own):
    texts = ["p0", "raise", "nan", "inf", "string", "none", "hang", "die", "p0", "other"]
    with RewardProcess(str(own), limit_s=0.3) as process:
        problems = [{"prompt": "p0", "key": "p0"}] * len(texts)
        tally = process.judge(problems, texts)
    assert tally.rewards == [1.0, 0, 0, 0, 0, 0, 0, 0, 1.0, 0.25]
    assert tally.refused == {
        "KeyError": 1, "returned nan": 1, "returned inf": 1, "returned '1'": 1, "TypeError": 1,
        "no answer in 0.3 s": 1, "its process ended": 1,
    }  # fmt: skip


def test_a_rule_that_always_hangs_is_not_asked_for_ever(own):
    with RewardProcess(str(own), limit_s=0.05) as process:
        begun = time.perf_counter()
        tally = process.judge([{"prompt": "p", "key": "p"}] * 500, ["spin"] * 500)
    assert sum(tally.refused.values()) == 500
    assert time.perf_counter() - begun < 20


def test_the_reward_is_that_of_the_own_problem():
    with RewardProcess("addition:1") as process:
        problems = process.draw("1", 30)
        right = [str(p["sum"])[::-1] for p in problems]
        assert process.judge(problems, right).rewards == [1.0] * 30
        assert sum(process.judge(problems, right[1:] + right[:1]).rewards) < 15
        with pytest.raises(ValueError, match="own problem"):
            process.judge(problems, right[:-1])


def test_what_is_solved_is_what_is_drawn_each_with_a_right_answer():
    with RewardProcess("addition:2") as process:
        for where in ({}, {"held_out": True, "different": True}):
            problems, solved = process.draw("1", 9, **where), process.solve("1", 9, **where)
            assert [prompt for prompt, _ in solved] == [problem["prompt"] for problem in problems]
            assert process.judge(problems, [text for _, text in solved]).rewards == [1.0] * 9


def test_a_file_of_ones_own_is_split_by_key_and_draws_need_no_demonstration(own):
    with RewardProcess(str(own)) as process:
        learned, held_out = process.draw("", 0), process.draw("", 0, held_out=True)
        assert len(learned) + len(held_out) == 41
        assert not {p["key"] for p in learned} & {p["key"] for p in held_out}
        assert process.about() == {"longest": 256, "demonstrates": False}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def problems(): return []", "no function reward"),
        ("raise OSError('broken')", "broken"),
        ("def (", "SyntaxError"),
        ("def problems(): return [3]\ndef reward(p, t): return 1", "prompt"),
    ],
)
def test_a_file_that_is_no_task_is_told(tmp_path, text, says):
    path = tmp_path / "task.py"
    path.write_text(text)
    with RewardProcess(str(path)) as process, pytest.raises(RewardError, match=says):
        process.draw("", 3)


def test_a_task_that_is_not_there_is_refused_before_anything_starts():
    with pytest.raises(ValueError, match=r"there is no /nowhere/x\.py"):
        RewardProcess("/nowhere/x.py")
    with pytest.raises(ValueError, match="there is no task 'x'"):
        RewardProcess("x")


def test_the_process_ends_with_the_training_even_while_a_rule_hangs(own):
    """The training is killed: the rule, in the middle of an endless loop, goes too."""
    script = (
        "from deepseek_v3.post_training.rewards import RewardProcess\n"
        f"p = RewardProcess({str(own)!r}, limit_s=60)\n"
        "p.about()\n"
        "print(p._process.pid, flush=True)\n"
        "p.judge([{'prompt': 'p', 'key': 'p'}], ['spin'])\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as training:
        assert training.stdout is not None
        worker = int(training.stdout.readline())
        time.sleep(0.2)
        training.kill()
        training.wait()
    until = time.monotonic() + 10
    while time.monotonic() < until and is_running(worker):
        time.sleep(0.1)
    assert not is_running(worker)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False


def test_the_worker_imports_no_pytorch():
    words = "import sys, deepseek_v3.post_training.reward_worker; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", words], capture_output=True, text=True).stdout == "False\n"
