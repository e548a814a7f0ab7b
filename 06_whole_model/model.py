"""The whole of DeepSeek-V3: from tokens to the pre-training loss, and the gradient of every tensor by hand.

    python model.py             layer by layer, the parts of the loss, then the gradient check

Notebook: model.ipynb. Source: arXiv:2412.19437, Fig. 2 and Fig. 3, Eq. (1) to (25).
Letters: B batch, S tokens of a window, T = S - 1 rows, D model width, V vocabulary.

    x = Emb(t);   x += MLA(norm(x)),  x += FFN(norm(x))  in every layer;   h = norm(x);   logits = h W_head^T
    loss = main + lambda / depths * (loss of each MTP depth) + alpha * (balance of each MoE layer)

Nothing is derived here. Chapter 01 gives the norm and the gated MLP, 02 the attention, 03 the experts and their
balance, 04 the head's loss and the further tokens; this file is how they hang together.
"""

from typing import Any, NamedTuple

import chapters  # noqa: F401
import numpy as np
from architecture import Config, Layer, Model, Weights, init_model, view_layer, view_mtp
from cross_entropy import head_loss_backward, head_loss_forward
from decoupled_rope import decoupled_attention_backward, decoupled_attention_forward
from deepseek_moe import DeepseekMoE, deepseek_moe_backward, deepseek_moe_forward
from load_balancing import sequence_balance_backward, sequence_balance_forward
from mtp_module import mtp_forward
from mtp_pretraining import Depth, depth_targets, index_rows, mtp_loss_backward, mtp_loss_forward, scatter_rows
from rms_norm import rms_norm_backward, rms_norm_forward
from swiglu import swiglu_backward, swiglu_forward


class LayerCache(NamedTuple):
    """What a layer leaves for its backward pass; `load_E` and `balance_loss` also for the training loop."""

    norms: tuple
    attention: Any
    mlp: Any
    balance: Any
    balance_loss: float
    load_E: np.ndarray | None


class Losses(NamedTuple):
    """The parts of one step's loss, in nats, and the tokens that each expert of each MoE layer got."""

    total: float
    main: float
    ahead: list[float]  # one for each MTP depth, before it is weighed
    balance: float  # all MoE layers together, times alpha
    loads: dict[int, np.ndarray]  # by layer number


def layer_forward(
    x_BSD: np.ndarray,
    layer: Layer,
    config: Config,
    positions: np.ndarray | None = None,
    past=None,
    *,
    attend=decoupled_attention_forward,
    alpha: float = 0.0,
) -> tuple[np.ndarray, LayerCache]:
    """Run one layer: attention and feed-forward, each on the normed stream, each added to it.

    Args:
        past: the latent cache of this layer, a `TokenCache` of chapter 02; None in training.
        attend: expanded for training and prefill, or `absorbed_attention_forward` for decoding: the same numbers.
        alpha: weight of the sequence-wise balance loss of a MoE layer.
    """
    normed_BSD, norm_1 = rms_norm_forward(x_BSD, layer.input_layernorm)
    mixed_BSD, attention = attend(normed_BSD, layer.self_attn, config.attention, positions, past)
    x_BSD = x_BSD + mixed_BSD  # V3 Fig. 2
    normed_BSD, norm_2 = rms_norm_forward(x_BSD, layer.post_attention_layernorm)
    if not isinstance(layer.mlp, DeepseekMoE):
        y_BSD, mlp = swiglu_forward(normed_BSD, layer.mlp)
        return x_BSD + y_BSD, LayerCache((norm_1, norm_2), attention, mlp, None, 0.0, None)
    y_ND, moe = deepseek_moe_forward(normed_BSD.reshape(-1, normed_BSD.shape[-1]), layer.mlp, config.router)
    balance_loss, balance = 0.0, None
    if alpha:
        score_BSE = moe.score_NE.reshape(*x_BSD.shape[:2], -1)
        balance_loss, balance = sequence_balance_forward(score_BSE, config.num_experts_per_tok, alpha)
    cache = LayerCache((norm_1, norm_2), attention, moe, balance, balance_loss, moe.load_E)
    return x_BSD + y_ND.reshape(x_BSD.shape), cache


