"""Grade exercises.py: each check recognises the usual wrong answers and says what they mean."""

import numpy as np

rng = np.random.default_rng(0)
MATRICES = [rng.standard_normal((3, 3)) / 2 for _ in range(4)]
# stand-ins of the four parts that no two wirings confuse; one squares, so that the order matters
PARTS = [
    lambda x: np.tanh(x @ MATRICES[0]),
    lambda x: np.cumsum(x, axis=1) @ MATRICES[1],
    lambda x: np.tanh(x @ MATRICES[2]),
    lambda x: (x * x) @ MATRICES[3],
]
BACK = [lambda dy, m=m: dy @ m for m in MATRICES]  # of linear parts, so that no cache is needed


def same(got, want) -> bool:
    """Equal shape and equal to rounding."""
    return np.shape(got) == np.shape(want) and bool(np.allclose(got, want, rtol=1e-9, atol=1e-12))


def check_run_layer(answer) -> None:
    """The wiring of one layer."""
    x = rng.standard_normal((2, 5, 3))
    kept, (n1, attend, n2, feed) = x.copy(), PARTS
    got = answer(x, *PARTS)
    assert np.array_equal(x, kept), (
        "you wrote into the argument; the caller still needs x (write x = x + ..., not x += ...)"
    )
    assert np.shape(got) == x.shape, f"the layer returned shape {np.shape(got)}, expected {x.shape}"
    a = x + attend(n1(x))
    assert not same(got, feed(n2(attend(n1(x))))), "both residuals are missing: add each branch to the stream"
    assert not same(got, a + feed(a)), "the feed-forward reads the stream without its norm"
    assert not same(got, x + attend(x) + feed(n2(x + attend(x)))), "attention reads the stream without its norm"
    assert not same(got, x + attend(n1(x)) + feed(n2(x))), (
        "parallel branches: the second must read what the first added"
    )
    assert not same(got, n1(x) + attend(n1(x)) + feed(n2(n1(x) + attend(n1(x))))), "you normed the stream itself"
    post = n1(x + attend(x))
    assert not same(got, n2(post + feed(post))), "this is post-norm, of 2017; here the norm is inside the branch"
    assert not same(got, a + feed(n1(a))), "the second branch has a norm of its own, post_attention_layernorm"
    assert not same(got, feed(n2(a))), "the second residual is missing"
    assert same(got, a + feed(n2(a))), "not x += attention(norm_1(x)), then x += feed_forward(norm_2(x))"


def check_pass_layer_back(answer) -> None:
    """The same wiring, backwards."""
    dy = rng.standard_normal((2, 5, 3))
    kept, (n1, attend, n2, feed) = dy.copy(), BACK
    got = answer(dy, *BACK)
    assert np.array_equal(dy, kept), "you wrote into dy; the caller still needs it"
    assert np.shape(got) == dy.shape, f"dx has shape {np.shape(got)}, expected {dy.shape}"
    da = dy + n2(feed(dy))
    assert not same(got, n1(attend(n2(feed(dy))))), "the stream passes dy on as well: add it in both branches"
    assert not same(got, da + attend(n1(da))), "in the first branch the order turns round: attention', then norm_1'"
    assert not same(got, dy + n2(feed(dy)) + n1(attend(dy))), "the first branch gets da, not dy: the second added to it"
    first = dy + n1(attend(dy))
    assert not same(got, first + n2(feed(first))), "the last branch of the forward pass comes first on the way back"
    wrong = dy + feed(n2(dy))
    assert not same(got, wrong + attend(n1(wrong))), (
        "inside a branch the last function comes first: feed_forward', then norm'"
    )
    assert not same(got, n1(attend(da))), "the stream passes da on as well, beside the first branch"
    assert same(got, da + n1(attend(da))), "not da = dy + norm_2'(feed_forward'(dy)), dx = da + norm_1'(attention'(da))"


def check_name_mtp_tensors(answer) -> None:
    """What a released MTP layer has that no other layer has."""
    got = sorted(answer({"num_hidden_layers": 61}))
    assert all(isinstance(name, str) for name in got), "return a list of names"
    assert not any(".62." in name for name in got), "layers count from 0: the first one behind 61 layers is number 61"
    assert not any(".60." in name for name in got), "layer 60 is the last one of the main model"
    names = {name.removeprefix("model.layers.61.") for name in got}
    assert not any(name.startswith("mtp.") for name in got), (
        "`mtp.0` is the package's name in memory; files say layers.61"
    )
    assert "shared_head_norm.weight" not in names, "the released name is `shared_head.norm`, with a dot"
    assert "lm_head.weight" not in names, "the copy of the head is called `shared_head.head` in this layer"
    assert "norm.weight" not in names, "the final norm of the module is `shared_head.norm`"
    copies = {"embed_tokens.weight", "shared_head.head.weight"}
    assert copies <= names, f"{sorted(copies - names)} missing: shared in memory, but a released file repeats them"
    want = copies | {f"{n}.weight" for n in ("enorm", "hnorm", "eh_proj", "shared_head.norm")}
    assert names == want, f"missing {sorted(want - names)}, too many {sorted(names - want)}"
    assert len(got) == 6, "each name once"
    assert any(".3." in name for name in answer({"num_hidden_layers": 3})), "read the number of layers from the config"
