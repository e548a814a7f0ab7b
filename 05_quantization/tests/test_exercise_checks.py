"""The grader recognises the usual wrong answers by name, and says more than "wrong"."""

from pathlib import Path

import numpy as np
import pytest

from utils.exercises import load_file

CHAPTER = Path(__file__).resolve().parent.parent
CHECKS = load_file(CHAPTER / "exercise_checks.py")
SOLVED = load_file(CHAPTER / "exercises_solved.py")


def ieee_e4m3(code):
    e, m = code >> 3 & 15, code & 7
    size = float("inf") if e == 15 else 2.0 ** (e - 7) * (1 + m / 8) if e else 2.0**-6 * m / 8
    return -size if code >> 7 else size


def no_subnormals(code):
    e, m = code >> 3 & 15, code & 7
    size = float("nan") if code & 127 == 127 else 2.0 ** (e - 7) * (1 + m / 8)
    return -size if code >> 7 else size


def round_half_up(significand, dropped):
    return (significand + (1 << (dropped - 1))) >> dropped


def scale_to_nearest(tile, power_of_two):
    scale = SOLVED.scale_tile(tile, False)
    return 2.0 ** float(np.round(np.log2(scale))) if power_of_two else scale


def without_the_sum(total, products, kept_bits):
    unit = 2.0 ** (np.floor(np.log2(np.abs(products).max())) + 1 - kept_bits)
    return float(np.trunc(np.array([total, *products]) / unit).sum() * unit)


def rounded(total, products, kept_bits):
    terms = np.array([total, *products])
    unit = 2.0 ** (np.floor(np.log2(np.abs(terms).max())) + 1 - kept_bits)
    return float(np.floor(terms / unit).sum() * unit)


def compare_codes(code, scale, round_e4m3):
    new = np.abs(code).max(axis=0, keepdims=True) / 448
    return round_e4m3(code * scale / new), new


def forget_to_round(code, scale, round_e4m3):
    new = np.abs(code * scale).max(axis=0, keepdims=True) / 448
    return code * scale / new, new


def backward_with(dy_for_dx, dy_for_dw, turned=True):
    def answer(dy, x, weight, tiles):
        x = tiles(x, 128, 1) if turned else x
        return tiles(dy, *dy_for_dx) @ weight, tiles(dy, *dy_for_dw).T @ x

    return answer


def empty_file_with(weight_tile=(4, 4), x_tile=(1, 4), turn_original=False):
    """The layer with one of its tiles laid wrongly."""

    def answer(x, weight, dy, codes):
        def tiles(a, rows, columns):
            back = np.zeros_like(a)
            for i in range(0, a.shape[0], rows):
                for j in range(0, a.shape[1], columns):
                    tile = a[i : i + rows, j : j + columns]
                    scale = np.abs(tile).max() / 448
                    nearest = np.abs(tile[..., None] / scale - codes).argmin(axis=-1)
                    back[i : i + rows, j : j + columns] = codes[nearest] * scale
            return back

        x8, w8 = tiles(x, *x_tile), tiles(weight, *weight_tile)
        return x8 @ w8.T, tiles(dy, 1, 4) @ w8, tiles(dy, 4, 1).T @ tiles(x if turn_original else x8, 4, 1)

    return answer


def slope_of_the_sigmoid(dy, x, g, u, weights, tiles):
    s = 1 / (1 + np.exp(-g))
    dh, ddown = SOLVED.linear_backward(dy, g * s * u, weights["down_proj"], tiles)
    dx_g, dgate = SOLVED.linear_backward(dh * u * s * (1 - s), x, weights["gate_proj"], tiles)
    dx_u, dup = SOLVED.linear_backward(dh * g * s, x, weights["up_proj"], tiles)
    return dx_g + dx_u, dgate, dup, ddown


def only_by_up(dy, x, g, u, weights, tiles):
    _, *rest = SOLVED.kept_swiglu_backward(dy, x, g, u, weights, tiles)
    s = 1 / (1 + np.exp(-g))
    dh, _ = SOLVED.linear_backward(dy, g * s * u, weights["down_proj"], tiles)
    return SOLVED.linear_backward(dh * g * s, x, weights["up_proj"], tiles)[0], *rest


def down_from_u(dy, x, g, u, weights, tiles):
    *rest, _ = SOLVED.kept_swiglu_backward(dy, x, g, u, weights, tiles)
    return *rest, SOLVED.linear_backward(dy, u, weights["down_proj"], tiles)[1]


WRONG = [
    ("kept_swiglu_backward", slope_of_the_sigmoid, "that is the sigmoid's slope"),
    ("kept_swiglu_backward", only_by_up, "the way through gate_proj is missing"),
    ("kept_swiglu_backward", down_from_u, "you used u alone"),
    ("kept_swiglu_backward", lambda *a: SOLVED.kept_swiglu_backward(*a)[0], "return 4 arrays|you return 6"),
    ("decode_e4m3", ieee_e4m3, "E4M3 has none"),
    ("decode_e4m3", no_subnormals, "no leading 1"),
    ("round_half_to_even", lambda s, d: s >> d, "cut the bits off"),
    ("round_half_to_even", round_half_up, "only ties are wrong"),
    ("scale_tile", lambda tile, p: 448 / max(np.abs(tile).max(), 1e-4), "the factor to multiply by"),
    ("scale_tile", lambda tile, p: np.abs(tile).max() / 448, "use the floor"),
    ("scale_tile", scale_to_nearest, "go up, not down or nearest"),
    ("multiply_tiles", lambda a, sa, b, sb, tile: a @ b.T, "the scales are missing"),
    ("add_on_tensor_core", without_the_sum, "it sets the unit"),
    ("add_on_tensor_core", rounded, "np.trunc"),
    ("turn_tile", compare_codes, "read them back before comparing"),
    ("turn_tile", forget_to_round, "not rounded to E4M3 again"),
    ("turn_tile", lambda c, s, r: (r(c * s / s), s), "one for each COLUMN"),
    ("linear_backward", lambda dy, x, w, tiles: (dy @ w, dy.T @ x), "nothing was rounded"),
    ("linear_backward", backward_with((128, 1), (128, 1)), "sums over out-features"),
    ("linear_backward", backward_with((128, 128), (128, 1)), "tokens with small gradients"),
    ("linear_backward", backward_with((1, 128), (1, 128)), "sums over tokens: tiles of dy"),
    ("linear_backward", backward_with((1, 128), (128, 1), turned=False), "needs it turned"),
    ("fp8_linear_from_an_empty_file", empty_file_with(weight_tile=(1, 4)), "its blocks are square"),
    ("fp8_linear_from_an_empty_file", empty_file_with(x_tile=(4, 4)), "must not share its scale"),
    ("fp8_linear_from_an_empty_file", empty_file_with(turn_original=True), "not of the original"),
    ("fp8_linear_from_an_empty_file", lambda x, w, dy, c: (x @ w.T, dy @ w, dy.T @ x), "nothing was rounded"),
]


@pytest.mark.parametrize(("exercise", "wrong", "says"), WRONG)
def test_a_wrong_answer_is_told_what_is_wrong_with_it(exercise, wrong, says):
    with pytest.raises(AssertionError, match=says):
        getattr(CHECKS, f"check_{exercise}")(wrong)


def test_every_exercise_has_three_folded_hints():
    hints = (CHAPTER / "hints.md").read_text(encoding="utf-8").split("## `")[1:]
    names = [n.removeprefix("check_") for n in vars(CHECKS) if n.startswith("check_")]
    assert [h.split("`")[0] for h in hints] == names
    assert all(h.count("<details><summary>Hint") == 3 for h in hints)
