"""Grade exercises.py: each check recognises the usual wrong answers and says what they mean."""

import numpy as np
from absorbed_attention import split_up_projection
from cache_size import V3
from decoupled_rope import (
    MLAConfig,
    MLAWeights,
    compress_tokens_backward,
    compress_tokens_forward,
    decoupled_attention_backward,
    decoupled_attention_forward,
    project_queries_backward,
)
from exercise_words_02 import expect_parts, expect_shape, same
from grouped_query_attention import share_heads_backward
from kv_cache import attend_backward, attend_forward, merge_heads, split_heads
from rotary_embedding import (
    half_split_order,
    inverse_frequencies,
    rope_angles,
    rotate_halves_forward,
    rotate_pairs_backward,
    rotate_pairs_forward,
)
from yarn import V3_SCALING, rotary_frequencies

V3_LENGTH = V3_SCALING["original_max_position_embeddings"]


def check_mask_with_past(answer) -> None:
    """A mask of the last S of T tokens."""
    S, T = 3, 7
    got = answer(S, T)
    expect_shape(got, (S, T), "your mask")
    want = np.arange(T) <= np.arange(S)[:, None] + T - S
    assert not same(got, np.tri(S, T, dtype=bool)), "your mask starts at key 0; the queries are the LAST S of T tokens"
    assert not same(got, ~want), "your mask is upside down: True must mean 'may see'"
    assert not same(got, np.arange(T) < np.arange(S)[:, None] + T - S), "a token must see itself: use <=, not <"
    future = np.asarray(got, dtype=bool) & ~want
    s, t = np.argwhere(future)[0] if future.any() else (0, 0)
    assert not future.any(), f"query {s} sees key {t}, which is its future"
    assert same(got, want), "some keys of the past are hidden: every query sees all tokens up to itself"
    assert same(answer(4, 4), np.tri(4, dtype=bool)), "without a past (S = T) the mask must be the lower triangle"


def check_attention_backward(answer) -> None:
    """Gradients of one head whose queries are the last of the keys."""
    rng = np.random.default_rng(5)
    q, k, v, do = (rng.standard_normal(s) for s in ((3, 5), (7, 5), (7, 2), (3, 2)))
    _, cache = attend_forward(q[None, None], k[None, None], v[None, None], 5**-0.5)
    share = cache[-1][0, 0]
    dq, dk, dv = (g[0, 0] for g in attend_backward(do[None, None], cache))
    dshare = do @ v.T
    flat, mean = share * dshare, share * (dshare - (share * dshare).mean(1, keepdims=True))
    got = answer(do.copy(), q.copy(), k.copy(), v.copy(), share.copy())
    usual = [
        ("dq", 5**-0.5 * flat @ k, "the softmax gives share * (dshare - sum(share * dshare)); you left the sum out"),
        (
            "dq",
            5**-0.5 * mean @ k,
            "subtract the SUM of share * dshare over the keys, not its mean: shares weigh it already",
        ),
        ("dq", 5**0.5 * dq, "the score was divided by sqrt(K), so its gradient is divided too: one factor is missing"),
        ("dk", 5**0.5 * dk, "dk carries the 1 / sqrt(K) of the score as well"),
        ("dv", do.sum(0) * np.ones((7, 1)), "each value gets do in proportion to its share: share^T do"),
    ]
    expect_parts(got, {"dq": dq, "dk": dk, "dv": dv}, usual)


def check_shared_key_backward(answer) -> None:
    """Sum over the heads of a group."""
    dk = np.random.default_rng(6).standard_normal((6, 5, 3))
    got, want = answer(dk.copy(), 2), share_heads_backward(dk[None], 3)[0]
    expect_shape(got, (2, 5, 3), "your answer")
    assert not same(got, want / 3), "you average; a shared key gets the SUM of what its readers want"
    assert not same(got, dk.reshape(3, 2, 5, 3).sum(0)), (
        "you sum heads 0 2 4 and 1 3 5; neighbours share: 0 1 2 and 3 4 5"
    )
    assert not same(got, dk[::3]), "you take one head of each group; all of them read the key"
    assert same(got, want), "wrong numbers: sum the gradients of the H / J neighbouring heads that read the same key"
    assert same(answer(dk.copy(), 1), dk.sum(0, keepdims=True)), "right for 2 keys, but not for multi-query, J = 1"


