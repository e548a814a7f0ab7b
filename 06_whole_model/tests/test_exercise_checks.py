"""The grader says what is wrong, not only that it is."""

import struct
from pathlib import Path

import numpy as np
import pytest

from utils.exercises import load_file

CHAPTER = Path(__file__).resolve().parent.parent
CHECKS = load_file(CHAPTER / "exercise_checks.py")
solved = load_file(CHAPTER / "exercises_solved.py")


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (lambda x, n1, a, n2, f: f(n2(a(n1(x)))), "both residuals are missing"),
        (lambda x, n1, a, n2, f: x + a(n1(x)) + f(n2(x)), "parallel branches"),
        (lambda x, n1, a, n2, f: x + a(n1(x)) + f(x + a(n1(x))), "without its norm"),
        (lambda x, n1, a, n2, f: n2(n1(x + a(x)) + f(n1(x + a(x)))), "post-norm"),
        (lambda x, n1, a, n2, f: x[0], "returned shape"),
    ],
)
def test_wrong_wirings_are_recognised(layer, words):
    with pytest.raises(AssertionError, match=words):
        CHECKS.check_run_layer(layer)


@pytest.mark.parametrize(
    ("back", "words"),
    [
        (lambda d, n1, a, n2, f: n1(a(n2(f(d)))), "the stream passes dy on"),
        (lambda d, n1, a, n2, f: d + n2(f(d)) + n1(a(d)), "the first branch gets da"),
        (lambda d, n1, a, n2, f: (d + n1(a(d))) + n2(f(d + n1(a(d)))), "comes first on the way back"),
        (lambda d, n1, a, n2, f: n1(a(d + n2(f(d)))), "beside the first branch"),
    ],
)
def test_wrong_ways_back_are_recognised(back, words):
    with pytest.raises(AssertionError, match=words):
        CHECKS.check_pass_layer_back(back)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["mtp.0.enorm.weight"], "files say layers.61"),
        (["model.layers.62.enorm.weight"], "count from 0"),
        ([f"model.layers.61.{n}.weight" for n in ("enorm", "hnorm", "eh_proj", "shared_head.norm")], "repeats them"),
        (["model.layers.61.lm_head.weight"], "shared_head.head"),
    ],
)
def test_wrong_names_are_recognised(names, words):
    with pytest.raises(AssertionError, match=words):
        CHECKS.check_name_mtp_tensors(lambda config: names)


def through(module_back=lambda back: back, main_back=lambda back: back, **changes):
    """whole_backward with other ways back, or with some arguments exchanged."""
    names = ("dmain", "dahead", "hidden", "further", "token", "head")

    def run(*arguments):
        arrays = {n: changes.get(n, lambda a: a)(a) for n, a in zip(names, arguments)}
        return solved.whole_backward(*arrays.values(), main_back(arguments[6]), module_back(arguments[7]))

    return run


def counted_without(forgotten):
    """count_layer with one part left out or too many."""
    return lambda config, i: solved.count_layer(config, i) + forgotten


def clip_one_by_one(grads, longest):
    return {n: g * min(1, longest / np.sqrt((g * g).sum())) for n, g in grads.items()}


def thermostats(move):
    return lambda biases, loads, speed: {i: move(b, loads[i], speed) if i in loads else b for i, b in biases.items()}


def in_place(move):
    def turn(biases, loads, speed):
        for i, load in loads.items():
            biases[i][:] = move(biases[i], load, speed)
        return biases

    return turn


def tail_of(raw, name, dtype, start):
    """Read n numbers of a tensor in another way than is right."""
    (length,) = struct.unpack("<Q", raw[:8])
    entry = solved.json.loads(raw[8 : 8 + length])[name]
    begin, end = entry["data_offsets"]
    return np.frombuffer(raw[8 + length + start(begin) : 8 + length + end], dtype)


def model_with(**changes):
    """model_from_an_empty_file with some weights, or the tokens that the module is told, exchanged."""

    def run(tokens, weights, mills, mtp_weight):
        weights = {n: changes.get(n.split("model.layers.2.")[-1], lambda a: a)(a) for n, a in weights.items()}
        logits, loss = solved.model_from_an_empty_file(tokens, weights, mills, mtp_weight)
        return logits, changes.get("loss", lambda a: a)(loss)

    return run