def layer_backward(dy_BSD: np.ndarray, cache: LayerCache) -> tuple[np.ndarray, Weights]:
    """Return dx and the gradients of the layer by released name; those of its balance loss are in them."""
    norm_1, norm_2 = cache.norms
    if cache.load_E is None:
        dnormed_BSD, dmlp = swiglu_backward(dy_BSD, cache.mlp)
        grads = {f"mlp.{name}.weight": grad for name, grad in vars(dmlp).items()}
    else:
        dscore_NE = None
        if cache.balance is not None:
            dscore_NE = sequence_balance_backward(1.0, cache.balance).reshape(cache.mlp.score_NE.shape)
        dy_ND = dy_BSD.reshape(-1, dy_BSD.shape[-1])
        dnormed_ND, dmoe = deepseek_moe_backward(dy_ND, cache.mlp, dscore_NE)
        dnormed_BSD = dnormed_ND.reshape(dy_BSD.shape)
        grads = {f"mlp.{name.removesuffix('.weight')}.weight": grad for name, grad in dmoe.items()}
    dx_BSD, grads["post_attention_layernorm.weight"] = rms_norm_backward(dnormed_BSD, norm_2)
    dx_BSD = dx_BSD + dy_BSD  # the stream itself passes everything on
    dnormed_BSD, dattention = decoupled_attention_backward(dx_BSD, cache.attention)
    grads |= {f"self_attn.{name}.weight": grad for name, grad in dattention.arrays().items()}
    dnormed_BSD, grads["input_layernorm.weight"] = rms_norm_backward(dnormed_BSD, norm_1)
    return dx_BSD + dnormed_BSD, grads


def hidden_forward(model: Model, tokens_BT: np.ndarray, *, alpha: float = 0.0) -> tuple[np.ndarray, tuple]:
    """Run the main model up to its final norm: what the head reads, and MTP depth 1.

    Raises:
        ValueError: tokens that are no matrix, or that the embedding does not have.
    """
    V = model.config.vocab_size
    if tokens_BT.ndim != 2 or not 0 <= tokens_BT.min() <= tokens_BT.max() < V:
        raise ValueError(f"tokens of shape {tokens_BT.shape} must be a matrix [B, S] of numbers from 0 to {V - 1}")
    x_BTD, caches = model.weights["model.embed_tokens.weight"][tokens_BT], []
    for i in range(model.config.num_hidden_layers):
        x_BTD, cache = layer_forward(x_BTD, view_layer(model, i), model.config, alpha=alpha)
        caches.append(cache)
    hidden_BTD, norm = rms_norm_forward(x_BTD, model.weights["model.norm.weight"])
    return hidden_BTD, (tokens_BT, caches, norm, V)


def hidden_backward(dhidden_BTD: np.ndarray, cache: tuple) -> Weights:
    """Return the gradients of the main model without its head, by released name."""
    tokens_BT, caches, norm, V = cache
    dx_BTD, dnorm = rms_norm_backward(dhidden_BTD, norm)
    grads = {"model.norm.weight": dnorm}
    for i, layer_cache in reversed(list(enumerate(caches))):
        dx_BTD, dlayer = layer_backward(dx_BTD, layer_cache)
        grads |= {f"model.layers.{i}.{name}": grad for name, grad in dlayer.items()}
    return {**grads, "model.embed_tokens.weight": scatter_rows(dx_BTD, tokens_BT, V)}


def make_depths(model: Model, alpha: float, seen: list[LayerCache]) -> list[Depth]:
    """Hand chapter 04 the MTP modules, each with its layer as the block; `seen` collects the layers' caches."""

    def block_of(index: int):
        layer = view_layer(model, index)

        def block_forward(x_BSD: np.ndarray, position_BS: np.ndarray):
            y_BSD, cache = layer_forward(x_BSD, layer, model.config, position_BS, alpha=alpha)
            seen.append(cache)
            return y_BSD, cache

        return block_forward

    first = model.config.num_hidden_layers
    depths = range(1, model.config.num_nextn_predict_layers + 1)
    return [Depth(view_mtp(model, k), block_of(first + k - 1), layer_backward) for k in depths]


def loss_forward(
    model: Model,
    tokens_BS: np.ndarray,
    document_BS: np.ndarray | None = None,
    *,
    mtp_weight: float = 0.3,
    alpha: float = 1e-4,
) -> tuple[Losses, tuple]:
    """Compute the pre-training loss of packed windows.

        L = L_main + lambda / depths sum_k L_k + alpha sum_layers sum_i f_i P_i

    Args:
        tokens_BS: windows of S tokens, of which the last is only a target.
        document_BS: a number for each token's document; rows whose target lies in another one do not count.
        mtp_weight: lambda, 0.3 and later 0.1 in V3. alpha: of the sequence-wise balance loss, 1e-4 in V3.
    """
    hidden_BTD, main_cache = hidden_forward(model, tokens_BS[:, :-1], alpha=alpha)
    embed_VD, head_VD = model.weights["model.embed_tokens.weight"], model.weights["lm_head.weight"]
    main, head_cache = head_loss_forward(hidden_BTD, head_VD, depth_targets(tokens_BS, 0, document_BS))
    seen = list(main_cache[1])
    depths = make_depths(model, alpha, seen)
    mtp, ahead, mtp_cache = mtp_loss_forward(
        depths, embed_VD, head_VD, hidden_BTD, tokens_BS, document_BS, mtp_weight
    )  # V3 Fig. 3
    balance = sum(cache.balance_loss for cache in seen)
    loads = {i: cache.load_E for i, cache in enumerate(seen) if cache.load_E is not None}
    losses = Losses(main + mtp + balance, main, ahead, balance, loads)
    return losses, (model.config, main_cache, head_cache, mtp_cache)


