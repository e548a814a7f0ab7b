"""Words for what a reader's answer is, for exercise_checks.py."""

import numpy as np


def same(got, want) -> bool:
    """Equal shape and equal to rounding."""
    return np.shape(got) == np.shape(want) and bool(np.allclose(got, want, rtol=1e-9, atol=1e-9))


def expect_shape(got, shape: tuple[int, ...], what: str) -> None:
    """Complain about a wrong shape in words."""
    assert np.shape(got) == shape, f"{what} has shape {np.shape(got)}, expected {shape}"


def expect_parts(got, want: dict[str, np.ndarray], usual: list | None = None) -> None:
    """Compare a tuple of gradients part by part; `usual` lists (part, value, words) of common mistakes."""
    names = ", ".join(want)
    assert isinstance(got, tuple), f"return {len(want)} arrays, in this order: {names}"
    assert len(got) == len(want), f"you return {len(got)} arrays, expected {len(want)}: {names}"
    for part, (name, right) in zip(got, want.items(), strict=True):
        expect_shape(part, right.shape, f"your {name}")
        for about, wrong, words in usual or ():
            assert about != name or not same(part, wrong), f"{name}: {words}"
        if not same(part, right):
            ratio = np.asarray(part)[np.abs(right) > 1e-9] / right[np.abs(right) > 1e-9]
            assert not np.allclose(ratio, ratio.flat[0], rtol=1e-6), (
                f"{name} has the right direction and {ratio.flat[0]:.4g} times the right size: a factor is missing or "
                "counted twice"
            )
            raise AssertionError(
                f"{name} is wrong" + (f"; right so far: {names.split(name)[0][:-2]}" if part is not got[0] else "")
            )
