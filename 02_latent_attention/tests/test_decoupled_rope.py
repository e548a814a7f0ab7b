"""The released layer: what is shared, what is normed, what is turned, and what one scale covers."""

from dataclasses import replace

import numpy as np
import pytest
from decoupled_rope import (
    MLAConfig,
    MLAWeights,
    decoupled_attention_backward,
    decoupled_attention_forward,
    normalize_latent_backward,
    normalize_latent_forward,
    split_scores,
    weight_shapes,
)
from kv_cache import TokenCache
from yarn import V3_SCALING, rotary_frequencies

B, S = 2, 5
CONFIG = MLAConfig(
    hidden_size=11,
    num_attention_heads=3,
    kv_lora_rank=7,
    qk_nope_head_dim=5,
    qk_rope_head_dim=4,
    v_head_dim=13,
    q_lora_rank=6,
)
PLAIN_QUERY = replace(CONFIG, q_lora_rank=None)
EXTENDED = replace(CONFIG, rope_scaling={**V3_SCALING, "original_max_position_embeddings": 64})
TINY = MLAConfig(1, 1, kv_lora_rank=1, qk_nope_head_dim=1, qk_rope_head_dim=2, v_head_dim=1, q_lora_rank=1)
SMALL = MLAConfig(5, 2, kv_lora_rank=3, qk_nope_head_dim=3, qk_rope_head_dim=4, v_head_dim=1, q_lora_rank=2)


def draw(rng, config, B=B, S=S):
    """Weights whose norms are not 1, hidden states, and a gradient from above."""
    weights = MLAWeights.init(rng, config)
    norms = {n: 1 + 0.3 * rng.standard_normal(a.shape) for n, a in weights.arrays().items() if n.endswith("layernorm")}
    shape = (B, S, config.hidden_size)
    return replace(weights, **norms), rng.standard_normal(shape), rng.standard_normal(shape)


@pytest.mark.parametrize(
    "config", [SMALL, replace(SMALL, q_lora_rank=None), replace(SMALL, rope_scaling=V3_SCALING), TINY]
)
def test_gradients_agree_with_central_differences(config, rng, check_gradients):
    weights, x, dy = draw(rng, config, 2, 3)
    if config is TINY:  # a latent of width 1 is normed to a sign: enlarge eps so that its gradient is not just rounding
        config = replace(config, rms_norm_eps=0.5)
    dx, dweights = decoupled_attention_backward(dy, decoupled_attention_forward(x, weights, config)[1])
    check_gradients(
        lambda: float((decoupled_attention_forward(x, weights, config)[0] * dy).sum()),
        {"x": x, **weights.arrays()},
        {"x": dx, **dweights.arrays()},
    )


def test_gradients_of_the_latent_norm(rng, check_gradients):
    x, g, dy = rng.standard_normal((2, 3, 5)), rng.standard_normal(5), rng.standard_normal((2, 3, 5))
    dx, dg = normalize_latent_backward(dy, normalize_latent_forward(x, g, 0.1)[1])
    check_gradients(
        lambda: float((normalize_latent_forward(x, g, 0.1)[0] * dy).sum()), {"x": x, "g": g}, {"x": dx, "g": dg}
    )


def reference(x_SD, w, c, positions, sharpness=1.0):
    """One sequence, written from the equations, head by head and token by token."""

    def norm(v, g):
        return g * v / np.sqrt(np.mean(v * v) + c.rms_norm_eps)

    def turn(v, position):
        z = v[0::2] + 1j * v[1::2]
        z = z * np.exp(1j * position * rotary_frequencies(c.qk_rope_head_dim, c.rope_theta, c.rope_scaling))
        return np.stack([z.real, z.imag], axis=-1).ravel()

    K, R, U, C = c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim, c.kv_lora_rank
    latents, ropes, outputs = [], [], []
    for h, m in zip(x_SD, positions):
        a = w.kv_a_proj_with_mqa @ h
        latents.append(norm(a[:C], w.kv_a_layernorm))  # V3 Eq. (1)
        ropes.append(turn(a[C:], m))  # V3 Eq. (3): one key, from the hidden state, not normed
        q = w.q_proj @ h if c.q_lora_rank is None else w.q_b_proj @ norm(w.q_a_proj @ h, w.q_a_layernorm)
        # V3 Eq. (6), V3 Eq. (7), V3 Eq. (8), V3 Eq. (2), V3 Eq. (5)
        heads = []
        for i in range(c.num_attention_heads):
            q_i, kv_i = q[i * (K + R) : (i + 1) * (K + R)], w.kv_b_proj[i * (K + U) : (i + 1) * (K + U)]
            q_i = np.concatenate([q_i[:K], turn(q_i[K:], m)])  # V3 Eq. (9)
            keys = [np.concatenate([kv_i[:K] @ latent, rope]) for latent, rope in zip(latents, ropes)]  # V3 Eq. (4)
            score = sharpness * np.array([q_i @ k for k in keys]) / np.sqrt(K + R)
            p = np.exp(score) / np.exp(score).sum()
            heads.append(sum(p_j * (kv_i[K:] @ latent) for p_j, latent in zip(p, latents)))  # V3 Eq. (10)
        outputs.append(w.o_proj @ np.concatenate(heads))  # V3 Eq. (11)
    return np.array(outputs)


