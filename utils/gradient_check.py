"""Central differences: the oracle that every hand-derived gradient is held to.

    dL/dx_k  ~  (L(x + h e_k) - L(x - h e_k)) / 2h          error O(h^2) from the formula, O(eps / h) from rounding

In float64 the two errors meet near h = eps^(1/3), about 6e-6, where the relative error is about 1e-10: a tolerance of
1e-6 leaves four digits of room and still catches every missing term.
"""

from collections.abc import Callable, Mapping

import numpy as np

STEP = 6e-6  # eps ** (1/3) in float64


def central_difference(loss: Callable[[], float], array: np.ndarray, step: float = STEP) -> np.ndarray:
    """Differentiate `loss` by every element of `array`, which is changed in place and restored.

    Raises:
        ValueError: `array` is not float64 (rounding would drown the difference).
    """
    if array.dtype != np.float64:
        raise ValueError(f"central differences need float64, got {array.dtype}; cast with .astype(np.float64)")
    gradient = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        kept = array[index]
        array[index] = kept + step
        above = loss()
        array[index] = kept - step
        below = loss()
        array[index] = kept
        gradient[index] = (above - below) / (2 * step)
    return gradient


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """Largest absolute difference over the largest magnitude of either array; 0 when both are zero."""
    if got.shape != want.shape:
        raise ValueError(f"shapes differ: {got.shape} against {want.shape}")
    if got.size == 0:
        return 0.0
    scale = max(np.abs(got).max(), np.abs(want).max())
    return 0.0 if scale == 0 else float(np.abs(got - want).max() / scale)


def check_gradients(
    loss: Callable[[], float],
    arrays: Mapping[str, np.ndarray],
    gradients: Mapping[str, np.ndarray],
    tolerance: float = 1e-6,
) -> dict[str, float]:
    """Hold each analytic gradient to central differences; return the relative error by name.

    A gradient that is truly zero is compared absolutely, against the rounding floor of the difference quotient.

    Args:
        loss: reads the arrays afresh on every call and returns a scalar, of order 1.
        arrays: the float64 inputs and weights, by name.
        gradients: dL/d(array) under the same names.
    Raises:
        AssertionError: names every gradient that is wrong, with its error.
        ValueError: a name is in one mapping only.
    """
    if arrays.keys() != gradients.keys():
        raise ValueError(f"names differ: {sorted(arrays.keys() ^ gradients.keys())}")
    errors, wrong = {}, []
    for name, array in arrays.items():
        numeric = central_difference(loss, array)
        analytic = np.asarray(gradients[name], dtype=np.float64)
        # the quotient's own rounding noise: a few eps * |L| / h, far below any real gradient of a loss of order 1
        noise = 1e-9 * max(1.0, abs(loss()))
        if max(np.abs(numeric).max(initial=0), np.abs(analytic).max(initial=0)) < noise:
            errors[name] = 0.0
            continue
        errors[name] = relative_error(analytic, numeric)
        if not errors[name] <= tolerance:
            wrong.append(f"d{name}: relative error {errors[name]:.2e} > {tolerance:.0e}")
    assert not wrong, "; ".join(wrong)
    return errors
