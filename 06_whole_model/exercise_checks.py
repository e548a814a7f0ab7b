"""Grade exercises.py: each check recognises the usual wrong answers and says what they mean."""

import json
import struct
from collections.abc import Callable

import chapters  # noqa: F401
import numpy as np
from architecture import V3, Config, Model, init_model, layer_shapes, view_layer, view_mtp
from decoupled_rope import decoupled_attention_forward
from deepseek_moe import DeepseekMoE, deepseek_moe_forward
from exercise_words_01 import expect_parts, expect_same, same
from loss_free_balancing import update_bias
from model import hidden_forward, loss_forward, predict_logits
from mtp_module import combine_forward
from mtp_pretraining import scatter_rows
from rms_norm import rms_norm_forward
from swiglu import swiglu_forward

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


def check_total_loss(answer: Callable) -> None:
    """Two depths and three balances, none like another."""
    main, ahead, balances, weight = 3.1, [4.2, 5.4], [0.011, 0.013, 0.017], 0.3
    means = {
        main
        + weight * sum(ahead)
        + sum(balances): "the MTP depths share one weight: lambda / (number of depths) for each",
        main + sum(ahead) / 2 + sum(balances): "the MTP losses are weighed by lambda before they are added",
        main + weight * ahead[0] + sum(balances): "you count depth 1 alone; every depth has a loss",
        main + weight * sum(ahead) / 2: "the balance losses are missing; printed and not added, they pull on nothing",
        main + weight * sum(ahead) / 2 + sum(balances) / 3: "the balances of the layers are added, not averaged",
        main
        + weight * (sum(ahead) / 2 + sum(balances)): "lambda weighs the MTP losses alone; alpha is in the balances",
        (1 - weight) * main + weight * sum(ahead) / 2 + sum(balances): "the main loss keeps its full weight",
    }
    got = float(answer(main, list(ahead), list(balances), weight))
    for wrong, words in means.items():
        assert not np.isclose(got, wrong, rtol=1e-12), words
    want = main + weight * sum(ahead) / 2 + sum(balances)
    assert np.isclose(got, want, rtol=1e-12), (
        f"you have {got:.6f}; main + lambda mean(ahead) + sum(balances) = {want:.6f}"
    )
    assert answer(main, [], [], weight) == main, "a model without MTP modules and experts has the main loss alone"


def check_whole_backward(answer: Callable) -> None:
    """Ways back that are matrices; a token that stands at several places."""
    dmain, dahead, hidden, further = (rng.standard_normal(s) for s in ((6, 11), (5, 11), (6, 3), (5, 3)))
    token, head, (back, told, below) = np.array([2, 0, 2, 4, 2, 9, 2]), rng.standard_normal((11, 3)), MATRICES[:3]
    down = dahead @ head
    grow = lambda d, front=0: np.pad(d, ((front, 1 - front), (0, 0)))  # noqa: E731
    words = scatter_rows(down @ told, token[1:-1], 11)

    def embedding(dhidden, at=token[:-1]):
        return scatter_rows(dhidden @ back, at, 11)

    handed = dmain @ head + grow(down @ below)
    last = np.zeros((11, 3))
    last[token[:-1]] = handed @ back
    usual = {
        "dembed_tokens": {
            "the rows that the module was told are missing; it reads the embedding too": embedding(handed),
            "what the module sends into the hidden rows is missing": embedding(dmain @ head) + words,
            "the main model's own loss is missing in dhidden": embedding(grow(down @ below)) + words,
            "the module leaves out the LAST hidden row; you put the zeros in front": embedding(
                dmain @ head + grow(down @ below, 1)
            )
            + words,
            "the module reads tokens 1 .. T - 1; you added its rows to those of token 0 .. T - 2": embedding(handed)
            + scatter_rows(down @ told, token[:-2], 11),
            "the main model reads tokens 0 .. T - 1, not the ones that it is asked for": embedding(handed, token[1:])
            + words,
            "a token that stands at several places gets the sum; `d[token] += dx` keeps the last": last + words,
        },
        "dlm_head": {
            "the module's use of the head is missing": dmain.T @ hidden,
            "the main model's use of the head is missing": dahead.T @ further,
            "the module's logits came from `further`, not from the main model's rows": dmain.T @ hidden
            + dahead.T @ hidden[:-1],
        },
    }
    want = {"dembed_tokens": embedding(handed) + words, "dlm_head": dmain.T @ hidden + dahead.T @ further}
    arrays = (a.copy() for a in (dmain, dahead, hidden, further, token, head))
    expect_parts(answer(*arrays, lambda d: d @ back, lambda d: (d @ below, d @ told)), want, usual)