def check_expand_latent_backward(answer) -> None:
    """What 2 H readers want of one latent."""
    rng = np.random.default_rng(7)
    dk, dv, c, uk, uv = (rng.standard_normal(s) for s in ((2, 7, 3), (2, 7, 5), (7, 4), (2, 3, 4), (2, 5, 4)))
    key_part, value_part = np.einsum("htk,hkc->tc", dk, uk), np.einsum("htu,huc->tc", dv, uv)
    want = {
        "dlatent": key_part + value_part,
        "dw_uk": np.einsum("htk,tc->hkc", dk, c),
        "dw_uv": np.einsum("htu,tc->huc", dv, c),
    }
    usual = [
        ("dlatent", key_part, "you count the latent as a key only; it is the value too"),
        ("dlatent", value_part, "you count the latent as a value only; it is the key too"),
        (
            "dlatent",
            (key_part + value_part) / 2,
            "you average over the heads; what is shared forward is summed backward",
        ),
        ("dlatent", dk[0] @ uk[0] + dv[0] @ uv[0], "that is head 0 alone; every head reads the latent"),
    ]
    expect_parts(answer(dk.copy(), dv.copy(), c.copy(), uk.copy(), uv.copy()), want, usual)


def check_rotate_neighbours(answer) -> None:
    """A rotation of interleaved pairs."""
    rng = np.random.default_rng(0)
    x, angles = rng.standard_normal((5, 6)), rope_angles(np.arange(5), inverse_frequencies(6))
    kept = x.copy()
    got, want = answer(x, angles), rotate_pairs_forward(x, angles)[0]
    expect_shape(got, x.shape, "your answer")
    assert np.array_equal(x, kept), "you changed x in place; return a new array"
    assert not same(got, rotate_pairs_forward(x, -angles)[0]), "you turn the wrong way: (a cos - b sin, a sin + b cos)"
    halves = rotate_halves_forward(x, angles)[0]
    assert not same(got, halves), "you turn the pairs (i, i + R/2); the released weights pair neighbours (2i, 2i + 1)"
    moved = want[:, half_split_order(6)]
    assert not same(got, moved), "the values are right but moved into the half-split order; leave the pairs in place"
    lengths = np.allclose((np.asarray(got) ** 2).sum(-1), (x**2).sum(-1))
    assert lengths, "the length of the rows changed; a turn keeps it (did you overwrite a before b used it?)"
    assert same(got, want), "lengths are right, directions are not: pair i takes angle i of its own row"


def check_rotate_neighbours_backward(answer) -> None:
    """The turn back."""
    rng = np.random.default_rng(8)
    dy, angles = rng.standard_normal((5, 6)), rope_angles(np.arange(5), inverse_frequencies(6))
    got, want = answer(dy.copy(), angles), rotate_pairs_backward(dy, angles)
    expect_shape(got, dy.shape, "your answer")
    assert not same(got, rotate_pairs_forward(dy, angles)[0]), (
        "you turn forward again; the transpose of a turn turns BACK"
    )
    assert not same(got, rotate_halves_forward(dy, -angles)[0]), "back, but in halves; the pairs are neighbours"
    assert same(got, want), "wrong numbers: the same turn by the opposite angles"


def check_compress_hidden(answer) -> None:
    """The two cached vectors."""
    rng = np.random.default_rng(1)
    C, R, S, D = 5, 4, 3, 7
    x, weight, norm = rng.standard_normal((S, D)), rng.standard_normal((C + R, D)), 1 + rng.random(C)
    angles = rope_angles(np.arange(S) + 2, inverse_frequencies(R))
    latent, rope = answer(x, weight, norm, angles)
    raw = x @ weight.T
    unit = raw[:, :C] / np.sqrt(np.mean(raw[:, :C] ** 2, -1, keepdims=True) + 1e-6)
    if np.ndim(rope) == 3:
        raise AssertionError("your rope key has a head axis; the released one is a single key shared by all heads")
    expect_shape(latent, (S, C), "your latent")
    expect_shape(rope, (S, R), "your rope key")
    assert not same(latent, raw[:, :C]), "your latent is not normed; the cache holds RMSNorm(c)"
    assert not same(latent, unit), "your RMSNorm leaves out its weight kv_a_layernorm"
    joint = raw / np.sqrt(np.mean(raw**2, -1, keepdims=True) + 1e-6)
    assert not same(latent, norm * joint[:, :C]), "you normed over C + R columns; the mean is over C"
    assert not same(latent, norm * raw[:, R:] / np.sqrt(np.mean(raw[:, R:] ** 2, -1, keepdims=True) + 1e-6)), (
        "you took the latent from the last rows; in kv_a_proj_with_mqa the C latent rows come first"
    )
    assert same(latent, norm * unit), "your latent is wrong: weight * c / sqrt(mean(c * c) + 1e-6), the mean over C"
    want = rotate_pairs_forward(raw[:, C:], angles)[0]
    assert not same(rope, raw[:, C:]), "your rope key is not turned; the cache holds it after RoPE"
    alone = raw[:, C:] / np.sqrt(np.mean(raw[:, C:] ** 2, -1, keepdims=True) + 1e-6)
    for normed in (joint[:, C:], alone):
        assert not same(rope, rotate_pairs_forward(normed, angles)[0]), "you normed the rope key"
    assert not same(rope, rotate_halves_forward(raw[:, C:], angles)[0]), "you turned halves, not neighbours"
    assert same(rope, want), "your rope key is wrong: the last R columns of x W^T, turned"


