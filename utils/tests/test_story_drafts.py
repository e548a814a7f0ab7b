"""Floors of further guesses: by the chain rule of entropy, by being told, and by a model that knows nothing."""

import numpy as np

from utils.story_drafts import draw_stories, floor_rows, load_stories, mean_price, price_rows
from utils.story_task import word_floors

STORIES = load_stories()


def test_the_floors_of_all_rows_add_up_to_the_entropy_of_a_sentence():
    whole, _ = word_floors(STORIES.word_NS, STORIES.chance_N, len(STORIES.names))  # from whole sentences alone
    assert np.isclose(mean_price(floor_rows(STORIES, 0), STORIES), whole, rtol=1e-12)


def test_to_be_told_a_word_is_to_stand_one_place_further():
    np.testing.assert_array_equal(floor_rows(STORIES, 1), floor_rows(STORIES, 0)[:, 1:])


def test_not_to_be_told_never_helps_on_average():
    told, untold = (mean_price(floor_rows(STORIES, k, told=t), STORIES) for t in (True, False) for k in (2,))
    assert untold > told + 0.1


def test_who_knows_nothing_pays_the_logarithm_of_the_vocabulary_at_every_depth():
    for depth in (0, 2):
        nats = price_rows(np.zeros((224, 11 - depth, len(STORIES.names))), STORIES, depth)
        assert np.isclose(mean_price(nats, STORIES), np.log(len(STORIES.names)))


def test_places_after_the_end_reach_into_no_other():
    tokens, document = draw_stories(np.random.default_rng(0), STORIES, 8)
    filled = tokens == 0
    filled[:, 0] = False  # the sign that opens
    assert all(len(set(row[after])) == after.sum() for row, after in zip(document, filled))
    assert not document[~filled].any()
