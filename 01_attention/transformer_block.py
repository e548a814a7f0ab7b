"""The transformer block: two readers that only ever add to what they read, stacked as deep as you like.

    python transformer_block.py     six tokens through a stack of blocks, shape by shape, and the gradient check
    transformer_block.ipynb         the same on the whiteboard

Source: Xiong et al. 2020 (arXiv:2002.04745) on pre-norm; DeepSeek-V3 (arXiv:2412.19437), Figure 2, has this block with
latent attention (chapter 02) and experts (chapter 03) in the two places.
Letters: B batch, S tokens, D model width, H heads, K key width and U value width of one head, F hidden width, L layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from multi_head_attention import AttentionWeights, multi_head_backward, multi_head_forward
from rms_norm import rms_norm_backward, rms_norm_forward
from self_attention import compare_slopes
from swiglu import SwigluWeights, swiglu_backward, swiglu_forward


@dataclass(frozen=True)
class BlockWeights:
    """One layer under the released names; also the shape of its gradients."""

    input_layernorm: np.ndarray  # [D]
    self_attn: AttentionWeights
    post_attention_layernorm: np.ndarray  # [D]; before the MLP, in spite of its name: it comes after the attention
    mlp: SwigluWeights

    @classmethod
    def init(cls, rng: np.random.Generator, sizes: "BlockSizes") -> "BlockWeights":
        """Draw the matrices with variance 1 / fan-in, start the norms at one."""
        return cls(
            input_layernorm=np.ones(sizes.hidden_size),
            self_attn=AttentionWeights.init(rng, sizes.hidden_size, sizes.n_heads, sizes.key_dim, sizes.value_dim),
            post_attention_layernorm=np.ones(sizes.hidden_size),
            mlp=SwigluWeights.init(rng, sizes.hidden_size, sizes.intermediate_size),
        )


class BlockSizes(NamedTuple):
    """The widths of a block."""

    hidden_size: int
    n_heads: int
    key_dim: int
    value_dim: int
    intermediate_size: int


class BlockCache(NamedTuple):
    """What the backward pass needs, and what the tour through the stack shows."""

    attention_norm: tuple
    attention: tuple
    mlp_norm: tuple
    mlp: tuple
    stream: tuple  # the residual stream [B, S, D] before, between and after the two readers


def block_forward(hidden_BSD: np.ndarray, weights: BlockWeights, n_heads: int) -> tuple[np.ndarray, BlockCache]:
    """Let the tokens exchange, then let each think by itself; both times add the answer to the stream.

        x = x + attention(norm(x))
        x = x + mlp(norm(x))            (the norm stands inside the branch: the stream itself is never rescaled)

    Returns:
        out_BSD
    Raises:
        ValueError: from the parts, where weights do not fit.
    """
    normed_BSD, attention_norm = rms_norm_forward(hidden_BSD, weights.input_layernorm)
    attended_BSD, attention = multi_head_forward(normed_BSD, weights.self_attn, n_heads)
    between_BSD = hidden_BSD + attended_BSD  # V3 Fig. 2
    normed_BSD, mlp_norm = rms_norm_forward(between_BSD, weights.post_attention_layernorm)
    thought_BSD, mlp = swiglu_forward(normed_BSD, weights.mlp)
    out_BSD = between_BSD + thought_BSD
    return out_BSD, BlockCache(attention_norm, attention, mlp_norm, mlp, (hidden_BSD, between_BSD, out_BSD))


def block_backward(dout_BSD: np.ndarray, cache: BlockCache) -> tuple[np.ndarray, BlockWeights]:
    """Go back along the stream; at each reader the gradient arrives twice, straight and through the branch.

        y = x + f(x)   so   dx = dy + f'(x)^T dy

    Returns:
        dhidden_BSD, dweights
    """
    dnormed_BSD, dmlp = swiglu_backward(dout_BSD, cache.mlp)
    dbranch_BSD, dmlp_norm = rms_norm_backward(dnormed_BSD, cache.mlp_norm)
    dbetween_BSD = dout_BSD + dbranch_BSD
    dnormed_BSD, dattention = multi_head_backward(dbetween_BSD, cache.attention)
    dbranch_BSD, dattention_norm = rms_norm_backward(dnormed_BSD, cache.attention_norm)
    dhidden_BSD = dbetween_BSD + dbranch_BSD
    return dhidden_BSD, BlockWeights(dattention_norm, dattention, dmlp_norm, dmlp)


def stack_forward(
    hidden_BSD: np.ndarray, layers: Sequence[BlockWeights], n_heads: int
) -> tuple[np.ndarray, list[BlockCache]]:
    """Pass the stream through every block in turn.

    Returns:
        out_BSD, and the cache of each block
    """
    caches = []
    for weights in layers:
        hidden_BSD, cache = block_forward(hidden_BSD, weights, n_heads)
        caches.append(cache)
    return hidden_BSD, caches


def stack_backward(dout_BSD: np.ndarray, caches: Sequence[BlockCache]) -> tuple[np.ndarray, list[BlockWeights]]:
    """Pass the gradient through every block, last one first.

    Returns:
        dhidden_BSD, and the gradients of each block, first one first
    """
    dlayers = []
    for cache in reversed(caches):
        dout_BSD, dweights = block_backward(dout_BSD, cache)
        dlayers.append(dweights)
    return dout_BSD, dlayers[::-1]


def list_arrays(weights, prefix: str = "") -> dict[str, np.ndarray]:
    """Name every array of a block (or of its gradients) as the released checkpoint does, without `.weight`."""
    arrays = {}
    for name, value in vars(weights).items():
        arrays |= {prefix + name: value} if isinstance(value, np.ndarray) else list_arrays(value, f"{prefix}{name}.")
    return arrays


def tour_block(cache: BlockCache) -> list[tuple[str, str, tuple[int, ...]]]:
    """Read the stations of a forward pass from its cache: what happened, its axes, its shape."""
    _, (query, key, value, prob), merged, _, _ = cache.attention
    _, gate, up, _ = cache.mlp
    before, between, after = cache.stream
    return [
        ("the stream comes in", "B S D", before.shape),
        ("input_layernorm", "B S D", cache.attention[0].shape),
        ("q_proj, split into heads", "B H S K", query.shape),
        ("k_proj, split into heads", "B H S K", key.shape),
        ("v_proj, split into heads", "B H S U", value.shape),
        ("who looks at whom", "B H S S", prob.shape),
        ("heads merged", "B S HU", merged.shape),
        ("o_proj, added to the stream", "B S D", between.shape),
        ("post_attention_layernorm", "B S D", cache.mlp[0].shape),
        ("gate_proj", "B S F", gate.shape),
        ("up_proj", "B S F", up.shape),
        ("down_proj, added to the stream", "B S D", after.shape),
    ]


def main() -> None:
    """Follow six tokens through three blocks, then hold one block to central differences."""
    rng = np.random.default_rng(0)
    sizes = BlockSizes(hidden_size=12, n_heads=3, key_dim=4, value_dim=4, intermediate_size=32)
    layers = [BlockWeights.init(rng, sizes) for _ in range(3)]
    hidden = rng.normal(size=(1, 6, sizes.hidden_size))
    out, caches = stack_forward(hidden, layers, sizes.n_heads)
    print("six tokens through the first of three blocks")
    for what, axes, shape in tour_block(caches[0]):
        print(f"  {what:32} {axes:8} {shape}")
    sizes_on_the_way = [np.sqrt(np.mean(h**2)) for h in [hidden, *(c.stream[-1] for c in caches)]]
    grown = ", ".join(f"{size:.2f}" for size in sizes_on_the_way)
    print(f"size (root mean square) of the stream after 0, 1, 2, 3 blocks: {grown}")
    print("each block adds its answer; nothing is overwritten, and the final norm brings the size back to 1:")
    settled = np.sqrt(np.mean(rms_norm_forward(out, np.ones(sizes.hidden_size))[0] ** 2))
    print(f"after that norm it is {settled:.4f}")

    weights, n_heads = layers[0], sizes.n_heads
    dout = rng.normal(size=hidden.shape)
    dhidden, dweights = block_backward(dout, block_forward(hidden, weights, n_heads)[1])
    arrays, gradients = {"hidden": hidden, **list_arrays(weights)}, {"hidden": dhidden, **list_arrays(dweights)}
    print()
    for name, array in arrays.items():
        slopes = compare_slopes(
            lambda: np.sum(dout * block_forward(hidden, weights, n_heads)[0]), array, gradients[name]
        )
        print(f"gradient check {name:25} {slopes}")


if __name__ == "__main__":
    main()
