"""SwiGLU: the gated MLP. One projection says what, another says how much, a third brings it back to the stream.

    python swiglu.py            a worked example and the gradient check
    swiglu.ipynb                the same on the whiteboard

Source: Shazeer 2020 (arXiv:2002.05202), Eq. (6). DeepSeek-V3 uses it in its dense layers and in every expert.
Letters: D model width, F hidden width; any number of axes may stand before D.
"""

from dataclasses import dataclass, fields

import numpy as np


@dataclass(frozen=True)
class SwigluWeights:
    """The three matrices of a gated MLP, [out, in], without bias; also the shape of their gradients."""

    gate_proj: np.ndarray  # [F, D]
    up_proj: np.ndarray  # [F, D]
    down_proj: np.ndarray  # [D, F]

    @classmethod
    def init(cls, rng: np.random.Generator, hidden_size: int, intermediate_size: int) -> "SwigluWeights":
        """Draw normal weights of variance 1 / fan-in, so that a unit input gives an output of order one."""
        wide = (intermediate_size, hidden_size)
        return cls(
            gate_proj=rng.normal(size=wide) * hidden_size**-0.5,
            up_proj=rng.normal(size=wide) * hidden_size**-0.5,
            down_proj=rng.normal(size=wide[::-1]) * intermediate_size**-0.5,
        )


def sigmoid(a: np.ndarray) -> np.ndarray:
    """Compute 1 / (1 + exp(-a)) without overflow on either side."""
    return np.exp(-np.logaddexp(0.0, -a))


def swiglu_forward(x: np.ndarray, weights: SwigluWeights) -> tuple[np.ndarray, tuple]:
    """Apply the gated MLP to each token on its own.

        y = (silu(x W_gate^T) * (x W_up^T)) W_down^T        silu(a) = a sigmoid(a)

    Args:
        x: [..., D]
    Returns:
        y: [..., D]
    Raises:
        ValueError: the matrices do not fit x or each other.
    """
    w = weights
    if w.gate_proj.shape != w.up_proj.shape or w.down_proj.shape != w.up_proj.shape[::-1]:
        shapes = {f.name: getattr(w, f.name).shape for f in fields(w)}
        raise ValueError(f"{shapes} do not fit: gate_proj and up_proj are [F, D], down_proj is [D, F]")
    if x.shape[-1] != w.up_proj.shape[1]:
        raise ValueError(f"x has width {x.shape[-1]}, up_proj reads {w.up_proj.shape[1]}; pass x as [..., D]")
    gate, up = x @ w.gate_proj.T, x @ w.up_proj.T  # [..., F] each
    open_gate = gate * sigmoid(gate)
    y = (open_gate * up) @ w.down_proj.T
    return y, (x, gate, up, w)


def swiglu_backward(dy: np.ndarray, cache: tuple) -> tuple[np.ndarray, SwigluWeights]:
    """Run the three products backwards; the two branches of the gate meet again in dx.

        dgate = d(open_gate) silu'(gate)        silu'(a) = s + a s (1 - s),  s = sigmoid(a)

    The gate's output is recomputed from its input, as DeepSeek-V3 does, instead of being kept.

    Returns:
        dx: [..., D]
        dweights: the gradients of the three matrices, in their own names and shapes.
    """
    x, gate, up, w = cache
    s = sigmoid(gate)
    open_gate = gate * s
    dproduct = dy @ w.down_proj
    dup = dproduct * open_gate
    dgate = dproduct * up * (s + open_gate * (1 - s))
    dx = dgate @ w.gate_proj + dup @ w.up_proj
    dweights = SwigluWeights(
        gate_proj=sum_outer_products(dgate, x),
        up_proj=sum_outer_products(dup, x),
        down_proj=sum_outer_products(dy, open_gate * up),
    )
    return dx, dweights


def sum_outer_products(dout: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """Gradient of W in out = inputs W^T: the outer products dout x inputs, summed over all tokens; [out, in]."""
    return dout.reshape(-1, dout.shape[-1]).T @ inputs.reshape(-1, inputs.shape[-1])


def main() -> None:
    """Open one gate by three quarters, then hold the backward pass to central differences."""
    gate = np.log(3.0)  # sigmoid(ln 3) = 3 / (1 + 3)
    tiny = SwigluWeights(gate_proj=np.array([[gate, 0.0]]), up_proj=np.array([[0.0, 2.0]]), down_proj=np.ones((2, 1)))
    y, _ = swiglu_forward(np.array([1.0, 4.0]), tiny)
    print("x = (1, 4), one hidden unit")
    print(f"gate = ln 3 = {gate:.4f}, sigmoid = {sigmoid(np.array(gate)):.4f}, silu = 0.75 ln 3 = {0.75 * gate:.4f}")
    print(f"up = 8, so the hidden unit is 8 silu = 6 ln 3 = {6 * gate:.4f}")
    print("y =", y.round(4), "  (down_proj copies the hidden unit to both coordinates)")

    rng = np.random.default_rng(0)
    weights, x, dy = SwigluWeights.init(rng, 5, 7), rng.normal(size=(3, 5)), rng.normal(size=(3, 5))
    dx, dweights = swiglu_backward(dy, swiglu_forward(x, weights)[1])
    pairs = {"x": (x, dx), **{f.name: (getattr(weights, f.name), getattr(dweights, f.name)) for f in fields(weights)}}
    for name, (array, gradient) in pairs.items():
        step = 1e-6 * rng.normal(size=array.shape)  # a random direction touches every element at once
        array += step
        above = np.sum(dy * swiglu_forward(x, weights)[0])
        array -= 2 * step
        below = np.sum(dy * swiglu_forward(x, weights)[0])
        array += step
        ratio = (above - below) / 2 / np.sum(gradient * step)
        print(f"gradient check d{name:10} central difference / analytic = {ratio:.8f}")


if __name__ == "__main__":
    main()
