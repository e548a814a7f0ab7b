"""The pool of blocks: none leaks, none is held twice, and a shared prefix is found exactly as far as it goes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from deepseek_v3.engine.block_pool import BlockPool


def fill(pool: BlockPool, tokens: list[int]) -> list[int]:
    """Take blocks for the tokens and register those that are full, as a sequence does."""
    blocks, key = pool.allocate(pool.blocks_for(len(tokens))), b""
    for j in range(len(tokens) // pool.block_size):
        key = pool.key_of(key, tokens, j, 0)
        pool.register(blocks[j], key)
    return blocks


def test_a_prefix_is_found_as_far_as_whole_blocks_agree_from_the_beginning():
    pool = BlockPool(11, 3)
    held = fill(pool, [2, 3, 5, 7, 11, 13, 17])
    assert pool.match_prefix([2, 3, 5, 7, 11, 13, 17]) == held[:2]
    assert pool.match_prefix([2, 3, 5, 7, 11]) == held[:1]
    assert pool.match_prefix([7, 11, 13]) == []  # the same tokens elsewhere have other latents
    assert pool.match_prefix([2, 3, 4, 7, 11, 13]) == []
    assert pool.match_prefix([2, 3, 5], root=b"1") == []


def test_a_block_with_rows_of_modules_is_found_only_if_the_tokens_behind_it_agree():
    pool, tokens = BlockPool(5, 2), [2, 3, 5, 7, 11]
    (block,) = pool.allocate(1)
    pool.register(block, pool.key_of(b"", tokens, 0, 2))
    assert pool.match_prefix([2, 3, 5, 7], ahead=2) == [block]
    assert pool.match_prefix([2, 3, 5], ahead=2) == []  # not known yet
    assert pool.match_prefix([2, 3, 5, 8], ahead=2) == []


def test_a_released_block_is_found_until_it_is_needed_and_the_end_of_a_text_goes_first():
    pool = BlockPool(3, 2)
    held = fill(pool, [2, 3, 5, 7, 11, 13])
    pool.release(held)
    assert pool.match_prefix([2, 3, 5, 7, 11, 13]) == held
    assert pool.allocate(1) == held[2:]
    assert pool.match_prefix([2, 3, 5, 7, 11, 13]) == held[:2]
    pool.share(held[:2])
    assert not pool.can_take([], 1)
    pool.check_integrity([held[:2], held[2:]])
    with pytest.raises(ValueError, match="1 blocks asked for, 0 of 3 are free"):
        pool.allocate(1)


def test_what_is_wrong_is_seen():
    for wrong in ([[0, 0]], [[0], [1]], []):
        pool = BlockPool(3, 2)
        assert pool.allocate(1) == [0]
        with pytest.raises(AssertionError):
            pool.check_integrity(wrong)


class AnyOrder(RuleBasedStateMachine):
    """Texts over two letters come and go in any order."""

    def __init__(self):
        super().__init__()
        self.pool, self.tables = BlockPool(7, 2), []

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=9))
    def take(self, tokens):
        shared = self.pool.match_prefix(tokens)
        more = self.pool.blocks_for(len(tokens)) - len(shared)
        if self.pool.can_take(shared, more):
            self.pool.share(shared)
            table, key = shared + self.pool.allocate(more), b""
            for j in range(len(tokens) // 2):
                key = self.pool.key_of(key, tokens, j, 0)
                self.pool.register(table[j], key)
            assert self.pool.match_prefix(tokens)[: len(shared)] == shared
            self.tables.append(table)

    @precondition(lambda self: self.tables)
    @rule(which=st.integers(0, 6), forget=st.booleans())
    def release(self, which, forget):
        table = self.tables.pop(which % len(self.tables))
        if forget:
            self.pool.forget(table)
        self.pool.release(table)

    @invariant()
    def holds(self):
        self.pool.check_integrity(self.tables)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


@given(st.lists(st.integers(0, 2), max_size=13), st.lists(st.integers(0, 2), max_size=13))
def test_two_texts_share_exactly_the_whole_blocks_of_their_common_beginning(one, other):
    pool = BlockPool(13, 3)
    fill(pool, one)
    common = next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
    assert len(pool.match_prefix(other)) == common // 3
