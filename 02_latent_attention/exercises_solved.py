"""The answers to exercises.py, each with its reason; read them after your own attempt.

They use NumPy and each other, not the chapter's modules: what you see is all there is.
"""

import numpy as np


def mask_with_past(n_queries: int, n_keys: int) -> np.ndarray:
    """Query s is token T - S + s; compare every key's number with it. Equal is allowed: a token sees itself."""
    return np.arange(n_keys) <= np.arange(n_keys - n_queries, n_keys)[:, None]


def attention_backward(
    do_SU: np.ndarray, q_SK: np.ndarray, k_TK: np.ndarray, v_TU: np.ndarray, share_ST: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Backwards through o = share v, the softmax, and the scaled product.

    The subtracted mean is what keeps the shares' sum at 1: raising all scores of a query alike changes nothing.
    """
    scale = q_SK.shape[1] ** -0.5
    dshare_ST = do_SU @ v_TU.T
    dscore_ST = share_ST * (dshare_ST - (share_ST * dshare_ST).sum(axis=1, keepdims=True))
    return scale * dscore_ST @ k_TK, scale * dscore_ST.T @ q_SK, share_ST.T @ do_SU


def shared_key_backward(dk_HTK: np.ndarray, n_kv_heads: int) -> np.ndarray:
    """Heads that read one key each pull at it; their pulls add up. Neighbours share, so the group axis comes second."""
    H, T, K = dk_HTK.shape
    return dk_HTK.reshape(n_kv_heads, H // n_kv_heads, T, K).sum(axis=1)


def expand_latent_backward(
    dk_HTK: np.ndarray, dv_HTU: np.ndarray, latent_TC: np.ndarray, w_uk_HKC: np.ndarray, w_uv_HUC: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The latent is read by every head, as a key and as a value: 2H pulls, one sum."""
    dlatent_TC = np.einsum("htk,hkc->tc", dk_HTK, w_uk_HKC) + np.einsum("htu,huc->tc", dv_HTU, w_uv_HUC)
    return (
        dlatent_TC,
        np.einsum("htk,tc->hkc", dk_HTK, latent_TC),
        np.einsum("htu,tc->huc", dv_HTU, latent_TC),
    )


def rotate_neighbours(x_SR: np.ndarray, angles_SP: np.ndarray) -> np.ndarray:
    """Both results are computed from the old a and b, then written: no half-turned pair is ever read."""
    a_SP, b_SP, cos_SP, sin_SP = x_SR[:, 0::2], x_SR[:, 1::2], np.cos(angles_SP), np.sin(angles_SP)
    y_SR = np.empty_like(x_SR)
    y_SR[:, 0::2], y_SR[:, 1::2] = a_SP * cos_SP - b_SP * sin_SP, a_SP * sin_SP + b_SP * cos_SP
    return y_SR


def rotate_neighbours_backward(dy_SR: np.ndarray, angles_SP: np.ndarray) -> np.ndarray:
    """The transpose of a turn is the turn back."""
    return rotate_neighbours(dy_SR, -angles_SP)


def compress_hidden(
    x_SD: np.ndarray, kv_a_proj_with_mqa: np.ndarray, kv_a_layernorm: np.ndarray, angles_SP: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One product, cut in two; the first part is normed, the second turned."""
    c_SC, k_SR = np.split(x_SD @ kv_a_proj_with_mqa.T, [len(kv_a_layernorm)], axis=1)
    unit_SC = c_SC / np.sqrt(np.mean(c_SC**2, axis=1, keepdims=True) + 1e-6)
    return kv_a_layernorm * unit_SC, rotate_neighbours(k_SR, angles_SP)


def compress_hidden_backward(
    dlatent_SC: np.ndarray,
    dk_rope_SR: np.ndarray,
    x_SD: np.ndarray,
    kv_a_proj_with_mqa: np.ndarray,
    kv_a_layernorm: np.ndarray,
    angles_SP: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Norm and turn go back on their own, then the two halves lie side by side again, in the order of the rows.

    A norm forgets the length, so the part of the gradient along the unit vector does not get through.
    """
    c_SC = x_SD @ kv_a_proj_with_mqa[: len(kv_a_layernorm)].T
    inverse_S1 = 1 / np.sqrt(np.mean(c_SC**2, axis=1, keepdims=True) + 1e-6)
    unit_SC, dunit_SC = c_SC * inverse_S1, dlatent_SC * kv_a_layernorm
    dc_SC = inverse_S1 * (dunit_SC - unit_SC * np.mean(dunit_SC * unit_SC, axis=1, keepdims=True))
    draw_SX = np.concatenate([dc_SC, rotate_neighbours_backward(dk_rope_SR, angles_SP)], axis=1)
    return draw_SX @ kv_a_proj_with_mqa, draw_SX.T @ x_SD, (dlatent_SC * unit_SC).sum(axis=0)


def score_absorbed(
    q_nope_HK: np.ndarray, q_rope_HR: np.ndarray, latent_TC: np.ndarray, k_rope_TR: np.ndarray, w_uk_HKC: np.ndarray
) -> np.ndarray:
    """Carry the query to the latent, add the rotary part, scale once by the joint head width: the scores are the same
    numbers as with keys, and so is their scale."""
    question_HC = np.einsum("hk,hkc->hc", q_nope_HK, w_uk_HKC)
    width = q_nope_HK.shape[1] + q_rope_HR.shape[1]
    return (question_HC @ latent_TC.T + q_rope_HR @ k_rope_TR.T) * width**-0.5


def score_absorbed_backward(
    dscore_HT: np.ndarray, q_nope_HK: np.ndarray, latent_TC: np.ndarray, w_uk_HKC: np.ndarray, R: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A product of three factors: each gets the other two. Every head reads the latents, hence the sum over h."""
    dscaled_HT = dscore_HT * (q_nope_HK.shape[1] + R) ** -0.5
    question_HC, dquestion_HC = np.einsum("hk,hkc->hc", q_nope_HK, w_uk_HKC), dscaled_HT @ latent_TC
    return (
        np.einsum("hc,hkc->hk", dquestion_HC, w_uk_HKC),
        dscaled_HT.T @ question_HC,
        np.einsum("hk,hc->hkc", q_nope_HK, dquestion_HC),
    )


def mla_backward(
    dy_SD: np.ndarray, x_SD: np.ndarray, weights: dict[str, np.ndarray], H: int, angles_SP: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Forward once more, head by head, for what the way back needs. What all heads read hears of all of them: the
    latent, the one rotary key, the query's latent. And x was read twice: by the queries and by the note."""
    S, R, w = len(x_SD), 2 * angles_SP.shape[1], weights
    latent_SC, tag_SR = compress_hidden(x_SD, w["kv_a_proj_with_mqa"], w["kv_a_layernorm"], angles_SP)
    raw_SQ = x_SD @ w["q_a_proj"].T
    size_S1 = np.sqrt(np.mean(raw_SQ**2, axis=1, keepdims=True) + 1e-6)
    unit_SQ, norm_Q = raw_SQ / size_S1, w["q_a_layernorm"]
    inner_SQ, do_SX = norm_Q * unit_SQ, dy_SD @ w["o_proj"]
    found, dq_b, dkv_b = [], [], []
    dinner_SQ, dlatent_SC, dtag_SR = np.zeros_like(inner_SQ), np.zeros_like(latent_SC), np.zeros_like(tag_SR)
    parts = np.split(w["q_b_proj"], H), np.split(w["kv_b_proj"], H), np.split(do_SX, H, axis=1)
    for q_proj_XQ, kv_proj_XC, do_SU in zip(*parts):
        K = len(q_proj_XQ) - R
        q_SX, kv_SX = inner_SQ @ q_proj_XQ.T, latent_SC @ kv_proj_XC.T
        q_SX = np.concatenate([q_SX[:, :K], rotate_neighbours(q_SX[:, K:], angles_SP)], axis=1)
        k_SX, v_SU = np.concatenate([kv_SX[:, :K], tag_SR], axis=1), kv_SX[:, K:]
        score_ST = np.where(mask_with_past(S, S), q_SX @ k_SX.T * (K + R) ** -0.5, -np.inf)
        share_ST = np.exp(score_ST - score_ST.max(axis=1, keepdims=True))
        share_ST /= share_ST.sum(axis=1, keepdims=True)
        found.append(share_ST @ v_SU)
        dq_SX, dk_SX, dv_SU = attention_backward(do_SU, q_SX, k_SX, v_SU, share_ST)
        dq_SX = np.concatenate([dq_SX[:, :K], rotate_neighbours_backward(dq_SX[:, K:], angles_SP)], axis=1)
        dkv_SX = np.concatenate([dk_SX[:, :K], dv_SU], axis=1)
        dinner_SQ += dq_SX @ q_proj_XQ
        dlatent_SC += dkv_SX @ kv_proj_XC
        dtag_SR += dk_SX[:, K:]
        dq_b.append(dq_SX.T @ inner_SQ)
        dkv_b.append(dkv_SX.T @ latent_SC)
    dunit_SQ = dinner_SQ * norm_Q
    draw_SQ = (dunit_SQ - unit_SQ * np.mean(dunit_SQ * unit_SQ, axis=1, keepdims=True)) / size_S1
    down = x_SD, w["kv_a_proj_with_mqa"], w["kv_a_layernorm"], angles_SP
    dx_SD, dkv_a, dkv_norm = compress_hidden_backward(dlatent_SC, dtag_SR, *down)
    grads = {"q_a_proj": draw_SQ.T @ x_SD, "q_a_layernorm": (dinner_SQ * unit_SQ).sum(axis=0)}
    grads |= {"q_b_proj": np.concatenate(dq_b), "kv_b_proj": np.concatenate(dkv_b)}
    grads |= {"kv_a_proj_with_mqa": dkv_a, "kv_a_layernorm": dkv_norm}
    grads |= {"o_proj": dy_SD.T @ np.concatenate(found, axis=1)}
    return dx_SD + draw_SQ @ w["q_a_proj"], grads


def stretch_frequencies(
    frequencies_P: np.ndarray, factor: float, original_length: int, beta_fast: float, beta_slow: float, theta: float
) -> np.ndarray:
    """Fast pairs stay, slow ones are divided, and between floor and ceiling of the two bounds runs a straight ramp."""
    R = 2 * len(frequencies_P)
    fast, slow = (R * np.log(original_length / (2 * np.pi * b)) / (2 * np.log(theta)) for b in (beta_fast, beta_slow))
    low, high = max(np.floor(fast), 0), min(np.ceil(slow), R - 1)
    ramp_P = np.clip((np.arange(R // 2) - low) / (high - low), 0, 1)
    return frequencies_P * (1 - ramp_P) + frequencies_P / factor * ramp_P


def cache_bytes(config: dict, bytes_per_value: int = 2) -> int:
    """Latent and rotary key, in every layer; no heads, and the latent once: it is key and value."""
    return (config["kv_lora_rank"] + config["qk_rope_head_dim"]) * config["num_hidden_layers"] * bytes_per_value


def mla_from_an_empty_file(x_SD: np.ndarray, weights: dict[str, np.ndarray], H: int, angles_SP: np.ndarray):
    """Eq. (1) to (11), head by head."""
    S, R = len(x_SD), 2 * angles_SP.shape[1]
    latent_SC, tag_SR = compress_hidden(x_SD, weights["kv_a_proj_with_mqa"], weights["kv_a_layernorm"], angles_SP)
    inner_SQ = x_SD @ weights["q_a_proj"].T
    inner_SQ = weights["q_a_layernorm"] * inner_SQ / np.sqrt(np.mean(inner_SQ**2, axis=1, keepdims=True) + 1e-6)
    found = []
    for q_proj_XQ, kv_proj_XC in zip(np.split(weights["q_b_proj"], H), np.split(weights["kv_b_proj"], H)):
        K = len(q_proj_XQ) - R
        q_SX, kv_SX = inner_SQ @ q_proj_XQ.T, latent_SC @ kv_proj_XC.T
        score_ST = q_SX[:, :K] @ kv_SX[:, :K].T + rotate_neighbours(q_SX[:, K:], angles_SP) @ tag_SR.T
        score_ST = np.where(mask_with_past(S, S), score_ST * (K + R) ** -0.5, -np.inf)
        share_ST = np.exp(score_ST - score_ST.max(axis=1, keepdims=True))
        found.append(share_ST / share_ST.sum(axis=1, keepdims=True) @ kv_SX[:, K:])
    return np.concatenate(found, axis=1) @ weights["o_proj"].T