def check_compress_hidden_backward(answer) -> None:
    """Back through norm, turn and the one product."""
    rng = np.random.default_rng(9)
    config = MLAConfig(7, 2, kv_lora_rank=5, qk_nope_head_dim=3, qk_rope_head_dim=4, v_head_dim=3)
    weights = MLAWeights.init(rng, config)
    weights.kv_a_layernorm[:] = 1 + rng.random(5)
    x, dlatent, drope = rng.standard_normal((3, 7)), rng.standard_normal((3, 5)), rng.standard_normal((3, 4))
    angles, w, norm = config.angles(np.arange(3) + 2), weights.kv_a_proj_with_mqa, weights.kv_a_layernorm
    cache = compress_tokens_forward(x[None], weights, config, angles)[2]
    dx, grads = compress_tokens_backward(dlatent[None], drope[None], cache, weights, angles)
    want = {"dx": dx[0], "dkv_a_proj_with_mqa": grads["kv_a_proj_with_mqa"], "dkv_a_layernorm": grads["kv_a_layernorm"]}
    c = x @ w[:5].T
    root = np.sqrt(np.mean(c**2, -1, keepdims=True) + 1e-6)
    dunit, back = dlatent * norm, rotate_pairs_backward(drope, angles[0])
    dc = (dunit - c / root * np.mean(dunit * c / root, -1, keepdims=True)) / root

    def joined(latent_part, rope_part):
        return np.concatenate([latent_part, rope_part], -1) @ w

    usual = [
        ("dx", joined(dunit / root, back), "the norm's root depends on c as well: subtract unit * mean(dunit * unit)"),
        ("dx", joined(dc, drope), "the rotary part is not turned back"),
        ("dx", joined(dc, rotate_pairs_forward(drope, angles[0])[0]), "the rotary part is turned forward, not back"),
        ("dx", joined(dc, 0 * back), "the rotary key is missing: it was made from x too"),
    ]
    expect_parts(answer(dlatent.copy(), drope.copy(), x.copy(), w.copy(), norm.copy(), angles[0]), want, usual)


def check_score_absorbed(answer) -> None:
    """Scores from the latent."""
    rng = np.random.default_rng(2)
    config = MLAConfig(7, 3, kv_lora_rank=5, qk_nope_head_dim=2, qk_rope_head_dim=4, v_head_dim=3)
    w_uk, _ = split_up_projection(rng.standard_normal((15, 5)), config)
    q, q_rope = rng.standard_normal((3, 2)), rng.standard_normal((3, 4))
    latent, k_rope = rng.standard_normal((11, 5)), rng.standard_normal((11, 4))
    got = answer(q, q_rope, latent, k_rope, w_uk)
    content = np.einsum("hk,htk->ht", q, np.einsum("hkc,tc->htk", w_uk, latent))
    rope = q_rope @ k_rope.T
    expect_shape(got, (3, 11), "your score")
    assert not same(got, content + rope), "your scores are not scaled: multiply by (K + R) ** -0.5"
    assert not same(got, (content + rope) * 9**-0.5), "you scale by (C + R) ** -0.5; use K + R"
    assert not same(got, content * 2**-0.5 + rope * 4**-0.5), "one scale covers content and rope"
    assert not same(got, (content + rope) * 2**-0.5), "you scale by the content width; the joint width is K + R"
    assert not same(got, content * 6**-0.5), "the rotary part is missing"
    assert same(got, (content + rope) * 6**-0.5), "wrong numbers: W_UK,h^T q_h, then times each c_t"


