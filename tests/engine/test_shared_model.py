"""Several threads generate from one model, each what it would generate alone."""

import threading

import pytest
import torch

from deepseek_v3.engine.generate import generate
from tests.engine.test_decode_step import make_model


@pytest.mark.parametrize("n_threads", [2, 4])
def test_threads_share_one_model(n_threads):
    """Each looks anew where the weights lie, while others read by the addresses they began with."""
    torch.manual_seed(2)
    model, seen = make_model({}), []
    model.eval()

    def read(index: int) -> list[int]:
        return list(generate(model, [0, 5, 7 + index], max_new_tokens=9, stop_tokens=(), speculative=index % 3))

    want = [read(index) for index in range(n_threads)]

    def repeat(index: int) -> None:
        try:
            seen.extend(read(index) == want[index] for _ in range(40))
        except Exception as error:
            seen.append(error)

    threads = [threading.Thread(target=repeat, args=(index,)) for index in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 40 * n_threads