def check_count_layer(answer: Callable) -> None:
    """A dense layer of V3, one with experts, the MTP layer: the difference says what was forgotten."""
    config = V3.to_dict()
    D, expert = 7168, 3 * 7168 * 2048
    parts = {
        expert: "one expert: is the shared one in?",
        256: "the balancing biases, one for each expert",
        256 * D: "the router's matrix",
        2 * D: "two norms of the stream",
        3 * D: "enorm, hnorm and shared_head.norm",
        D: "one norm of the stream",
        1536: "the norm of the query's latent",
        512: "the norm of the key-value latent",
        2048: "the norms of the two latents",
        64 * D: "the rotary key of kv_a_proj_with_mqa: C + R rows",
        128 * 64 * 1536: "the rotary part of the queries: K + R rows a head",
        128 * 128 * 512: "the values in kv_b_proj: K + U rows a head",
        D * 128 * 128: "o_proj",
        2 * D * D: "eh_proj, [D, 2D]",
        D * D: "half of eh_proj: it reads two rows, [D, 2D]",
        3 * D + 2 * D * D: "what an MTP layer has beside its decoder layer",
        2 * 129280 * D: "embedding and head: copies of them lie in the released file, not in memory",
        248 * expert: "the experts that a token does not use; they are there all the same",
    }
    for index, kind in ((0, "dense"), (10, "with experts"), (61, "of the MTP module")):
        got, want = answer(config, index), sum(int(np.prod(s)) for s in layer_shapes(V3, index).values())
        if got != want:
            size, side = abs(got - want), "too many" if got > want else "too few"
            why = f": {parts[size]}" if size in parts else "; list the tensors of the layer, one by one"
            raise AssertionError(f"layer {index} of V3 ({kind}): you count {got:,}, {size:,} {side}{why}")
    other = Config(n_shared_experts=3)
    want = sum(int(np.prod(s)) for s in layer_shapes(other, 1).values())
    assert answer(other.to_dict(), 1) == want, "right for V3 only: use n_shared_experts and the other keys"


def check_clip_gradients(answer: Callable) -> None:
    """An arrow of length 13 in two tensors, and a short one."""
    grads = {"a": np.array([[3.0, 4.0]]), "b": np.array([12.0])}
    got = answer({n: g.copy() for n, g in grads.items()}, 1.0)
    assert isinstance(got, dict), "return a dict of gradients, by the same names"
    assert got.keys() == grads.keys(), f"return the gradients of {sorted(grads)}, by name"
    usual = {
        "each tensor is shortened by itself, which turns the arrow; one length for all of them": (3 / 5, 4 / 5, 1),
        "each number is cut by itself, which turns the arrow": (1, 1, 1),
        "you divide by the square of the length; the root is missing": (3 / 169, 4 / 169, 12 / 169),
        "you divide by the sum of the lengths; squares add up, lengths do not": (3 / 17, 4 / 17, 12 / 17),
        "you divide by the largest number, not by the length": (3 / 12, 4 / 12, 1),
    }
    flat = np.concatenate([np.ravel(got["a"]), np.ravel(got["b"])])
    expect_same(flat, np.array([3, 4, 12]) / 13, {w: np.array(v, float) for w, v in usual.items()}, "clip_gradients")
    assert np.shape(got["a"]) == (1, 2), "a gradient keeps the shape of its tensor"
    short = answer({n: g / 100 for n, g in grads.items()}, 1.0)
    assert same(short["a"], grads["a"] / 100), "a gradient that is short already stays as it is; you made it longer"
    assert same(answer(dict(grads), 2.0)["b"], np.array([24 / 13])), "right for a longest of 1 only: use the argument"


def check_turn_thermostats(answer: Callable) -> None:
    """Two routers; the arrays must be the same ones afterwards."""
    biases = {1: rng.standard_normal(4), 3: rng.standard_normal(4), 2: rng.standard_normal(4)}
    loads = {1: np.array([9, 1, 5, 5]), 3: np.array([2, 2, 2, 14])}
    kept, arrays = {i: b.copy() for i, b in biases.items()}, dict(biases)
    got = answer(biases, loads, 0.01)
    assert isinstance(got, dict), "return the dict `biases`"
    want = {i: update_bias(kept[i], loads[i], 0.01) if i in loads else kept[i] for i in kept}
    usual = {}
    for i in loads:
        short = loads[i].mean() - loads[i]
        usual[i] = {
            "the sign is turned: a busy expert must become less attractive": kept[i] - 0.01 * np.sign(short),
            "take the sign of the shortfall: every step has the same size": kept[i] + 0.01 * short,
            "you forgot the old bias; it is moved, not set": 0.01 * np.sign(short),
            "nothing has moved": kept[i],
        }
    for i in kept:
        expect_same(np.asarray(got[i]), want[i], usual.get(i, {}), f"the bias of layer {i}")
        assert same(arrays[i], want[i]), (
            f"layer {i}: you put a new array in the dict; the model still looks at the old one. Change it in place (+=)"
        )


