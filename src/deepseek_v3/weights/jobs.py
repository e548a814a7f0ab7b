"""Many small jobs on all cores, begun in their order: reading, hashing and decoding leave the interpreter free."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")


def run_jobs(jobs: Sequence[Callable[[], Result]]) -> list[Result]:
    """Run every job, as many at a time as PyTorch has threads; each then computes with one thread.

    Raises:
        Exception: that of the first job, in their order, that raised one; jobs not yet begun are dropped.
    """
    threads = torch.get_num_threads()
    if min(threads, len(jobs)) < 2:
        return [job() for job in jobs]
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(lambda job: job(), jobs))
    finally:
        torch.set_num_threads(threads)