@pytest.mark.parametrize("config", [CONFIG, PLAIN_QUERY, TINY])
def test_it_equals_the_equations_written_out_token_by_token(config, rng):
    weights, x, _ = draw(rng, config)
    y, _ = decoupled_attention_forward(x, weights, config)
    want = np.stack([reference(x[b], weights, config, range(S)) for b in range(B)])
    np.testing.assert_allclose(y, want, rtol=0, atol=1e-12)


def test_it_equals_the_equations_with_an_extended_context(rng):
    weights, x, _ = draw(rng, EXTENDED)
    y, _ = decoupled_attention_forward(x, weights, EXTENDED)
    sharpness = (0.1 * np.log(40) + 1) ** 2  # on the whole score; cos and sin keep their size
    want = np.stack([reference(x[b], weights, EXTENDED, range(S), sharpness) for b in range(B)])
    np.testing.assert_allclose(y, want, rtol=0, atol=1e-12)


def test_shifting_every_position_changes_nothing(rng):
    weights, x, _ = draw(rng, CONFIG)
    at_zero, _ = decoupled_attention_forward(x, weights, CONFIG)
    shifted, _ = decoupled_attention_forward(x, weights, CONFIG, positions=np.arange(S) + 1000)
    np.testing.assert_allclose(shifted, at_zero, rtol=0, atol=1e-11)
    stretched, _ = decoupled_attention_forward(x, weights, CONFIG, positions=3 * np.arange(S))
    assert np.abs(stretched - at_zero).max() > 1e-3


def test_each_sequence_may_have_its_own_positions(rng):
    weights, x, _ = draw(rng, CONFIG)
    positions = np.array([np.arange(S), [0, 2, 3, 11, 12]])
    y, _ = decoupled_attention_forward(x, weights, CONFIG, positions)
    for b in range(B):
        want = reference(x[b], weights, CONFIG, positions[b])
        np.testing.assert_allclose(y[b], want, rtol=0, atol=1e-12)


def test_content_scores_know_no_positions(rng):
    weights, x, _ = draw(rng, CONFIG)
    here, there = (
        split_scores(decoupled_attention_forward(x, weights, CONFIG, positions)[1])
        for positions in (np.arange(S), 7 * np.arange(S))
    )
    assert np.array_equal(here[0], there[0])
    assert not np.allclose(here[1], there[1])


def test_one_scale_covers_content_and_rope_together(rng):
    for config, scale in [(CONFIG, 9**-0.5), (EXTENDED, 9**-0.5 * (0.1 * np.log(40) + 1) ** 2)]:
        weights, x, _ = draw(rng, config)
        _, cache = decoupled_attention_forward(x, weights, config)
        (q, k, *_), content, rope = cache[-2], *split_scores(cache)
        np.testing.assert_allclose(content + rope, scale * q @ k.swapaxes(-1, -2), rtol=0, atol=1e-13)
        assert np.isclose(config.scale, scale, rtol=1e-14)


def test_all_heads_read_the_same_rope_key_and_its_size_is_d_by_d_r(rng):
    weights, x, _ = draw(rng, CONFIG)
    assert weights.kv_a_proj_with_mqa[CONFIG.kv_lora_rank :].shape == (CONFIG.qk_rope_head_dim, CONFIG.hidden_size)
    _, cache = decoupled_attention_forward(x, weights, CONFIG)
    k_rope = cache[-2][1][..., CONFIG.qk_nope_head_dim :]
    assert (k_rope == k_rope[:, :1]).all()


