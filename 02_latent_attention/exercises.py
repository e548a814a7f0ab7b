"""Build multi-head latent attention, forward and backward, and have every step graded.

    make check CH=02            (or: python -m utils.exercises 02, from the root)

Fill in the bodies, in any order: an exercise that calls another one is graded with the chapter's own version as long
as yours is blank. Letters are those of NOTATION.md; there is one text, so no batch axis. Everything is float64 NumPy.
Hints, folded one by one: hints.md. Answers with their reasons: exercises_solved.py.
"""

import numpy as np


def mask_with_past(n_queries: int, n_keys: int) -> np.ndarray:
    """Return which keys each of the last `n_queries` of `n_keys` tokens may see: itself and everything before it.

    Returns: bool [S, T], True for "may see".
    Notebook: kv_cache.
    """
    raise NotImplementedError


def attention_backward(
    do_SU: np.ndarray, q_SK: np.ndarray, k_TK: np.ndarray, v_TU: np.ndarray, share_ST: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return dq, dk, dv of one head, where share = softmax of q k^T / sqrt(K) under a mask, and o = share v.

    Args: do is the gradient of o; share is what the forward pass kept.
    Returns: dq [S, K], dk [T, K], dv [T, U].
    Notebook: kv_cache.
    """
    raise NotImplementedError


def shared_key_backward(dk_HTK: np.ndarray, n_kv_heads: int) -> np.ndarray:
    """Return the gradient of the J keys that H heads read; head h read key h // (H / J).

    Args: dk, for every head, of the key that it saw.
    Returns: [J, T, K]. J = 1 is multi-query attention.
    Notebooks: multi_query_attention, grouped_query_attention.
    """
    raise NotImplementedError


def expand_latent_backward(
    dk_HTK: np.ndarray, dv_HTU: np.ndarray, latent_TC: np.ndarray, w_uk_HKC: np.ndarray, w_uv_HUC: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Go back through k_h = W_UK,h c and v_h = W_UV,h c.

    Returns: dlatent [T, C], dw_uk [H, K, C], dw_uv [H, U, C].
    Notebook: latent_attention.
    """
    raise NotImplementedError


def rotate_neighbours(x_SR: np.ndarray, angles_SP: np.ndarray) -> np.ndarray:
    """Turn the pairs (2i, 2i + 1) of each row counter-clockwise by its angle i, as the released weights expect.

    Args: x [S, R], angles [S, R / 2]. Returns: a new array [S, R], pairs where they were.
    Notebook: rotary_embedding; arXiv:2104.09864, Eq. (34).
    """
    raise NotImplementedError


def rotate_neighbours_backward(dy_SR: np.ndarray, angles_SP: np.ndarray) -> np.ndarray:
    """Return dx of y = rotate_neighbours(x, angles).

    Notebook: rotary_embedding.
    """
    raise NotImplementedError


def compress_hidden(
    x_SD: np.ndarray, kv_a_proj_with_mqa: np.ndarray, kv_a_layernorm: np.ndarray, angles_SP: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return what MLA caches for each token: the normed latent [S, C] and the one turned rotary key [S, R].

    Args: x [S, D], kv_a_proj_with_mqa [C + R, D], kv_a_layernorm [C], angles [S, R / 2]. RMSNorm has eps 1e-6.
    Notebook: decoupled_rope; arXiv:2412.19437, Eq. (1) and (3).
    """
    raise NotImplementedError


def compress_hidden_backward(
    dlatent_SC: np.ndarray,
    dk_rope_SR: np.ndarray,
    x_SD: np.ndarray,
    kv_a_proj_with_mqa: np.ndarray,
    kv_a_layernorm: np.ndarray,
    angles_SP: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Go back through compress_hidden, from the gradients of its two results.

    Returns: dx [S, D], dkv_a_proj_with_mqa [C + R, D], dkv_a_layernorm [C].
    Notebook: decoupled_rope.
    """
    raise NotImplementedError


def score_absorbed(
    q_nope_HK: np.ndarray, q_rope_HR: np.ndarray, latent_TC: np.ndarray, k_rope_TR: np.ndarray, w_uk_HKC: np.ndarray
) -> np.ndarray:
    """Score one token's H queries against T cached tokens without building a key; before the softmax.

    Returns: [H, T].
    Notebook: absorbed_attention; arXiv:2405.04434, Sec. 2.1.2.
    """
    raise NotImplementedError


def score_absorbed_backward(
    dscore_HT: np.ndarray, q_nope_HK: np.ndarray, latent_TC: np.ndarray, w_uk_HKC: np.ndarray, R: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Go back through the content part of score_absorbed.

    Args: R is the rotary width, which the scale needs.
    Returns: dq_nope [H, K], dlatent [T, C], dw_uk [H, K, C].
    Notebook: absorbed_attention.
    """
    raise NotImplementedError


def mla_backward(
    dy_SD: np.ndarray, x_SD: np.ndarray, weights: dict[str, np.ndarray], H: int, angles_SP: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Go back through the whole layer, from its input and weights alone; one text, no cache, no YaRN.

    Args: weights and angles as in mla_from_an_empty_file.
    Returns: dx [S, D], and the gradients under the same names.
    Notebook: decoupled_rope.
    """
    raise NotImplementedError


def stretch_frequencies(
    frequencies_P: np.ndarray, factor: float, original_length: int, beta_fast: float, beta_slow: float, theta: float
) -> np.ndarray:
    """Return the YaRN frequencies of the P pairs, with the ramp of the released code.

    Notebook: yarn; arXiv:2309.00071, but the ramp is linear in the number of the pair; V3's runs from 10 to 23.
    """
    raise NotImplementedError


def cache_bytes(config: dict, bytes_per_value: int = 2) -> int:
    """Return the bytes that a model with MLA keeps per token, all layers together.

    Args: config has num_hidden_layers, num_attention_heads, kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim and
    v_head_dim.
    Notebook: cache_size; arXiv:2505.09343 has V3's number.
    """
    raise NotImplementedError


def mla_from_an_empty_file(x_SD: np.ndarray, weights: dict[str, np.ndarray], H: int, angles_SP: np.ndarray):
    """Compute the whole layer for one text without a cache, from nothing but NumPy and these letters.

    Args:
        weights: the released names. kv_a_proj_with_mqa [C + R, D], kv_a_layernorm [C], kv_b_proj [H (K + U), C] (each
            head: K key rows, then U value rows), q_a_proj [Q, D], q_a_layernorm [Q], q_b_proj [H (K + R), Q] (each
            head: K content rows, then R rotary ones), o_proj [D, H U].
        angles: [S, R / 2], one row a token.
    Returns: [S, D].
    Source: arXiv:2412.19437, Eq. (1)-(11); no YaRN.
    """
    raise NotImplementedError
