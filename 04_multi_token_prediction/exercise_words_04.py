"""Words for what a reader's answer is, for exercise_checks.py."""

import numpy as np


def same(got, want) -> bool:
    """Equal shape and equal to rounding."""
    return np.shape(got) == np.shape(want) and bool(np.allclose(got, want, rtol=1e-9, atol=1e-11))


def expect_shape(got, shape: tuple[int, ...], what: str) -> None:
    """Complain about a wrong kind or shape in words."""
    assert isinstance(got, np.ndarray | np.generic | float), f"{what}: return an array, not {type(got).__name__}"
    hint = "; its axes are turned around" if np.shape(got) == shape[::-1] != shape else ""
    assert np.shape(got) == shape, f"{what} has shape {np.shape(got)}, expected {shape}{hint}"


def expect_same(got, want, usual: dict[str, np.ndarray], what: str) -> None:
    """Pass when `got` is right; else name the usual mistake that it equals, a factor, or the place."""
    if same(got, want):
        return
    for words, wrong in usual.items():
        assert not same(got, wrong), f"{what}: {words}"
    expect_shape(got, np.shape(want), what)
    got, want = np.atleast_1d(np.asarray(got, dtype=float)), np.atleast_1d(np.asarray(want, dtype=float))
    assert np.isfinite(got).all(), f"{what} holds NaN or infinity: did something overflow, or divide by zero?"
    big = np.abs(want) > 1e-8
    ratio = got[big] / want[big]
    if ratio.size > 1 and np.allclose(ratio, ratio[0], rtol=1e-6) and np.allclose(got[~big], 0, atol=1e-8):
        raise AssertionError(f"{what}: {ratio[0]:.4g} times the right size: a factor is missing or counted twice")
    place = tuple(int(i) for i in np.unravel_index(np.argmax(np.abs(got - want)), want.shape))
    raise AssertionError(f"{what}: at {place} there is {got[place]:.6g}, should be {want[place]:.6g}")


def expect_parts(got, want: dict[str, np.ndarray], usual: dict[str, dict[str, np.ndarray]]) -> None:
    """Compare several results part by part; `usual` has the mistakes of each by its name."""
    names = ", ".join(want)
    assert isinstance(got, tuple | list), f"return {len(want)} results, in this order: {names}"
    assert len(got) == len(want), f"you return {len(got)} results, expected {len(want)}: {names}"
    right: list[str] = []
    for part, (name, value) in zip(got, want.items()):
        try:
            expect_same(part, value, usual.get(name, {}), name)
        except AssertionError as error:
            so_far = f" (right so far: {', '.join(right)})" if right else ""
            raise AssertionError(f"{error}{so_far}") from None
        right.append(name)
