"""A reader that goes away or a full disk behind standard output ends the telling, not what is told of."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

STEADY = """
import sys
from deepseek_v3.commands.telling import open_missing_streams, steady_output
open_missing_streams()
with steady_output():
    for i in range(30_000):
        print(f"line {i}", flush=i % 2 == 0)
open(sys.argv[1], "w").write("done")
"""


@pytest.mark.parametrize("out", ["closed", "full", "gone"])
def test_what_runs_goes_on_when_its_output_cannot_be_taken(tmp_path, out):
    code = [sys.executable, "-c", STEADY, str(tmp_path / "end")]
    if out == "gone":
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(code, stdout=writer, stderr=subprocess.PIPE)
        os.close(writer)
    else:
        place = ">&-" if out == "closed" else ">/dev/full"
        done = subprocess.run(["sh", "-c", f'"$@" {place}', "sh", *code], stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "end").read_text() == "done"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_command_whose_output_could_not_be_written_does_not_say_that_all_went_well():
    code = [sys.executable, "-m", "deepseek_v3", "--help"]
    done = subprocess.run(["sh", "-c", '"$@" >/dev/full', "sh", *code], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "deepseek-v3: the output could not be written: no space left on device\n"
