"""Multi-head attention: several small attentions side by side, each with its own question, at the price of one.

    python multi_head_attention.py    a worked example and the gradient check
    multi_head_attention.ipynb        the same on the whiteboard

Source: DeepSeek-V2 (arXiv:2405.04434), Eq. (1)-(8); Vaswani et al. 2017 (arXiv:1706.03762), section 3.2.2.
Letters: B batch, S tokens, D model width, H heads, K key width and U value width of one head, X all heads (H K or H U).
"""

from dataclasses import dataclass, fields

import numpy as np
from causal_attention import attend_causally_backward, attend_causally_forward
from self_attention import compare_slopes


@dataclass(frozen=True)
class AttentionWeights:
    """The four matrices of an attention layer, [out, in]; the rows of head h are one block, h K to (h + 1) K.

    Also the shape of their gradients.
    """

    q_proj: np.ndarray  # [H K, D]
    k_proj: np.ndarray  # [H K, D]
    v_proj: np.ndarray  # [H U, D]
    o_proj: np.ndarray  # [D, H U]

    @classmethod
    def init(
        cls, rng: np.random.Generator, hidden_size: int, n_heads: int, key_dim: int, value_dim: int
    ) -> "AttentionWeights":
        """Draw normal weights of variance 1 / fan-in."""
        widths = (n_heads * key_dim, n_heads * key_dim, n_heads * value_dim)
        projections = (rng.normal(size=(width, hidden_size)) * hidden_size**-0.5 for width in widths)
        return cls(*projections, rng.normal(size=(hidden_size, widths[2])) * widths[2] ** -0.5)


