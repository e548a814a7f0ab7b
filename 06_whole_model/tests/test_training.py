"""Steps, biases, text and the command."""

import numpy as np
import pytest
from architecture import BIAS, Config, init_model
from model import loss_forward
from small_language_model import AdamW, draw_windows, read_topics
from training import Recipe, Step, describe_progress, move_biases, take_step, train_model, unigram_entropy

TINY = Config(hidden_size=16, intermediate_size=24, moe_intermediate_size=8, num_hidden_layers=2, initializer_range=0.1)
SHORT = Recipe(n_windows=4, n_tokens=34, rate=2e-2)


def biases(model) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in model.weights.items() if name.endswith(BIAS)}


def test_a_few_steps_learn(rng):
    model, text = init_model(rng, TINY, np.float32), read_topics()
    history = train_model(model, text, SHORT, n_steps=40)
    assert np.mean([step.main for step in history[-5:]]) < history[0].main - 1.0
    assert np.mean([step.ahead for step in history[-5:]]) < history[0].ahead - 1.0
    assert {array.dtype for array in model.weights.values()} == {np.dtype("float32")}


def test_the_biases_move_after_the_step_by_the_sign_of_the_shortfall_and_in_the_mtp_layer_too(rng):
    model, text = init_model(rng, TINY), read_topics()
    windows = draw_windows(rng, text, 4, 34)
    before = biases(model)
    loads = loss_forward(model, *windows)[0].loads
    take_step(model, AdamW({}), windows, SHORT, 0.0)  # an optimiser of nothing: only the biases move
    for i, load in loads.items():
        name = f"model.layers.{i}.mlp.gate.{BIAS}"
        want = before[name] + SHORT.bias_speed * np.sign(load.mean() - load)
        assert np.array_equal(model.weights[name], want)
    assert set(loads) == {1, 2}
    assert any(np.abs(load - load.mean()).max() > 0 for load in loads.values())


def test_computing_a_loss_moves_no_bias(rng):
    model = init_model(rng, TINY)
    before = biases(model)
    loss_forward(model, rng.integers(0, 96, (2, 9)))
    assert all(np.array_equal(model.weights[name], array) for name, array in before.items())


def test_the_bias_is_changed_in_place_so_that_the_views_see_it(rng):
    model = init_model(rng, TINY)
    kept = model.weights[f"model.layers.1.mlp.gate.{BIAS}"]
    move_biases(model, {1: np.array([9, 1, 1, 1, 1, 1, 1, 1])}, 0.5)
    assert kept.tolist() == [-0.5] + [0.5] * 7


def test_the_same_seed_gives_the_same_run(rng):
    text = read_topics()
    runs = [train_model(init_model(np.random.default_rng(3), TINY), text, SHORT, n_steps=3) for _ in range(2)]
    assert runs[0] == runs[1]


def test_unigram_entropy_by_hand():
    text = read_topics()._replace(tokens=np.array([0, 0, 1, 2]))
    assert unigram_entropy(text, 96) == pytest.approx(1.5 * np.log(2))


def test_the_line_of_progress_says_the_time_left():
    line = describe_progress([Step(2.5, 2.0, 0.1, 0.3, 1.0)], 0.25, 30.0)
    assert "25%" in line
    assert "1:30 left" in line


def test_neither_or_both_of_steps_and_seconds_are_refused(rng):
    for wrong in ({}, {"n_steps": 1, "seconds": 1.0}):
        with pytest.raises(ValueError, match="give one of the two"):
            train_model(init_model(rng, TINY), read_topics(), SHORT, **wrong)
