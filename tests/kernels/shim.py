"""What Triton 3.6.0's interpreter gets wrong, put right by the codec of chapter 05; nothing of it touches a kernel.

conversions between formats     no carry into the exponent, half up, no saturation, BF16 cut off  ->  `encode`, `decode`
`tl.dot` on BF16                multiplies the raw bits                                           ->  widened first
`range(tensor)`                 refused by NumPy since 2.4                                        ->  `__index__`
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
from float_formats import BF16, E4M3, E5M2, FP16, OVERFLOW_TO_NAN, decode, encode

FORMATS = {"fp8e4nv": E4M3, "fp8e5": E5M2, "bf16": BF16, "fp16": FP16}
Dot = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def widen(data: np.ndarray, dtype: Any) -> np.ndarray:
    """FP32 numbers of what the interpreter holds for a type."""
    fmt = FORMATS.get(dtype.scalar.name)
    if fmt is None:
        return data
    code = data.view(np.uint16 if data.itemsize == 2 else np.uint8)
    return decode(code, fmt).astype(np.float32)


def convert(data: np.ndarray, source: Any, target: Any, _rounding: Any) -> np.ndarray:
    """The bits of numbers in another format, rounded to nearest.

    Beyond the largest number FP8 becomes NaN. A GPU's own conversion saturates; a kernel must not lean on it.
    """
    wide = widen(data, source)
    fmt = FORMATS.get(target.scalar.name)
    if fmt is None:
        return np.ascontiguousarray(wide, np.float32).view(np.uint32)
    return encode(wide, fmt, overflow=OVERFLOW_TO_NAN)


def exact_dot(a: np.ndarray, b: np.ndarray, total: np.ndarray) -> np.ndarray:
    """In FP32, as NumPy sums."""
    return np.matmul(a, b) + total


current: list[Dot] = [exact_dot]


@contextmanager
def dot_with(dot: Dot) -> Iterator[None]:
    """Let `tl.dot` be this function of two FP32 matrices and the sum so far."""
    current.append(dot)
    try:
        yield
    finally:
        current.pop()


@lru_cache(maxsize=1)
def mend_interpreter() -> None:
    """Replace what is wrong, once a process."""
    from triton.runtime import interpreter

    def create_dot(self, a, b, total, *_):
        found = current[-1](widen(a.data, a.dtype), widen(b.data, b.dtype), total.data)
        return interpreter.TensorHandle(found.astype(total.data.dtype), total.dtype.scalar)

    def patch_tensor(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    patch = interpreter._patch_lang_tensor
    interpreter._patch_lang_tensor = patch_tensor
    interpreter._convert_float = convert
    interpreter.InterpreterBuilder.create_dot = create_dot