def swapped(eh_proj):
    return np.roll(eh_proj, eh_proj.shape[0], axis=1)


def stops_late(drafts, own):
    return own[: 1 + sum(d == o for d, o in zip(drafts, own))]


JOINED = [
    ("total_loss", lambda m, a, b, w: m + w * sum(a) + sum(b), "the MTP depths share one weight"),
    ("total_loss", lambda m, a, b, w: m + w * np.mean(a), "balance losses are missing"),
    ("total_loss", lambda m, a, b, w: (1 - w) * m + w * np.mean(a) + sum(b), "keeps its full weight"),
    ("whole_backward", through(lambda b: lambda d: (b(d)[0], 0 * d)), "rows that the module was told are missing"),
    ("whole_backward", through(lambda b: lambda d: (0 * d, b(d)[1])), "into the hidden rows is missing"),
    ("whole_backward", through(further=lambda f: 0 * f), "the module's use of the head is missing"),
    ("whole_backward", lambda *a: through()(*a)[0], "return 2 results"),
    ("count_layer", counted_without(-2 * 7168), "two norms of the stream"),
    ("count_layer", counted_without(-3 * 7168 * 2048), "is the shared one in"),
    ("count_layer", counted_without(2 * 129280 * 7168), "copies of them lie in the released file"),
    ("count_layer", counted_without(5), "one by one"),
    ("clip_gradients", clip_one_by_one, "turns the arrow"),
    ("clip_gradients", lambda g, n: {k: v * n / 13 for k, v in g.items()}, "stays as it is"),
    ("clip_gradients", lambda g, n: {k: np.clip(v, -n, n) for k, v in g.items()}, "each number is cut"),
    ("turn_thermostats", thermostats(lambda b, n, v: b + v * np.sign(n.mean() - n)), "Change it in place"),
    ("turn_thermostats", in_place(lambda b, n, v: b - v * np.sign(n.mean() - n)), "the sign is turned"),
    ("turn_thermostats", in_place(lambda b, n, v: v * np.sign(n.mean() - n)), "forgot the old bias"),
    ("settle_drafts", stops_late, "stop at the first that differs"),
    ("settle_drafts", lambda d, o: solved.settle_drafts(d, o)[:-1] or o[:1], "it replaces the wrong draft, for free"),
    ("settle_drafts", lambda d, o: d, "rejected draft is in your text"),
    ("read_tensor", lambda raw, n: tail_of(raw, n, "<f4", lambda b: b), "give them their shape"),
    ("read_tensor", lambda raw, n: solved.read_tensor(raw, n).byteswap(), "the last byte first"),
    (
        "read_tensor",
        lambda raw, n: solved.read_tensor(raw, n) if n == "x" else tail_of(raw, n, "<f2", lambda b: b).reshape(3, 2),
        "that reads BF16 as F16",
    ),
    ("model_from_an_empty_file", model_with(**{"eh_proj.weight": swapped}), "embedding first"),
    ("model_from_an_empty_file", model_with(loss=lambda x: 9 * x), "you return sums"),
    ("model_from_an_empty_file", model_with(**{"model.norm.weight": lambda a: 0 * a + 1}), "model.norm has a weight"),
    ("model_from_an_empty_file", lambda t, w, m, g: solved.model_from_an_empty_file(t, w, m, 1.0), "lambda is missing"),
    ("model_from_an_empty_file", lambda t, w, m, g: solved.model_from_an_empty_file(t, w, m, 0.0), "loss is missing"),
]


@pytest.mark.parametrize(("name", "answer", "words"), JOINED, ids=[f"{w[0]}-{i}" for i, w in enumerate(JOINED)])
def test_a_usual_mistake_on_the_page_is_named(name, answer, words):
    with pytest.raises(AssertionError, match=words):
        vars(CHECKS)[f"check_{name}"](answer)


def test_every_exercise_has_three_folded_hints():
    hints = (CHAPTER / "hints.md").read_text(encoding="utf-8").split("## `")[1:]
    names = [n.removeprefix("check_") for n in vars(CHECKS) if n.startswith("check_")]
    assert [h.split("`")[0] for h in hints] == names
    assert all(h.count("<details><summary>Hint") == 3 for h in hints)
