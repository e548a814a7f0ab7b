"""Tensors on their way from mapped files into memory, several in one call of a kernel (native/fp8.cpp).

A checkpoint has many small tensors: V3's index names 91,991. Copied one by one by PyTorch, each costs a dozen small
calls, for which all threads wait on the interpreter; that was a third of the time of a load.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch

from deepseek_v3.fp8.quantize import CODE
from deepseek_v3.native.build import run_kernel

COPY, KEEP_FP8, TO_BF16, TO_FP32 = range(4)
FORM_OF_FP8 = {CODE: KEEP_FP8, torch.bfloat16: TO_BF16, torch.float32: TO_FP32}
GROUP_BYTES = 2**23  # as many a thread takes at a time; whole tensors, at least one


class Transfer(NamedTuple):
    """Some rows of one tensor; the fields after its name are those of `Transfer` in fp8.cpp.

    Attributes:
        start, scale: addresses in the file, the second only of FP8 codes.
        to, scale_to: addresses in memory, the second only of codes that stay codes.
        columns: numbers in a row; for COPY, bytes.
    """

    name: str
    start: int
    scale: int
    to: int
    scale_to: int
    rows: int
    columns: int
    form: int


def group_transfers(transfers: Iterable[tuple[int, Transfer]]) -> Iterator[tuple[int, list[Transfer]]]:
    """Put neighbours of a file together; each transfer comes with, and each group goes with, where its bytes end."""
    group: list[Transfer] = []
    start = last = 0
    for end, transfer in sorted(transfers):
        if group and end - start > GROUP_BYTES:
            yield last, group
            group, start = [], last
        group.append(transfer)
        last = end
    if group:
        yield last, group


def run_transfers(transfers: Sequence[Transfer]) -> str | None:
    """Run them all; return the first name with a block scale or code that is no usable number, if there is one."""
    records = torch.tensor([transfer[1:] for transfer in transfers], dtype=torch.int64)
    wrong = torch.empty(1, dtype=torch.int64)
    run_kernel("transfer", records, len(transfers), wrong)
    return None if int(wrong) == len(transfers) else transfers[int(wrong)].name
