"""Under load: the limit holds exactly, what is given up is freed, an error fails one request, an end is orderly."""

import http.client
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from serving_harness import run_server

from deepseek_v3.model.transformer import DeepseekV3


def test_ten_times_the_capacity_in_one_burst_is_served_up_to_the_limit(model, tokenizer):
    with run_server(model, tokenizer, max_rows=2, queue=4) as server:
        gate = threading.Event()
        server.worker.commands.put(lambda: gate.wait(60) and None)  # the engine stands still while the burst comes
        body = {"model": "tiny", "prompt": "the", "max_tokens": 5, "temperature": 0}
        with ThreadPoolExecutor(60) as pool:
            asked = [pool.submit(server.ask, "POST", "/v1/completions", body) for _ in range(60)]
            assert server.wait_until(lambda: sum(one.done() for one in asked) >= 54)
            assert server.worker.load == 6
            assert server.get("/ready")[0] == 503
            gate.set()
            answers = [one.result() for one in asked]
        statuses = [status for status, _, _ in answers]
        assert sorted(statuses) == [200] * 6 + [429] * 54
        for status, headers, said in answers:
            if status == 429:
                assert int(headers["retry-after"]) >= 1
                assert said["error"]["code"] == "rate_limit_exceeded"
        assert len({said["choices"][0]["text"] for status, _, said in answers if status == 200}) == 1
        assert server.wait_until(lambda: server.worker.load == 0)
        assert server.get("/ready")[0] == 200