def split_heads(joined_BSX: np.ndarray, n_heads: int) -> np.ndarray:
    """Cut the last axis into heads and move them beside the batch: [B, S, H K] to [B, H, S, K].

    Raises:
        ValueError: the heads do not divide the width.
    """
    n_rows, n_tokens, width = joined_BSX.shape
    if width % n_heads:
        fit = -(-width // n_heads) * n_heads
        raise ValueError(f"{n_heads} heads do not divide a width of {width}; make it {fit}, or change n_heads")
    return joined_BSX.reshape(n_rows, n_tokens, n_heads, width // n_heads).transpose(0, 2, 1, 3)


def merge_heads(head_BHSX: np.ndarray) -> np.ndarray:
    """Lay the heads of each token end to end again: [B, H, S, U] to [B, S, H U]; undoes `split_heads`."""
    n_rows, n_heads, n_tokens, width = head_BHSX.shape
    return head_BHSX.transpose(0, 2, 1, 3).reshape(n_rows, n_tokens, n_heads * width)


def multi_head_forward(hidden_BSD: np.ndarray, weights: AttentionWeights, n_heads: int) -> tuple[np.ndarray, tuple]:
    """Project, split, attend causally in every head on its own, merge, project back.

        out = W_O [head_1; ...; head_H]        head_h = attend(W_Q,h x, W_K,h x, W_V,h x)

    Returns:
        out_BSD
    Raises:
        ValueError: the weights do not fit hidden_BSD, each other or the number of heads.
    """
    require_fit(hidden_BSD, weights)
    query_BHSK = split_heads(hidden_BSD @ weights.q_proj.T, n_heads)
    key_BHSK = split_heads(hidden_BSD @ weights.k_proj.T, n_heads)
    value_BHSU = split_heads(hidden_BSD @ weights.v_proj.T, n_heads)
    head_BHSU, attend_cache = attend_causally_forward(query_BHSK, key_BHSK, value_BHSU)
    merged_BSX = merge_heads(head_BHSU)
    out_BSD = merged_BSX @ weights.o_proj.T  # V3 Eq. (11)
    return out_BSD, (hidden_BSD, attend_cache, merged_BSX, weights, n_heads)


def multi_head_backward(dout_BSD: np.ndarray, cache: tuple) -> tuple[np.ndarray, AttentionWeights]:
    """Go back through the same doors: split where the forward merged, merge where it split.

    Returns:
        dhidden_BSD, dweights
    """
    hidden_BSD, attend_cache, merged_BSX, w, n_heads = cache
    dhead_BHSU = split_heads(dout_BSD @ w.o_proj, n_heads)
    dheads = attend_causally_backward(dhead_BHSU, attend_cache)
    dquery_BSX, dkey_BSX, dvalue_BSX = (merge_heads(dhead) for dhead in dheads)
    dhidden_BSD = dquery_BSX @ w.q_proj + dkey_BSX @ w.k_proj + dvalue_BSX @ w.v_proj
    dweights = AttentionWeights(
        q_proj=weight_gradient(dquery_BSX, hidden_BSD),
        k_proj=weight_gradient(dkey_BSX, hidden_BSD),
        v_proj=weight_gradient(dvalue_BSX, hidden_BSD),
        o_proj=weight_gradient(dout_BSD, merged_BSX),
    )
    return dhidden_BSD, dweights


def weight_gradient(dout_BSX: np.ndarray, inputs_BSD: np.ndarray) -> np.ndarray:
    """Gradient of W in out = inputs W^T: summed over every token of every sequence; [out, in]."""
    return np.einsum("bsx,bsd->xd", dout_BSX, inputs_BSD)


def require_fit(hidden_BSD: np.ndarray, weights: AttentionWeights) -> None:
    """Refuse weights that do not fit, with their shapes.

    Raises:
        ValueError: hidden_BSD has not three axes, or a matrix reads or writes another width than its neighbour.
    """
    if hidden_BSD.ndim != 3:
        raise ValueError(f"hidden has shape {hidden_BSD.shape}; pass [B, S, D], a single sequence as hidden[None]")
    shapes = {f.name: getattr(weights, f.name).shape for f in fields(weights)}
    reads = {name: shape[1] for name, shape in shapes.items() if name != "o_proj"}
    if set(reads.values()) != {hidden_BSD.shape[-1]}:
        raise ValueError(f"hidden has width {hidden_BSD.shape[-1]}, but the projections read {reads}")
    if shapes["q_proj"] != shapes["k_proj"] or shapes["o_proj"] != shapes["v_proj"][::-1]:
        raise ValueError(f"{shapes} do not fit: q_proj and k_proj are [H K, D], v_proj [H U, D], o_proj [D, H U]")


def main() -> None:
    """Show the split on counted numbers, the freedom that two heads bring, and the gradient check."""
    counted = np.arange(12).reshape(1, 2, 6)
    print("two tokens of width 6, split into H = 2 heads of width 3: [1, 2, 6] to [1, 2, 2, 3]")
    for h, head in enumerate(split_heads(counted, 2)[0]):
        first, second = (", ".join(str(n) for n in row) for row in head)
        print(f"  head {h} holds {first} of token 0 and {second} of token 1")
    print(
        "merged again, every number is in its old place:", bool((merge_heads(split_heads(counted, 2)) == counted).all())
    )

    token = np.array([[[3.0, 0.0], [0.0, 3.0], [3.0, 3.0]]])
    eye = np.eye(2)
    both = AttentionWeights(q_proj=2 * eye, k_proj=2 * eye, v_proj=eye, o_proj=eye)
    print("\nwhom does the last of the tokens (3, 0), (0, 3), (3, 3) look at?")
    for n_heads in (1, 2):
        shares = multi_head_forward(token, both, n_heads)[1][1][3][0, :, -1]
        for h, share in enumerate(shares):
            print(f"  H = {n_heads}, head {h}: " + ", ".join(f"{s:.0%} at token {t}" for t, s in enumerate(share)))

    rng = np.random.default_rng(0)
    weights, hidden = AttentionWeights.init(rng, 7, 3, 2, 5), rng.normal(size=(2, 5, 7))
    dout = rng.normal(size=hidden.shape)
    dhidden, dweights = multi_head_backward(dout, multi_head_forward(hidden, weights, 3)[1])
    arrays = {"hidden": (hidden, dhidden)}
    arrays |= {f.name: (getattr(weights, f.name), getattr(dweights, f.name)) for f in fields(weights)}
    print()
    for name, (array, gradient) in arrays.items():
        slopes = compare_slopes(lambda: np.sum(dout * multi_head_forward(hidden, weights, 3)[0]), array, gradient)
        print(f"gradient check {name:7} {slopes}")


if __name__ == "__main__":
    main()
