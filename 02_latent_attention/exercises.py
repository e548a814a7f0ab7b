"""Write the six lines that make multi-head latent attention, and have them graded.

    make check CH=02            (or: python -m utils.exercises 02, from the root)

Fill in the bodies; the letters are those of NOTATION.md. The chapter's own answers are in exercises_solved.py.
"""

import numpy as np


def mask_with_past(n_queries: int, n_keys: int) -> np.ndarray:
    """Return which keys each of the last `n_queries` of `n_keys` tokens may see.

        visible[s, t] = t <= s + (T - S)

    Returns: bool [S, T].
    Source: kv_cache.py, attend_forward.

    Hint 1: query 0 is not token 0. How many tokens were there before it?
    Hint 2: token numbers of the queries are T - S, ..., T - 1.
    Hint 3: compare np.arange(T) with a column of those numbers.
    """
    raise NotImplementedError


def rotate_neighbours(x_SR: np.ndarray, angles_SP: np.ndarray) -> np.ndarray:
    """Turn the pairs (2i, 2i + 1) of each row by its angle i, as the released weights expect.

        (a, b) -> (a cos - b sin, a sin + b cos)

    Args: x [S, R], angles [S, R / 2]. Returns: [S, R], pairs where they were.
    Source: rotary_embedding.py; arXiv:2104.09864, Eq. (34).

    Hint 1: x[:, 0::2] are all the a, x[:, 1::2] all the b.
    Hint 2: write into an empty array at the same strides.
    Hint 3: or view (a, b) as a + ib and multiply by exp(i angle).
    """
    raise NotImplementedError


def compress_hidden(
    x_SD: np.ndarray, kv_a_proj_with_mqa: np.ndarray, kv_a_layernorm: np.ndarray, angles_SP: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return what MLA caches for each token: the normed latent [S, C] and the one turned rotary key [S, R].

        [c; k] = W h;   latent = RMSNorm(c) with eps 1e-6;   rope key = RoPE(k)

    Args: x [S, D], kv_a_proj_with_mqa [C + R, D], kv_a_layernorm [C], angles [S, R / 2]; call your rotate_neighbours.
    Source: arXiv:2412.19437, Eq. (1) and (3); decoupled_rope.py.

    Hint 1: one product gives both; cut it after the first C columns. C is the length of kv_a_layernorm.
    Hint 2: only one of the two parts is normed. Which one has a layernorm weight?
    Hint 3: RMSNorm(c) = weight * c / sqrt(mean(c * c) + eps), the mean over the C columns.
    """
    raise NotImplementedError


def score_absorbed(
    q_nope_HK: np.ndarray, q_rope_HR: np.ndarray, latent_TC: np.ndarray, k_rope_TR: np.ndarray, w_uk_HKC: np.ndarray
) -> np.ndarray:
    """Score one token's H queries against T cached tokens without building a key; before the softmax.

        score[h, t] = (W_UK,h^T q_nope,h . c_t + q_rope,h . k_rope,t) / sqrt(K + R)

    Returns: [H, T].
    Source: absorbed_attention.py; arXiv:2405.04434, Sec. 2.1.2.

    Hint 1: first carry each query over to the latent: [H, K] with [H, K, C] gives [H, C].
    Hint 2: np.einsum("hk,hkc->hc", ...).
    Hint 3: the scores are the same numbers as with keys of width K + R, so the scale is too.
    """
    raise NotImplementedError


def stretch_frequencies(
    frequencies_P: np.ndarray, factor: float, original_length: int, beta_fast: float, beta_slow: float, theta: float
) -> np.ndarray:
    """Return the YaRN frequencies of the P pairs.

        pair(turns) = R ln(L0 / (2 pi turns)) / (2 ln theta)
        low = floor pair(beta_fast);   high = ceil pair(beta_slow);   ramp = clip((i - low) / (high - low), 0, 1)
        f' = f (1 - ramp) + f / factor ramp

    Source: yarn.py; arXiv:2309.00071; for V3 low is 10 and high is 23.

    Hint 1: R = 2 P, and i counts pairs: 0 ... P - 1.
    Hint 2: math.floor and math.ceil; the fast bound is the smaller pair.
    Hint 3: the ramp is the share of f / factor, so the first pairs, with ramp 0, stay as they are.
    """
    raise NotImplementedError


def cache_bytes(config: dict, bytes_per_value: int = 2) -> int:
    """Return the bytes that a model with MLA keeps per token, all layers together.

    Args: config has num_hidden_layers, num_attention_heads, kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim and
    v_head_dim.
    Source: cache_size.py; arXiv:2505.09343 (V3: 70,272).

    Hint 1: two arrays are cached in each layer; see compress_hidden.
    Hint 2: neither has a head axis, and the latent is key and value at once.
    Hint 3: every layer has its own.
    """
    raise NotImplementedError
