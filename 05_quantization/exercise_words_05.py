"""Words for what a reader's answer is, for exercise_checks.py."""

import numpy as np


def close(got, want) -> bool:
    """Equal up to float32 rounding in another order."""
    return np.shape(got) == np.shape(want) and bool(np.allclose(got, want, rtol=1e-5, atol=1e-7, equal_nan=True))


def expect_array(got, want: np.ndarray, usual: dict[str, np.ndarray], what: str) -> None:
    """Pass when `got` is right; else name the usual mistake that it equals, or the place that is wrong."""
    assert isinstance(got, np.ndarray | np.generic | float), f"{what}: return an array, not {type(got).__name__}"
    if close(got, want):
        return
    for words, wrong in usual.items():
        assert not close(got, wrong), f"{what}: {words}"
    turned = "; its axes are turned around" if np.shape(got) == np.shape(want)[::-1] != np.shape(want) else ""
    assert np.shape(got) == np.shape(want), f"{what} has shape {np.shape(got)}, expected {np.shape(want)}{turned}"
    assert np.isfinite(got).all(), f"{what} holds NaN or infinity: was something divided by a scale of zero?"
    place = tuple(int(i) for i in np.unravel_index(np.argmax(np.abs(got - want)), want.shape))
    raise AssertionError(f"{what}: at {place} there is {got[place]:.6g}, should be {want[place]:.6g}")


def expect_arrays(got, want: dict[str, np.ndarray], usual: dict[str, dict[str, np.ndarray]]) -> None:
    """Compare several results part by part; `usual` has the mistakes of each by its name."""
    names = ", ".join(want)
    assert isinstance(got, tuple | list), f"return {len(want)} arrays, in this order: {names}"
    assert len(got) == len(want), f"you return {len(got)} arrays, expected {len(want)}: {names}"
    right: list[str] = []
    for part, (name, value) in zip(got, want.items()):
        try:
            expect_array(part, value, usual.get(name, {}), name)
        except AssertionError as error:
            so_far = f" (right so far: {', '.join(right)})" if right else ""
            raise AssertionError(f"{error}{so_far}") from None
        right.append(name)
