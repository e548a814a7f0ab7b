"""The answers to exercises.py, each with its reason; read them after your own attempt.

They use NumPy and each other, not the chapter's modules: what you see is all there is.
"""

import json
import struct
from collections.abc import Callable

import numpy as np


def run_layer(x_BSD: np.ndarray, norm_1, attention, norm_2, feed_forward) -> np.ndarray:
    """Two branches, each on a normed copy of the stream as it is then, each added: nothing replaces the stream."""
    x_BSD = x_BSD + attention(norm_1(x_BSD))
    return x_BSD + feed_forward(norm_2(x_BSD))


def pass_layer_back(dy_BSD: np.ndarray, norm_1, attention, norm_2, feed_forward) -> np.ndarray:
    """Last addition first. At each, the gradient goes straight on and through the branch, and both add up."""
    da_BSD = dy_BSD + norm_2(feed_forward(dy_BSD))
    return da_BSD + norm_1(attention(da_BSD))


def total_loss(main: float, ahead: list[float], balances: list[float], mtp_weight: float) -> float:
    """The depths share one weight, so that a second one does not pull twice as hard; the balances just add."""
    return main + mtp_weight * sum(ahead) / max(len(ahead), 1) + sum(balances)


def _add_rows(dx: np.ndarray, tokens: np.ndarray, V: int) -> np.ndarray:
    """The way back of a look-up: a row that was read at several places gets the sum."""
    dembed_VD = np.zeros((V, dx.shape[1]))
    np.add.at(dembed_VD, tokens, dx)
    return dembed_VD


def whole_backward(
    dmain_TV: np.ndarray,
    dahead: np.ndarray,
    hidden_TD: np.ndarray,
    further: np.ndarray,
    token_S: np.ndarray,
    lm_head_VD: np.ndarray,
    main_back: Callable,
    module_back: Callable,
) -> tuple[np.ndarray, np.ndarray]:
    """The module first: what it sends into the hidden rows must be there before the main model goes back.

    Used twice forward, added backward: once for the hidden rows, once for the head, once for the embedding.
    """
    dhidden, dwords = module_back(dahead @ lm_head_VD)
    dhidden_TD = dmain_TV @ lm_head_VD
    dhidden_TD[:-1] += dhidden  # the module had left out the last row
    V = len(lm_head_VD)
    dembed_VD = _add_rows(main_back(dhidden_TD), token_S[:-1], V) + _add_rows(dwords, token_S[1:-1], V)
    return dembed_VD, dmain_TV.T @ hidden_TD + dahead.T @ further


def count_layer(config: dict, index: int) -> int:
    """The parts list of `architecture`, multiplied out. Every norm is a vector, every expert three matrices."""
    D, H, E, F = (
        config[k] for k in ("hidden_size", "num_attention_heads", "n_routed_experts", "moe_intermediate_size")
    )
    K, R, U = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    Q, C = config["q_lora_rank"], config["kv_lora_rank"]
    n = Q * D + Q + H * (K + R) * Q + (C + R) * D + C + H * (K + U) * C + D * H * U
    n += 2 * D  # the two norms in front of the branches
    if index < config["first_k_dense_replace"]:
        n += 3 * D * config["intermediate_size"]
    else:
        n += E * D + E + 3 * D * F * (E + config["n_shared_experts"])
    if index >= config["num_hidden_layers"]:
        n += 3 * D + 2 * D * D  # enorm, hnorm, shared_head.norm; eh_proj
    return n


def clip_gradients(grads: dict[str, np.ndarray], longest: float) -> dict[str, np.ndarray]:
    """One factor for all: the arrow becomes shorter and keeps its direction. A short one stays as it is."""
    length = np.sqrt(sum((g * g).sum() for g in grads.values()))
    return {name: g * min(1.0, longest / length) for name, g in grads.items()}


def turn_thermostats(
    biases: dict[int, np.ndarray], loads: dict[int, np.ndarray], speed: float
) -> dict[int, np.ndarray]:
    """In place: the layer looks at this very array. A new one in the dictionary would never be read."""
    for i, load_E in loads.items():
        biases[i] += speed * np.sign(load_E.mean() - load_E)
    return biases


def settle_drafts(drafts: list[int], own: list[int]) -> list[int]:
    """As long as drafts are what the model says itself, its next word stands on a true text; the first that is not
    ends it, and the model's own word takes its place."""
    settled = [own[0]]
    for draft, after in zip(drafts, own[1:]):
        if draft != settled[-1]:
            break
        settled.append(after)
    return settled


def read_tensor(raw: bytes, name: str) -> np.ndarray:
    """8 bytes with the header's length, the header, the numbers; offsets count from the first number.

    BF16 is the upper half of a float32: put 16 zero bits behind it.
    """
    (length,) = struct.unpack("<Q", raw[:8])
    entry = json.loads(raw[8 : 8 + length])[name]
    start, end = (8 + length + offset for offset in entry["data_offsets"])
    if entry["dtype"] == "F32":
        return np.frombuffer(raw[start:end], "<f4").reshape(entry["shape"])
    upper = np.frombuffer(raw[start:end], "<u2").astype(np.uint32)
    return (upper << 16).view(np.float32).reshape(entry["shape"])


def name_mtp_tensors(config: dict) -> list[str]:
    """What only an MTP layer has, copies included."""
    names = ("enorm", "hnorm", "eh_proj", "shared_head.norm", "embed_tokens", "shared_head.head")
    return [f"model.layers.{config['num_hidden_layers']}.{name}.weight" for name in names]


def _norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return weight * x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def _surprise(logits: np.ndarray, target: np.ndarray) -> float:
    """Minus log probability of the targets, added up; the largest logit is taken out so that nothing overflows."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_prob = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return float(-log_prob[np.arange(len(target)), target].sum())


def model_from_an_empty_file(
    token_S: np.ndarray, weights: dict[str, np.ndarray], mills: list[tuple[Callable, Callable]], mtp_weight: float
) -> tuple[np.ndarray, float]:
    """The river, its mouth, and one more layer that is told the next token. Both losses are divided by T."""
    embed_VD, head_VD, T = weights["model.embed_tokens.weight"], weights["lm_head.weight"], len(token_S) - 1

    def layer(x: np.ndarray, i: int) -> np.ndarray:
        first, second = (weights[f"model.layers.{i}.{n}_layernorm.weight"] for n in ("input", "post_attention"))
        return run_layer(x, lambda x: _norm(x, first), mills[i][0], lambda x: _norm(x, second), mills[i][1])

    x_TD, last = embed_VD[token_S[:-1]], len(mills) - 1
    for i in range(last):
        x_TD = layer(x_TD, i)
    hidden_TD = _norm(x_TD, weights["model.norm.weight"])
    logits_TV = hidden_TD @ head_VD.T
    enorm, hnorm, eh_proj, norm = (
        weights[f"model.layers.{last}.{n}.weight"] for n in ("enorm", "hnorm", "eh_proj", "shared_head.norm")
    )
    pair = np.concatenate([_norm(embed_VD[token_S[1:-1]], enorm), _norm(hidden_TD[:-1], hnorm)], axis=1)
    further = _norm(layer(pair @ eh_proj.T, last), norm)
    ahead = _surprise(further @ head_VD.T, token_S[2:])
    return logits_TV, (_surprise(logits_TV, token_S[1:]) + mtp_weight * ahead) / T