def test_the_rope_key_is_neither_normed_nor_taken_from_the_latent(rng):
    """Twice the hidden state: the normed latent stays, the rope key doubles; without latent rows it still stands."""
    weights, x, _ = draw(rng, replace(CONFIG, rms_norm_eps=1e-300))
    config, past = replace(CONFIG, rms_norm_eps=1e-300), [TokenCache(S), TokenCache(S), TokenCache(S)]
    decoupled_attention_forward(x, weights, config, past=past[0])
    decoupled_attention_forward(2 * x, weights, config, past=past[1])
    no_latent = replace(weights, kv_a_proj_with_mqa=weights.kv_a_proj_with_mqa.copy())
    no_latent.kv_a_proj_with_mqa[: config.kv_lora_rank] *= 1e-3
    decoupled_attention_forward(x, no_latent, config, past=past[2])
    latent, rope = zip(*(p.rooms for p in past))
    np.testing.assert_allclose(latent[1], latent[0], rtol=1e-12)
    np.testing.assert_allclose(rope[1], 2 * rope[0], rtol=1e-12)
    np.testing.assert_allclose(rope[2], rope[0], rtol=1e-12)


@pytest.mark.parametrize("config", [CONFIG, EXTENDED])
def test_every_split_into_two_chunks_equals_one_shot(config, rng):
    weights, x, _ = draw(rng, config)
    whole, _ = decoupled_attention_forward(x, weights, config)
    for cut in range(1, S):
        past = TokenCache(S)
        chunks = [decoupled_attention_forward(p, weights, config, past=past)[0] for p in np.split(x, [cut], axis=1)]
        np.testing.assert_allclose(np.concatenate(chunks, axis=1), whole, rtol=0, atol=1e-12)


def test_a_change_of_token_t_leaves_everything_before_t_unchanged_with_a_cache(rng):
    weights, x, _ = draw(rng, CONFIG)
    outputs = []
    for bump in (0.0, 1.0):
        changed, past = x.copy(), TokenCache(S)
        changed[:, 4] += bump
        decoupled_attention_forward(changed[:, :2], weights, CONFIG, past=past)
        outputs.append(decoupled_attention_forward(changed[:, 2:], weights, CONFIG, past=past)[0])
    assert np.array_equal(outputs[0][:, :2], outputs[1][:, :2])


def test_float32_stays_float32(rng):
    weights, x, dy = draw(rng, EXTENDED)
    single = MLAWeights(**{n: a.astype("f4") for n, a in weights.arrays().items()})
    y, cache = decoupled_attention_forward(x.astype("f4"), single, EXTENDED, past=TokenCache(S))
    dx, dweights = decoupled_attention_backward(dy.astype("f4"), cache)
    assert {y.dtype, dx.dtype, *(a.dtype for a in dweights.arrays().values())} == {np.dtype("f4")}


def test_bad_configs_and_positions_are_refused_with_the_mend(rng):
    with pytest.raises(ValueError, match=r"qk_rope_head_dim=5 .* use an even number"):
        replace(CONFIG, qk_rope_head_dim=5)
    with pytest.raises(ValueError, match="kv_lora_rank=0; use 1 or more"):
        replace(CONFIG, kv_lora_rank=0)
    with pytest.raises(ValueError, match="type 'linear'"):
        replace(CONFIG, rope_scaling={**V3_SCALING, "type": "linear"})
    weights, x, _ = draw(rng, CONFIG)
    with pytest.raises(ValueError, match=r"positions of shape \(4,\) for 2 sequences of 5"):
        decoupled_attention_forward(x, weights, CONFIG, positions=np.arange(4))
    with pytest.raises(ValueError, match=r"expected \[B, S, 11\]"):
        decoupled_attention_forward(x[..., :3], weights, CONFIG)


def test_weights_that_do_not_fit_the_config_are_named_with_both_shapes(rng):
    weights, x, _ = draw(rng, CONFIG)
    with pytest.raises(ValueError, match=r"kv_b_proj is \(54, 7\), expected \(36, 7\); o_proj is \(11, 39\)"):
        decoupled_attention_forward(x, weights, replace(CONFIG, v_head_dim=7))
    with pytest.raises(
        ValueError, match=r"q_a_proj is \(6, 11\), expected none; .* q_proj is missing, expected \(27, 11\)"
    ):
        decoupled_attention_forward(x, weights, PLAIN_QUERY)


def test_the_shapes_of_the_released_checkpoint():
    v3 = MLAConfig(
        7168, 128, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, q_lora_rank=1536
    )
    shapes = weight_shapes(v3)
    assert shapes["kv_a_proj_with_mqa"] == (576, 7168)
    assert shapes["kv_b_proj"] == (32768, 512)
    assert shapes["q_b_proj"] == (24576, 1536)
    assert shapes["o_proj"] == (7168, 16384)
    assert sum(int(np.prod(s)) for s in shapes.values()) == 187_107_328
