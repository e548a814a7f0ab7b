"""RMSNorm: give every token the same length, keep its direction.

    python rms_norm.py          a worked example and the gradient check
    rms_norm.ipynb              the same on the whiteboard

Source: Zhang and Sennrich 2019 (arXiv:1910.07467), Eq. (4). DeepSeek-V3 uses it before attention, before the MLP, on
both latents of its attention and before the head, always with eps = 1e-6 inside the root.
Letters: D width of what is normed; any number of axes may stand before it.
"""

import numpy as np


def rms_norm_forward(x: np.ndarray, weight: np.ndarray, eps: float = 1e-6) -> tuple[np.ndarray, tuple]:
    """Divide each row by its root mean square, then stretch each coordinate by its weight.

        y = weight * x / sqrt(mean(x^2) + eps)

    Args:
        x: [..., D]
        weight: [D], the only parameter; there is no mean to subtract and no bias to add.
        eps: added to the mean square, so a row of zeros stays a row of zeros.
    Raises:
        ValueError: the weight is not one number for each coordinate of x.
    """
    if x.shape[-1:] != weight.shape:
        raise ValueError(f"x has width {x.shape[-1:]} but weight has shape {weight.shape}; one weight per coordinate")
    inverse_rms = (np.mean(x**2, axis=-1, keepdims=True) + eps) ** -0.5  # [..., 1]
    x_hat = x * inverse_rms
    return weight * x_hat, (x_hat, inverse_rms, weight)


def rms_norm_backward(dy: np.ndarray, cache: tuple) -> tuple[np.ndarray, np.ndarray]:
    """Send the gradient back through the weight, and through x twice: as numerator and inside the root.

        dx_hat = weight * dy
        dx = (dx_hat - x_hat * mean(dx_hat * x_hat)) / rms        (nothing along x: its length no longer matters)

    Returns:
        dx: [..., D]
        dweight: [D]
    """
    x_hat, inverse_rms, weight = cache
    dweight = (dy * x_hat).reshape(-1, weight.size).sum(axis=0)
    dx_hat = dy * weight
    along_x = np.mean(dx_hat * x_hat, axis=-1, keepdims=True)
    dx = inverse_rms * (dx_hat - x_hat * along_x)
    return dx, dweight


def main() -> None:
    """Norm a row whose root mean square is 5, then hold the backward pass to central differences."""
    x, weight = np.array([1.0, 7.0]), np.array([1.0, 1.0])
    y, cache = rms_norm_forward(x, weight, eps=0.0)
    dx, _ = rms_norm_backward(np.array([1.0, 0.0]), cache)
    y10, _ = rms_norm_forward(10 * x, weight, eps=0.0)
    print(f"The row (1, 7) has mean square (1 + 49) / 2 = {np.mean(x**2):g}, so its root mean square is 5.")
    print(f"Divided by it: ({y[0]:g}, {y[1]:g}). Ten times the row gives the same: ({y10[0]:g}, {y10[1]:g}).")
    print(f"A gradient (1, 0) on the result arrives at the row as ({dx[0]:.3f}, {dx[1]:.3f}).")
    print(f"Times the row: 1 * 0.196 - 7 * 0.028 = {abs(round(float(dx @ x), 12)):g}: nothing points along it.")

    rng = np.random.default_rng(0)
    x, weight, dy = rng.normal(size=(3, 5)), rng.normal(size=5), rng.normal(size=(3, 5))
    dx, dweight = rms_norm_backward(dy, rms_norm_forward(x, weight)[1])
    for name, array, gradient in (("dx", x, dx), ("dweight", weight, dweight)):
        step = 1e-6 * rng.normal(size=array.shape)  # a random direction touches every element at once
        array += step
        above = np.sum(dy * rms_norm_forward(x, weight)[0])
        array -= 2 * step
        below = np.sum(dy * rms_norm_forward(x, weight)[0])
        array += step
        ratio = (above - below) / 2 / np.sum(gradient * step)
        print(f"gradient check {name:8} central difference / analytic = {ratio:.8f}")


if __name__ == "__main__":
    main()
