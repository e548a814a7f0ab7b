"""`deepseek-v3 serve` as a process: told to stop it ends what it writes, takes nothing new, and its code says why."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from tiny import tiny_config

from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.weights.save import save_model

TOKENS = 1500  # a second or more: the signal comes while they are written


@pytest.fixture(scope="module")
def checkpoint(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve") / "tiny"
    torch.manual_seed(5)
    model = DeepseekV3(tiny_config(vocab_size=tokenizer.vocab_size, max_position_embeddings=2048))
    save_model(model, folder, tokenizer)
    return folder


def refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return True
    return False


SIGNALS = [(signal.SIGTERM, -signal.SIGTERM), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("sent", "code"), SIGNALS)
def test_a_signal_lets_an_answer_end_and_refuses_new_ones(checkpoint, sent, code):
    command = [sys.executable, "-m", "deepseek_v3", "serve", str(checkpoint), "--port", "0", "--drain-seconds", "60"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a shell's background jobs ignore
    )
    connection = None
    try:
        told = [process.stdout.readline() for _ in range(2)]
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)/", told[1])[1])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        body = {"model": "tiny", "prompt": "the", "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
        body |= {"temperature": 0, "stream_options": {"include_usage": True}}
        until = time.monotonic() + 60
        while refused(port):  # the door is there before the server is
            assert time.monotonic() < until
            time.sleep(0.05)
        connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        first = answer.readline()
        assert first.startswith(b"data: {")
        process.send_signal(sent)
        until = time.monotonic() + 30
        while not refused(port):
            assert time.monotonic() < until, "it still takes connections"
            time.sleep(0.01)
        assert process.poll() is None, "it did not wait for the answer"
        rest = answer.read()
        events = [line[6:] for line in (first + rest).split(b"\n") if line.startswith(b"data: ")]
        assert events[-1] == b"[DONE]"
        assert json.loads(events[-2])["usage"]["completion_tokens"] == TOKENS
        assert json.loads(events[-3])["choices"][0]["finish_reason"] == "length"
        assert process.wait(60) == code
        said = process.stderr.read()
        assert "Traceback" not in said, said
    finally:
        if connection is not None:
            connection.close()
        process.kill()
        process.wait(30)
        process.stdout.close()
        process.stderr.close()
