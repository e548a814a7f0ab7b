"""Text to numbers and back: nothing is lost, the stories are what they promise, gradients go home."""

from collections import Counter

import numpy as np
import pytest
from text_tokens import (
    ALPHABET,
    decode_characters,
    decode_pairs,
    embed_backward,
    embed_forward,
    encode_characters,
    encode_pairs,
    learn_merges,
    merge_pair,
    sentence_chances,
    spell_tokens,
    story_floor,
    tell_stories,
)


def test_the_chances_of_all_sentences_sum_to_one():
    chances = sentence_chances()
    assert len(chances) == 4 * (1 + 2 * 3) * 2 * 4
    assert sum(chances.values()) == pytest.approx(1, abs=1e-14)
    assert chances["the cat sat on the mat. "] == pytest.approx(9 / 128)
    assert chances["the cat that heard the dog slept in the oak. "] == pytest.approx(1 / 4 * 1 / 12 * 1 / 4 * 1 / 12)


def test_the_floor_is_the_entropy_by_parts_over_the_mean_length():
    """Actor, clause, act and place are drawn one after the other, so their entropies add up."""

    def bits(*p):
        return -sum(x * np.log(x) for x in p)

    whole = bits(*[1 / 4] * 4) + bits(1 / 2, *[1 / 12] * 6) + bits(3 / 4, 1 / 4) + bits(3 / 4, *[1 / 12] * 3)
    length = sum(p * len(s) for s, p in sentence_chances().items())
    assert story_floor() == pytest.approx(whole / length, rel=1e-12)


def test_stories_are_drawn_by_their_chances(rng):
    text = tell_stories(rng, 20_000)
    told = Counter(s + ". " for s in text.split(". ") if s)
    assert set(told) <= set(sentence_chances())
    for sentence, chance in sentence_chances().items():
        assert abs(told[sentence] / 20_000 - chance) < 5 * np.sqrt(chance / 20_000)  # five standard errors


def test_characters_come_back():
    text = tell_stories(np.random.default_rng(3), 11)
    assert decode_characters(encode_characters(text)) == text
    assert len(set(ALPHABET)) == len(ALPHABET)


def test_a_letter_that_no_story_has_is_refused():
    with pytest.raises(ValueError, match=r"\['Q', 'z'\] occur in no story"):
        encode_characters("the Quiz"[:5] + "z")


def test_three_merges_by_pencil():
    merges = learn_merges("the cat sat on the mat", 3)
    assert merges == [(97, 116), (116, 104), (257, 101)]  # a t, t h, th e
    assert spell_tokens(merges)[256:] == [b"at", b"th", b"the"]
    assert [len(encode_pairs("the cat sat on the mat", merges[:n])) for n in range(4)] == [22, 19, 17, 15]


def test_overlapping_pairs_are_merged_from_the_left_and_used_once():
    assert merge_pair([7, 7, 7, 7, 7], (7, 7), 9) == [9, 9, 7]
    assert merge_pair([1, 2, 1, 2, 3], (1, 2), 9) == [9, 9, 3]
    assert merge_pair([], (1, 2), 9) == []


def test_merges_apply_in_the_order_of_learning():
    assert encode_pairs("the", [(116, 104), (256, 101)]) == [257]
    assert encode_pairs("the", [(104, 101), (116, 104)]) == [116, 256]  # he first: t h is gone by then


@pytest.mark.parametrize("text", ["", "a", "café 猫 \x00", "the cat that saw the dog ran", "aaaaaaa"])
def test_any_text_comes_back_with_any_merges(text):
    merges = learn_merges(tell_stories(np.random.default_rng(1), 30), 23)
    assert decode_pairs(encode_pairs(text, merges), merges) == text


def test_learning_stops_when_no_pair_occurs_twice():
    assert len(learn_merges("a" * 64, 100)) == 5
    assert learn_merges("abc", 7) == []
    assert learn_merges("", 7) == []


def test_a_lookup_is_a_product_with_one_hot_rows(rng):
    token, table, dx = rng.integers(5, size=(2, 11)), rng.normal(size=(5, 3)), rng.normal(size=(2, 11, 3))
    x, cache = embed_forward(token, table)
    one_hot = np.eye(5)[token]
    np.testing.assert_array_equal(x, one_hot @ table)
    np.testing.assert_allclose(embed_backward(dx, cache), np.einsum("bnv,bnd->vd", one_hot, dx), rtol=1e-14)


def test_the_gradient_of_the_lookup_agrees_with_central_differences(rng, check_gradients):
    token, table, dx = np.array([2, 0, 2, 2, 4]), rng.normal(size=(7, 3)), rng.normal(size=(5, 3))
    gradient = embed_backward(dx, embed_forward(token, table)[1])
    check_gradients(lambda: np.sum(dx * embed_forward(token, table)[0]), {"table": table}, {"table": gradient})
    assert not gradient[[1, 3, 5, 6]].any()  # tokens that did not occur


@pytest.mark.parametrize("token", [-1, 7])
def test_a_token_outside_the_table_is_refused(token):
    with pytest.raises(ValueError, match="leave the table of 7 rows"):
        embed_forward(np.array([0, token]), np.zeros((7, 2)))
