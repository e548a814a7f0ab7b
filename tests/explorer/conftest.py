"""What the tests of the explorer share: one Node process a file, that runs a module of this folder."""

import base64
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def run_node():
    """Return a function: run a .mjs of this folder on a job, a JSON object, and return the JSON that it prints."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node is not installed")

    def run(script: str, job: object = None) -> dict:
        words = [node, str(HERE / script)]
        done = subprocess.run(words, input=json.dumps(job).encode(), capture_output=True, timeout=300)
        assert not done.returncode, done.stderr.decode()[-2000:]
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="session")
def unpack():
    """Return a function: an array of what a script packed."""
    return lambda packed: np.frombuffer(base64.b64decode(packed["data"]), packed["type"]).reshape(packed["shape"])