def check_settle_drafts(answer: Callable) -> None:
    """Right drafts, a wrong first one, a wrong one in the middle with a lucky one behind it."""
    cases = {
        ((5, 6), (5, 6, 7)): [5, 6, 7],
        ((5, 6), (4, 6, 7)): [4],
        ((5, 8, 9), (5, 6, 9, 1)): [5, 6],
        ((), (3,)): [3],
    }
    got = {case: [int(t) for t in answer(list(case[0]), list(case[1]))] for case in cases}
    middle = got[(5, 8, 9), (5, 6, 9, 1)]
    assert middle != [5], "after the accepted drafts comes the model's own word: it replaces the wrong draft, for free"
    assert middle != [5, 8], "you keep the rejected draft; the model's own word stands in its place"
    assert 8 not in middle, "a rejected draft is in your text"
    assert middle not in ([5, 6, 9, 1], [5, 6, 9], [5, 6, 1]), (
        "what the model says behind a wrong draft stands on a text that never was; stop at the first that differs"
    )
    assert got[(5, 6), (5, 6, 7)] != [5, 6], "all drafts passed, and own[K] is one more word, for free"
    assert got[(), (3,)] == [3], "without drafts a pass gives one token, own[0]"
    for case, want in cases.items():
        assert got[case] == want, f"drafts {list(case[0])}, own {list(case[1])}: you add {got[case]}, should be {want}"


def write_file(arrays: dict[str, tuple[str, np.ndarray, bytes]], pad: int) -> bytes:
    """A safetensors file: (dtype, array for its shape, bytes) by name; `pad` blanks behind the header."""
    header: dict = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, (dtype, array, raw) in arrays.items():
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode() + b" " * pad
    return struct.pack("<Q", len(text)) + text + data


def check_read_tensor(answer: Callable) -> None:
    """The second and third tensor of a file; headers with and without padding."""
    first, x = rng.standard_normal(4).astype("<f4"), rng.standard_normal((2, 3)).astype("<f4")
    upper = (rng.standard_normal((3, 2)).astype("<f4").view("<u4") >> 16).astype("<u2")
    halves = (upper.astype(np.uint32) << 16).view(np.float32)
    raw = write_file(
        {"a": ("F32", first, first.tobytes()), "x": ("F32", x, x.tobytes()), "b": ("BF16", upper, upper.tobytes())}, 4
    )
    usual = {
        "that is the first tensor; begin at its own data_offsets": first,
        "right numbers, but flat: give them their shape": x.ravel(),
        "the bytes stand the other way round: the last byte first, '<f4'": x.view(">f4"),
        "the axes are turned around": x.T,
    }
    expect_same(np.asarray(answer(raw, "x")), x, usual, "x, stored as F32")
    brain = {
        "that reads BF16 as F16; it is the upper half of a float32": upper.view("<f2").astype(np.float32),
        "those are the codes; put 16 zero bits behind each and look at it as a float32": upper.astype(np.float32),
        "you put the 16 zero bits in FRONT; a BF16 number is the upper half": upper.astype(np.uint32).view(np.float32),
        "right numbers, but flat: give them their shape": halves.ravel(),
    }
    expect_same(np.asarray(answer(raw, "b")), halves, brain, "b, stored as BF16")
    assert np.asarray(answer(raw, "b")).dtype == np.float32, "return float32"
    other = write_file({"x": ("F32", x, x.tobytes())}, 3)
    assert same(answer(other, "x"), x), "right for one file only: the header's length stands in the first 8 bytes"


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


def build_mills(model: Model) -> list[tuple[Callable, Callable]]:
    """Attention and network of every layer, from the chapters, on rows of one window."""

    def mills_of(i: int) -> tuple[Callable, Callable]:
        layer = view_layer(model, i)

        def attention(x):
            return decoupled_attention_forward(x[None], layer.self_attn, model.config.attention)[0][0]

        def network(x):
            if isinstance(layer.mlp, DeepseekMoE):
                return deepseek_moe_forward(x, layer.mlp, model.config.router)[0]
            return swiglu_forward(x, layer.mlp)[0]

        return attention, network

    return [mills_of(i) for i in range(model.config.n_layers)]