def loss_backward(cache: tuple) -> Weights:
    """Return the gradient of the total loss by every trained tensor, under the names of the weights.

    Embedding and head are used by the main model and by every depth, so theirs are sums.
    """
    config, main_cache, head_cache, mtp_cache = cache
    ahead = mtp_loss_backward(1.0, mtp_cache)
    dhidden_BTD, dhead_VD = head_loss_backward(1.0, head_cache)
    grads = hidden_backward(dhidden_BTD + ahead.dhidden_BTD, main_cache)
    grads["model.embed_tokens.weight"] += ahead.dembed_tokens_VD
    grads["lm_head.weight"] = dhead_VD + ahead.dlm_head_VD
    for k, (dmodule, dlayer) in enumerate(zip(ahead.dweights, ahead.dblocks)):
        prefix = f"model.layers.{config.num_hidden_layers + k}"
        grads |= {f"{prefix}.{name}": grad for name, grad in dlayer.items()}
        for name, grad in vars(dmodule).items():
            grads[f"{prefix}.{name.replace('shared_head_norm', 'shared_head.norm')}.weight"] = grad
    return grads


def predict_logits(model: Model, tokens_BS: np.ndarray) -> list[np.ndarray]:
    """Return logits [B, S, V] of the main model, then [B, S - k, V] of each depth k: row i predicts token i + k + 1."""
    hidden_BSD, _ = hidden_forward(model, tokens_BS)
    embed_VD, head_VD = model.weights["model.embed_tokens.weight"], model.weights["lm_head.weight"]
    logits = [hidden_BSD @ head_VD.T]
    for k, depth in enumerate(make_depths(model, 0.0, []), 1):
        rows = index_rows(tokens_BS.shape[1] + 1, k)
        embedding_BSD = embed_VD[tokens_BS[:, rows.read]]
        at_BS = np.broadcast_to(rows.position, embedding_BSD.shape[:2])
        hidden_BSD, _ = mtp_forward(depth.weights, hidden_BSD[:, :-1], embedding_BSD, at_BS, depth.block_forward)
        logits.append(hidden_BSD @ head_VD.T)
    return logits


def main() -> None:
    """Follow a window through a tiny model, print the parts of its loss, check gradients by nudging whole tensors."""
    rng = np.random.default_rng(0)
    model = init_model(rng, Config(initializer_range=0.2))
    tokens_BS = rng.integers(0, 96, (2, 9))
    print("2 windows of 9 tokens: 8 rows each, 7 of them with a second target")
    x = model.weights["model.embed_tokens.weight"][tokens_BS[:, :-1]]
    for i in range(model.config.num_hidden_layers):
        x, cache = layer_forward(x, view_layer(model, i), model.config)
        kind = "dense" if cache.load_E is None else f"loads {cache.load_E}"
        print(f"  after layer {i}: {x.shape}, root mean square {np.sqrt((x * x).mean()):.2f}, {kind}")
    losses, cache = loss_forward(model, tokens_BS, alpha=0.01)
    main_loss, ahead, balance = losses.main, losses.ahead[0], losses.balance
    print(f"main {main_loss:.4f} + 0.3 * ahead {ahead:.4f} + balance {balance:.4f} = {losses.total:.4f}")

    print("gradient check: central difference along a random nudge / analytic")
    grads = loss_backward(cache)
    for name in ("model.embed_tokens.weight", "model.layers.0.self_attn.kv_b_proj.weight", "lm_head.weight",
                 "model.layers.1.mlp.gate.weight", "model.layers.2.mlp.experts.up_proj.weight",
                 "model.layers.3.eh_proj.weight"):  # fmt: skip
        array, sides = model.weights[name], []
        nudge = 1e-6 * rng.standard_normal(array.shape)
        for step in (nudge, -2 * nudge, nudge):
            array += step
            sides.append(loss_forward(model, tokens_BS, alpha=0.01)[0].total)
        print(f"  {name:<46} {(sides[0] - sides[1]) / 2 / (grads[name] * nudge).sum():.8f}")


if __name__ == "__main__":
    main()