def check_score_absorbed_backward(answer) -> None:
    """A product of three factors."""
    rng = np.random.default_rng(10)
    ds, q, c, w = (rng.standard_normal(s) for s in ((3, 11), (3, 2), (11, 5), (3, 2, 5)))
    scale = 6**-0.5
    want = {
        "dq_nope": scale * np.einsum("ht,tc,hkc->hk", ds, c, w),
        "dlatent": scale * np.einsum("ht,hk,hkc->tc", ds, q, w),
        "dw_uk": scale * np.einsum("ht,tc,hk->hkc", ds, c, q),
    }
    usual = [
        ("dq_nope", want["dq_nope"] / scale, "the scale of the scores is missing: (K + R) ** -0.5"),
        ("dq_nope", want["dq_nope"] / scale * 9**-0.5, "you scale by (C + R) ** -0.5; the scores were scaled by K + R"),
        ("dq_nope", want["dq_nope"] / scale * 2**-0.5, "you scale by K alone; the joint width is K + R"),
    ]
    expect_parts(answer(ds.copy(), q.copy(), c.copy(), w.copy(), 4), want, usual)


def _ways_of_x(dy: np.ndarray, cache, tag_of=None) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Take the layer's way back apart: dx by the queries, dx by the note, and the note's gradients."""
    weights, config, angles, query_cache, token_cache, latent, core, _ = cache
    K, heads = config.qk_nope_head_dim, config.num_attention_heads
    dq, dk, dv = attend_backward(split_heads(dy @ weights.o_proj, heads), core)
    dkv = merge_heads(np.concatenate([dk[..., :K], dv], axis=-1))
    dtag = dk[..., K:].sum(axis=1) if tag_of is None else tag_of(dk[..., K:])
    by_queries, _ = project_queries_backward(dq, query_cache, weights, config, angles)
    by_note, grads = compress_tokens_backward(dkv @ weights.kv_b_proj, dtag, token_cache, weights, angles)
    return by_queries[0], by_note[0], grads


def check_mla_backward(answer) -> None:
    """The whole layer's way back, and every usual way to lose a part of it."""
    rng = np.random.default_rng(12)
    config = MLAConfig(11, 3, kv_lora_rank=5, qk_nope_head_dim=7, qk_rope_head_dim=4, v_head_dim=2, q_lora_rank=6)
    weights, x, dy = MLAWeights.init(rng, config), rng.standard_normal((8, 11)), rng.standard_normal((8, 11))
    for norm in (weights.kv_a_layernorm, weights.q_a_layernorm):
        norm[:] = 1 + rng.random(len(norm))
    cache = decoupled_attention_forward(x[None], weights, config)[1]
    dx, right = decoupled_attention_backward(dy[None], cache)
    got = answer(
        dy.copy(), x.copy(), {n: a.copy() for n, a in weights.arrays().items()}, 3, config.angles(np.arange(8))[0]
    )
    assert isinstance(got, tuple | list), "return dx and a dict of gradients"
    assert len(got) == 2, "return two results: dx, and a dict of gradients"
    assert isinstance(got[1], dict), "the second result is a dict of gradients by the names of the weights"
    lost, more = sorted(right.arrays().keys() - got[1].keys()), sorted(got[1].keys() - right.arrays().keys())
    assert not lost, f"no gradient for {', '.join(lost)}"
    assert not more, f"{', '.join(more)}: no weight of this name"
    by_queries, by_note, _ = _ways_of_x(dy[None], cache)
    _, averaged, mean_grads = _ways_of_x(dy[None], cache, lambda dk: dk.mean(axis=1))
    _, of_one, one_grads = _ways_of_x(dy[None], cache, lambda dk: dk[:, 0])
    _, without, none_grads = _ways_of_x(dy[None], cache, lambda dk: 0 * dk[:, 0])
    name = "kv_a_proj_with_mqa"
    usual = [
        ("dx", by_queries, "x was read twice; the way through latent and rotary key is missing"),
        ("dx", by_note, "x was read twice; the way through the queries is missing"),
        ("dx", by_queries + averaged, "the one rotary key was read by every head: sum its gradients, do not average"),
        ("dx", by_queries + of_one, "the one rotary key was read by every head; that is head 0's pull alone"),
        ("dx", by_queries + without, "the rotary key gets no gradient"),
        (name, mean_grads[name], "the one rotary key was read by every head: sum its gradients, do not average"),
        (name, one_grads[name], "the one rotary key was read by every head; that is head 0's pull alone"),
        (name, none_grads[name], "its last R rows made the rotary key, and get no gradient"),
        ("o_proj", dy.T @ cache[-1][0][:, ::-1], "the heads stand in the wrong order"),
    ]
    parts = {**right.arrays(), "dx": dx[0]}  # dx last: it is right only if all others are
    expect_parts(tuple(got[1][n] for n in right.arrays()) + (got[0],), parts, usual)