def begin_stream(server, stream, wait):
    """Ask for a long text; return the connection once it runs."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
    body = {"model": "tiny", "prompt": "the", "max_tokens": 100, "stream": stream, "n": 2, "ignore_eos": True}
    connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
    if wait and stream:
        connection.getresponse().read(30)
    return connection


@pytest.mark.parametrize("count", [16, pytest.param(200, marks=pytest.mark.slow)])
def test_a_client_that_goes_away_frees_its_blocks(server, count):
    for i in range(count):
        begin_stream(server, stream=i % 2 == 0, wait=i % 3 == 0).close()
    assert server.wait_until(lambda: server.worker.load == 0)
    assert server.wait_until(lambda: server.blocks_held() == 0)
    assert not server.worker.owners
    assert not server.worker.jobs


@pytest.mark.parametrize("stream", [False, True])
def test_a_text_that_nobody_wants_any_more_is_not_written_on(model, tokenizer, stream):
    with run_server(model, tokenizer) as server:
        gate = threading.Event()
        server.worker.commands.put(lambda: gate.wait(60) and None)
        asked = begin_stream(server, stream=stream, wait=False)
        assert server.wait_until(lambda: server.worker.load == 2)
        asked.close()
        try:  # the engine still stands: what it is to do next is to take in the request, then to drop it
            assert server.wait_until(lambda: server.worker.commands.qsize() == 2, seconds=10)
        finally:
            gate.set()
        assert server.wait_until(lambda: server.worker.load == 0)
        assert not server.worker.engine.sequences
        assert 'finished_total{reason="abort"} 2.0' in server.ask("GET", "/metrics")[2]


def test_a_text_that_is_no_number_fails_alone(model, tokenizer):
    torch.manual_seed(5)
    broken = DeepseekV3(model.config).eval()
    broken.load_state_dict(model.state_dict())
    token = tokenizer.encode("你")[0]
    with torch.no_grad():
        broken.embed_tokens.weight[token] = float("nan")
    with run_server(broken, tokenizer) as server:
        body = {"model": "tiny", "temperature": 0, "max_tokens": 9, "logit_bias": {str(token): -100}}
        with ThreadPoolExecutor(4) as pool:
            good = [pool.submit(server.post, "/v1/completions", {**body, "prompt": "the quick"}) for _ in range(3)]
            bad = pool.submit(server.post, "/v1/completions", {**body, "prompt": "你"})
            streamed = pool.submit(server.stream, "/v1/completions", {**body, "prompt": "你"})
            assert {status for status, _ in (one.result() for one in good)} == {200}
            assert len({said["choices"][0]["text"] for _, said in (one.result() for one in good)}) == 1
            status, said = bad.result()
            events = streamed.result()
        assert status == 500
        assert said["error"]["type"] == "server_error"
        assert events[-1]["error"]["type"] == "server_error"
        assert server.get("/health")[0] == 200
        assert server.wait_until(lambda: server.blocks_held() == 0)


def test_an_engine_that_fails_ends_its_requests_and_says_so(model, tokenizer, caplog):
    with run_server(model, tokenizer) as server:
        connection = begin_stream(server, stream=True, wait=False)
        answer = connection.getresponse()
        answer.read(30)
        server.worker.commands.put(lambda: 1 / 0)
        rest = answer.read().decode()
        assert '"type":"server_error"' in rest
        assert rest.count("[DONE]") == 1
        connection.close()
        assert server.get("/health")[0] == 503
        assert server.get("/ready")[0] == 503
        for path in ("/live", "/metrics"):
            assert server.get(path)[0] == 503
        status, said = server.post("/v1/completions", {"model": "tiny", "prompt": "a"})
        assert (status, said["error"]["type"]) == (503, "server_error")
        assert server.worker.load == 0
    assert "division by zero" in caplog.text


def test_told_to_stop_it_lets_texts_end_and_takes_no_more(model, tokenizer):
    with run_server(model, tokenizer, max_rows=4) as server:
        body = {"prompt": "the", "max_tokens": 90, "temperature": 0, "ignore_eos": True}
        want = server.complete(**body)["choices"][0]["text"]
        gate = threading.Event()
        server.worker.commands.put(lambda: gate.wait(60) and None)
        with ThreadPoolExecutor(4) as pool:
            whole = pool.submit(server.complete, **body)
            streamed = pool.submit(server.stream, "/v1/completions", body)
            assert server.wait_until(lambda: server.worker.load == 2)
            server.server.should_exit = True
            time.sleep(0.4)
            with pytest.raises(OSError):
                server.connect().close()
            gate.set()
            assert whole.result()["choices"][0]["text"] == want
            text = "".join(choice["text"] for event in streamed.result() for choice in event["choices"])
            assert text == want
        server.thread.join(30)
        assert not server.thread.is_alive()


def test_what_outlasts_the_drain_is_ended(model, tokenizer):
    with run_server(model, tokenizer, drain_seconds=1) as server:
        gate = threading.Event()
        server.worker.commands.put(lambda: gate.wait(60) and None)
        body = {"model": "tiny", "prompt": "the", "max_tokens": 50, "stream": True}
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(server.ask, "POST", "/v1/completions", body)
            assert server.wait_until(lambda: server.worker.load == 1)
            server.server.should_exit = True
            time.sleep(1.5)
            gate.set()
            assert asked.exception(30) or asked.result()[0] != 200
        server.thread.join(30)
        assert not server.thread.is_alive()


def test_metrics_count_what_was_written(model, tokenizer):
    with run_server(model, tokenizer) as server:
        for _ in range(3):
            server.complete("the quick brown fox jumps over", temperature=0, max_tokens=12, ignore_eos=True, drafts=1)
        assert server.ask("GET", "/nothing")[0] == 404
        status, headers, text = server.ask("GET", "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    found = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    value = {name.removeprefix("deepseek_v3_"): float(number) for name, number in found.items()}
    assert value["new_tokens_total"] == 36
    assert value['finished_total{reason="length"}'] == 3
    assert value["time_to_first_token_seconds_count"] == 3
    assert value["time_between_tokens_seconds_count"] in range(20, 34)  # not of a text's first step
    assert 0 <= value["accepted_total"] <= value["drafted_total"]
    assert value["drafted_total"] > 0
    assert value["blocks_free"] == value["blocks"]
    assert value["shared_tokens_total"] >= 0
    assert value['http_responses_total{path="/v1/completions",status="200"}'] == 3
    assert value['http_responses_total{path="other",status="404"}'] == 1


def test_a_beginning_that_was_read_before_is_found(server):
    words = "fox " * 60
    server.complete(words, max_tokens=1)
    again = server.complete(words, max_tokens=1)
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= 32


@pytest.mark.slow
def test_ten_thousand_requests_leak_no_block_and_no_memory(model, tokenizer):
    import psutil

    with run_server(model, tokenizer, max_rows=8, queue=40) as server:
        body = {"model": "tiny", "prompt": "the quick", "max_tokens": 4}

        def work(i):
            kind = {"stream": i % 3 == 0, "n": 1 + i % 2, "seed": i, "prompt": f"the {i % 97} quick"}
            return server.ask("POST", "/v1/completions", {**body, **kind})[0]

        sizes = []
        with ThreadPoolExecutor(12) as pool:
            for _ in range(10):
                assert set(pool.map(work, range(1000))) == {200}
                sizes.append(psutil.Process().memory_info().rss)
        assert server.blocks_held() == 0
        assert server.worker.load == 0
        server.worker.engine.check_integrity()
    assert sizes[-1] - sizes[3] < 2**24, sizes
