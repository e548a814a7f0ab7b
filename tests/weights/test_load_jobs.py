"""How a load is spread over the cores: jobs in their order, the disk asked ahead, and a model that nothing draws."""

import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from tiny_checkpoints import V2_LITE, V3

from deepseek_v3.config import ModelConfig
from deepseek_v3.model.transformer import DeepseekV3
from deepseek_v3.weights import memory_map
from deepseek_v3.weights.jobs import run_jobs
from deepseek_v3.weights.load import build_empty
from deepseek_v3.weights.memory_map import ReadAhead, ask_for_huge_pages, bring_in, let_go, map_bytes
from deepseek_v3.weights.stored import split_rows


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_jobs_and_threads_are_as_before(threads):
    def job(i: int) -> tuple[int, int]:
        time.sleep(0.01 * (i % 2))
        return i, torch.get_num_threads()

    assert run_jobs([lambda i=i: job(i) for i in range(7)]) == [(i, 1) for i in range(7)]
    assert torch.get_num_threads() == threads
    assert run_jobs([]) == []


def test_the_first_exception_is_raised_and_late_jobs_are_dropped(threads):
    begun, lock = [], threading.Lock()

    def job(i: int) -> None:
        with lock:
            begun.append(i)
        time.sleep(0.02)
        if i in (1, 2):
            raise KeyError(i)

    with pytest.raises(KeyError, match="1"):
        run_jobs([lambda i=i: job(i) for i in range(50)])
    assert len(begun) < 50
    assert torch.get_num_threads() == threads


def test_an_interrupt_drops_the_late_jobs_and_waits_for_those_begun(threads):
    ended, lock = [], threading.Lock()

    def job(i: int) -> None:
        if i == 4:
            signal.raise_signal(signal.SIGINT)
        time.sleep(0.02)
        with lock:
            ended.append(i)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            run_jobs([lambda i=i: job(i) for i in range(50)])
    finally:
        signal.signal(signal.SIGINT, before)
    count = len(ended)
    assert count < 50
    time.sleep(0.05)
    assert len(ended) == count
    assert torch.get_num_threads() == threads


def test_every_byte_is_brought_in_once_in_order_and_not_too_far_ahead(tmp_path, monkeypatch):
    sizes = {"a": 23, "b": 1, "c": 101}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(bytes(size))
    files = {tmp_path / name: map_bytes(tmp_path / name, 0, size) for name, size in sizes.items()}
    name_of = {content.untyped_storage().data_ptr(): path.name for path, content in files.items()}
    brought = []

    def note(part: torch.Tensor) -> None:
        start = part.storage_offset()
        brought.append((name_of[part.untyped_storage().data_ptr()], start, start + len(part)))

    def after(count: int) -> list[tuple[str, int, int]]:
        end = time.monotonic() + 10
        while len(brought) < count and time.monotonic() < end:
            time.sleep(0.001)
        time.sleep(0.02)  # for one too many
        return sorted(brought)  # of two threads the second may be the first

    monkeypatch.setattr(memory_map, "STRETCH_BYTES", 10)
    monkeypatch.setattr(memory_map, "AHEAD_BYTES", 20)
    monkeypatch.setattr(memory_map, "bring_in", note)
    with ReadAhead(files) as ahead:
        first = [("a", 0, 10), ("a", 10, 20)]
        assert after(2) == first
        ahead.reach(tmp_path / "a", 5)
        first += [("a", 20, 23), ("b", 0, 1), ("c", 0, 10)]
        assert after(5) == first
        ahead.reach(tmp_path / "a", 1)  # behind
        ahead.reach(tmp_path / "d", 100)  # not among these
        assert after(5) == first
        ahead.reach(tmp_path / "c", 41)
        first += [("c", start, start + 10) for start in range(10, 70, 10)]
        assert after(11) == first
    assert after(11) == first  # and an end before the last byte waits for nobody
    assert not any(thread.is_alive() for thread in ahead._threads)


def test_what_is_brought_in_and_let_go_stays_as_it_is(tmp_path):
    content = bytes(range(256)) * 20_000
    (tmp_path / "x").write_bytes(content)
    mapped = map_bytes(tmp_path / "x", 0, len(content))
    ask_for_huge_pages(mapped)
    bring_in(mapped[5:3_000_000])
    assert mapped.numpy().tobytes() == content
    let_go(mapped)
    assert mapped.numpy().tobytes() == content
    (tmp_path / "x").write_bytes(b"")
    bring_in(mapped)  # beyond the end of the file: no signal


@pytest.mark.parametrize("values", [V3, V2_LITE, {**V3, "tie_word_embeddings": True}])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_an_empty_model_is_the_model_but_for_its_numbers(values, dtype):
    """Dtypes, shapes, shared weights, rope frequencies and the bias in FP32, and no draw from the generator."""
    config = ModelConfig.from_dict(values)
    expected = DeepseekV3(config).to(dtype)
    state = torch.get_rng_state()
    model = build_empty(config, dtype)
    assert torch.equal(torch.get_rng_state(), state)
    found, wanted = model.state_dict(), expected.state_dict()
    assert {k: (v.dtype, v.shape) for k, v in found.items()} == {k: (v.dtype, v.shape) for k, v in wanted.items()}
    assert torch.equal(model.frequency_R, expected.frequency_R)
    assert (model.lm_head.weight is model.embed_tokens.weight) == config.tie_word_embeddings


@pytest.mark.parametrize(("shape", "step"), [((7,), 2**24), ((300, 2**20), 128), ((1000, 2**16), 256), ((0, 5), 1)])
def test_rows_are_cut_at_whole_blocks(shape, step):
    rows = list(split_rows(shape))
    assert [i for part in rows for i in range(part.start, part.stop)] == list(range(shape[0]))
    assert all(part.start % 128 == 0 for part in rows)
    assert all(part.stop - part.start <= step for part in rows)
