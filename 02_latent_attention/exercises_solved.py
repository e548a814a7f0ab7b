"""The chapter's own answers to exercises.py."""

import numpy as np
from cache_size import cache_bytes_per_token
from decoupled_rope import normalize_latent_forward
from rotary_embedding import rotate_pairs_forward
from yarn import rotary_frequencies


def mask_with_past(n_queries: int, n_keys: int) -> np.ndarray:
    """Compare every key's number with the number of the query."""
    return np.arange(n_keys) <= np.arange(n_keys - n_queries, n_keys)[:, None]


def rotate_neighbours(x_SR: np.ndarray, angles_SP: np.ndarray) -> np.ndarray:
    """The chapter's own rotation."""
    return rotate_pairs_forward(x_SR, angles_SP)[0]


def compress_hidden(
    x_SD: np.ndarray, kv_a_proj_with_mqa: np.ndarray, kv_a_layernorm: np.ndarray, angles_SP: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One product, cut in two; the first part is normed, the second turned."""
    raw_latent_SC, raw_rope_SR = np.split(x_SD @ kv_a_proj_with_mqa.T, [len(kv_a_layernorm)], axis=-1)
    return normalize_latent_forward(raw_latent_SC, kv_a_layernorm, 1e-6)[0], rotate_neighbours(raw_rope_SR, angles_SP)


def score_absorbed(
    q_nope_HK: np.ndarray, q_rope_HR: np.ndarray, latent_TC: np.ndarray, k_rope_TR: np.ndarray, w_uk_HKC: np.ndarray
) -> np.ndarray:
    """Carry the query to the latent, add the rotary part, scale once by the joint head width."""
    q_latent_HC = np.einsum("hk,hkc->hc", q_nope_HK, w_uk_HKC)
    width = q_nope_HK.shape[-1] + q_rope_HR.shape[-1]
    return (q_latent_HC @ latent_TC.T + q_rope_HR @ k_rope_TR.T) * width**-0.5


def stretch_frequencies(
    frequencies_P: np.ndarray, factor: float, original_length: int, beta_fast: float, beta_slow: float, theta: float
) -> np.ndarray:
    """The chapter's own frequencies."""
    scaling = {
        "factor": factor,
        "original_max_position_embeddings": original_length,
        "beta_fast": beta_fast,
        "beta_slow": beta_slow,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    }
    return rotary_frequencies(2 * len(frequencies_P), theta, scaling)


def cache_bytes(config: dict, bytes_per_value: int = 2) -> int:
    """Latent and rotary key, in every layer."""
    return int(cache_bytes_per_token(config, bytes_per_value))