def check_model_from_an_empty_file(answer: Callable) -> None:
    """A tiny model whose norms are not ones, against the chapter's own loss."""
    config = Config(vocab_size=13, hidden_size=16, num_hidden_layers=2, initializer_range=0.3)
    model = init_model(rng, config)
    for array in model.weights.values():
        if array.ndim == 1 and array.all():
            array[:] = 1 + rng.random(array.shape) / 2
    token, mills = rng.integers(0, 13, 10), build_mills(model)
    losses, _ = loss_forward(model, token[None], alpha=0.0)
    main, ahead = losses.main, losses.ahead[0]
    logits = predict_logits(model, token[None, :-1])[0][0]
    hidden, _ = hidden_forward(model, token[None, :-1])
    head = model.weights["lm_head.weight"]
    calls: list[int] = []

    def counted(i: int, part: int):
        def call(x):
            calls.append(i)
            return mills[i][part](x)

        return call

    watched = [(counted(i, 0), counted(i, 1)) for i in range(3)]
    got = answer(token.copy(), {n: a.copy() for n, a in model.weights.items()}, watched, 0.3)
    assert isinstance(got, tuple | list), "return two results: logits, loss"
    assert len(got) == 2, "return two results: logits, loss"
    assert 2 in calls, "the last layer, that of the MTP module, was never run"
    usual = {
        "the final norm, model.norm, is missing in front of the head": _without_final_norm(model, token) @ head.T,
        "model.norm has a weight": np.asarray(hidden / model.weights["model.norm.weight"])[0] @ head.T,
        "the MTP layer ran inside the main model": _with_one_layer_more(model, token, mills) @ head.T,
        "a row for all S tokens; the last token is only a target": predict_logits(model, token[None])[0][0],
    }
    expect_same(np.asarray(got[0]), logits, usual, "logits")

    means = _wrong_losses(model, token, mills, hidden[0], main, ahead)
    for words, wrong in means.items():
        assert not np.isclose(float(got[1]), wrong, rtol=1e-10), f"logits are right; loss: {words}"
    want = main + 0.3 * ahead
    assert np.isclose(float(got[1]), want, rtol=1e-10), (
        f"logits are right; the loss is {float(got[1]):.6f}, should be {want:.6f} = {main:.6f} + 0.3 * {ahead:.6f}"
    )


def _wrong_losses(
    model: Model, token: np.ndarray, mills: list, hidden: np.ndarray, main: float, ahead: float
) -> dict[str, float]:
    """What usual mistakes make of main + 0.3 * ahead, by their words; hidden as the main model hands it on, [T, D]."""
    head, embed = model.weights["lm_head.weight"], model.weights["model.embed_tokens.weight"]

    def ahead_with(words=token[1:-1], rows=hidden, order="released", norm=None):
        weights = view_mtp(model, 1)
        pair = combine_forward(weights, rows[:-1], embed[words], order)[0]
        y = _run_layer(model, 2, pair, mills)
        return (
            _surprise(rms_norm_forward(y, weights.shared_head_norm if norm is None else norm)[0] @ head.T, token[2:])
            / 9
        )

    raw = _without_final_norm(model, token)
    return {
        "the MTP loss is missing": main,
        "lambda is missing: main + mtp_weight * ahead": main + ahead,
        "each depth is divided by the main model's T rows (Eq. 24), not by its own": main + 0.3 * ahead * 9 / 8,
        "both losses are means over T rows; you return sums": 9 * (main + 0.3 * ahead),
        "the module reads token i + 1, the one that the main model was asked for; yours reads token i": main
        + 0.3 * ahead_with(token[:-2]),
        "the module reads its own target, token i + 2": main + 0.3 * ahead_with(token[2:]),
        "the released eh_proj reads the embedding first, then the hidden row": main + 0.3 * ahead_with(order="paper"),
        "the module's last norm is its own, shared_head.norm, not model.norm": main
        + 0.3 * ahead_with(norm=model.weights["model.norm.weight"]),
        "the module stands on the rows behind the final norm, those that the head reads": main
        + 0.3 * ahead_with(rows=raw),
    }


def _run_layer(model: Model, i: int, x: np.ndarray, mills: list) -> np.ndarray:
    layer = view_layer(model, i)
    x = x + mills[i][0](rms_norm_forward(x, layer.input_layernorm)[0])
    return x + mills[i][1](rms_norm_forward(x, layer.post_attention_layernorm)[0])


def _without_final_norm(model: Model, token: np.ndarray) -> np.ndarray:
    x, mills = model.weights["model.embed_tokens.weight"][token[:-1]], build_mills(model)
    for i in range(model.config.num_hidden_layers):
        x = _run_layer(model, i, x, mills)
    return x


def _with_one_layer_more(model: Model, token: np.ndarray, mills: list) -> np.ndarray:
    x = _run_layer(model, model.config.num_hidden_layers, _without_final_norm(model, token), mills)
    return rms_norm_forward(x, model.weights["model.norm.weight"])[0]


def _surprise(logits: np.ndarray, target: np.ndarray) -> float:
    log_sum = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    return float((log_sum - logits[np.arange(len(target)), target]).sum())
