"""Words for what a reader's answer is, for exercise_checks.py."""

import numpy as np


def same(got, want) -> bool:
    """Equal shape and equal to rounding."""
    return np.shape(got) == np.shape(want) and bool(np.allclose(got, want, rtol=1e-9, atol=1e-12))


def expect_shape(got, shape: tuple[int, ...], what: str) -> None:
    """Complain about a wrong kind or shape in words."""
    assert isinstance(got, np.ndarray | np.generic), f"{what}: return an array, not {type(got).__name__}"
    turned = "; its axes are turned around" if np.shape(got) == shape[::-1] and len(set(shape)) > 1 else ""
    assert np.shape(got) == shape, f"{what} has shape {np.shape(got)}, expected {shape}{turned}"


def expect_same(got, want: np.ndarray, usual: dict[str, np.ndarray], what: str) -> None:
    """Pass when `got` is right; else name the usual mistake that it equals, or the size, or the place."""
    assert isinstance(got, np.ndarray | np.generic | float), f"{what}: return an array, not {type(got).__name__}"
    if same(got, want):
        return
    for words, wrong in usual.items():
        assert not same(got, wrong), f"{what}: {words}"
    expect_shape(np.asarray(got), np.shape(want), what)
    assert np.isfinite(got).all(), f"{what}: it holds NaN or infinity; did something overflow, or divide by zero?"
    big = np.abs(want) > 1e-9
    ratio = np.asarray(got)[big] / np.asarray(want)[big]
    if ratio.size > 1 and np.allclose(ratio, ratio[0], rtol=1e-6) and not np.any(np.abs(np.asarray(got)[~big]) > 1e-9):
        raise AssertionError(
            f"{what}: right direction, {ratio[0]:.4g} times the right size: a factor is missing or counted twice"
        )
    worst = np.unravel_index(np.argmax(np.abs(np.asarray(got, float) - want)), np.shape(want))
    place, there, right = tuple(int(i) for i in worst), float(np.asarray(got)[worst]), float(np.asarray(want)[worst])
    raise AssertionError(f"{what}: at {place} there is {there:.6g}, should be {right:.6g}")


def expect_parts(got, want: dict[str, np.ndarray], usual: dict[str, dict[str, np.ndarray]]) -> None:
    """Compare a tuple of results part by part; `usual` has the mistakes of each by its name."""
    names = ", ".join(want)
    assert isinstance(got, tuple | list), f"return {len(want)} results, in this order: {names}"
    assert len(got) == len(want), f"you return {len(got)} results, expected {len(want)}: {names}"
    done = []
    for part, (name, right) in zip(got, want.items()):
        try:
            expect_same(part, right, usual.get(name, {}), name)
        except AssertionError as error:
            raise AssertionError(f"{error}" + (f" (right so far: {', '.join(done)})" if done else "")) from None
        done.append(name)