def check_stretch_frequencies(answer) -> None:
    """YaRN frequencies of the released model, and of another."""
    plain, want = inverse_frequencies(64), rotary_frequencies(64, 10000.0, V3_SCALING)
    got = answer(plain, 40, V3_LENGTH, 32, 1, 10000.0)
    expect_shape(got, (32,), "your answer")
    assert not same(np.asarray(got) / plain, np.full(32, 1 / 40)), "plain interpolation: the fast pairs must stay"
    ramp = np.clip((np.arange(32) - 10) / 13, 0, 1)
    assert not same(np.asarray(got) / plain, ramp + (1 - ramp) / 40), "upside down: ramp 0 (fast pairs) means unchanged"
    doubled = np.clip((np.arange(32) - 20) / 26, 0, 1)
    assert not same(np.asarray(got) / plain, 1 - doubled + doubled / 40), (
        "your bounds are dimension indices (20, 46); count pairs: R ln(...) / (2 ln theta) gives 10 and 23"
    )
    wrong = np.flatnonzero(~np.isclose(np.asarray(got) / want, 1, rtol=1e-9))
    assert not len(wrong), f"pair {wrong[0]} is {got[wrong[0]]:.8e}, the released model has {want[wrong[0]]:.8e}"
    scaling = {**V3_SCALING, "factor": 8, "original_max_position_embeddings": 2048}
    other = rotary_frequencies(32, 5000.0, scaling)
    assert np.allclose(answer(inverse_frequencies(32, 5000.0), 8, 2048, 32, 1, 5000.0) / other, 1), (
        "right for V3 only: use the arguments"
    )


def check_cache_bytes(answer) -> None:
    """Bytes per token of V3."""
    got = answer(V3)
    means = {
        62_464: "you forgot the rotary key: 64 more values per layer",
        1_152: "that is one layer; every one of the 61 keeps its own",
        576: "that is values of one layer; count layers and bytes",
        35_136: "those are values; a BF16 value has 2 bytes",
        140_544: "you count the latent as a key and as a value; it is both at once",
        124_928: "you count the latent twice and forget the rotary key",
        3_997_696: "that is multi-head attention: the expanded keys and values are not cached",
        4_997_120: "those are the expanded keys and values, with rope; only latent and rotary key are cached",
    }
    assert got == 70_272, means.get(got, f"you count {got} bytes; V3 keeps (512 + 64) * 61 * 2 = 70,272")
    assert answer({**V3, "num_hidden_layers": 2, "qk_rope_head_dim": 32}, 1) == 1088, "use config and bytes_per_value"


def check_mla_from_an_empty_file(answer) -> None:
    """The layer, at sizes that no two axes share."""
    rng = np.random.default_rng(11)
    config = MLAConfig(11, 3, kv_lora_rank=5, qk_nope_head_dim=7, qk_rope_head_dim=4, v_head_dim=2, q_lora_rank=6)
    weights, x = MLAWeights.init(rng, config), rng.standard_normal((8, 11))

    def run(factor: float = 1.0, rotary: float = 1.0, positions=None):
        rows = weights.q_b_proj.reshape(3, 11, 6) * factor
        rows[:, 7:] *= rotary
        changed = {**weights.arrays(), "q_b_proj": rows.reshape(33, 6)}
        return decoupled_attention_forward(x[None], MLAWeights(**changed), config, positions)[0][0]

    got = answer(x.copy(), {n: a.copy() for n, a in weights.arrays().items()}, 3, config.angles(np.arange(8))[0])
    want = run()
    expect_shape(got, (8, 11), "your output")
    for words, wrong in {
        "nothing turns: the queries' last R rows and the rotary key need RoPE": run(positions=np.zeros(8)),
        "your scores are not scaled: (K + R) ** -0.5": run(11**0.5),
        "you scale by K ** -0.5; the joint width is K + R": run((11 / 7) ** 0.5),
        "you scale by (C + R) ** -0.5; the joint width is K + R": run((11 / 9) ** 0.5),
        "the rotary part of the score is missing": run(rotary=0.0),
    }.items():
        assert not same(got, wrong), words
    future = same(got[-1], want[-1]) and not same(got, want)
    assert not future, "the last token is right, earlier ones are not: they see their future, the mask is missing"
    assert same(got[0], want[0]), "not even token 0 is right, which sees only itself: look at latent, values and o_proj"
    assert same(got, want), "token 0 is right, later ones are not: look at the scores, their rotary part and the mask"
