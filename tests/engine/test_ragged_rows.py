"""Rows with tokens of their own number, in blocks of their own: each is what it is alone, to the last bit."""

import random
from array import array

import pytest
import torch

from deepseek_v3.engine.decode_step import SERVES_UP_TO, DecodeStep, Rows, split_rows
from deepseek_v3.model.cache import LatentCache, LatentStore
from deepseek_v3.native.build import have_kernels
from tests.engine.test_decode_step import OPTIONS, TOLERANCE, V2, make_model

needs_kernels = pytest.mark.skipif(not have_kernels(), reason="no C++ compiler here")


def scatter_blocks(model, capacities: list[int], size: int, chance: random.Random, **options) -> LatentCache:
    """Rows with room for so many tokens, in blocks that lie anywhere in a store of a few more."""
    needed = [-(-capacity // size) for capacity in capacities]
    blocks = chance.sample(range(sum(needed) + 3), sum(needed))
    tables = [array("q", [blocks.pop() for _ in range(n)]) for n in needed]
    layers = model.config.num_hidden_layers + len(model.mtp)
    store = LatentStore(model.config, sum(needed) + 3, size, layers=layers, **options)
    store.latent_LPTW.fill_(float("nan"))  # whoever reads what nobody has written will say so
    return LatentCache(store, tables)


def draw_steps(totals: list[int], chance: random.Random) -> list[list[int]]:
    """How many tokens of each row a step brings, step by step, until all are there; some rows wait."""
    left, steps = list(totals), []
    while any(left):
        counts = [min(n, chance.choice([0, 1, 1, 2, 5, 17])) for n in left]
        left = [n - count for n, count in zip(left, counts)]
        steps += [counts] if any(counts) else []
    return steps


def read_ragged(step, cache, rows: list[list[int]], steps: list[list[int]], **module) -> list[tuple]:
    """Hidden states and logits of every row, put together from all steps."""
    parts, done = [[] for _ in rows], [0] * len(rows)
    below = module.pop("below", None)
    for counts in steps:
        slices = [slice(start, start + n) for start, n in zip(done, counts)]
        tokens = [token for row, piece in zip(rows, slices) for token in row[piece]]
        if below is not None:
            module["below_ND"] = torch.cat([states[piece] for states, piece in zip(below, slices)])
        hidden, logits = step.read(Rows(tokens, counts), cache, **module)
        for row, pair in enumerate(zip(hidden.split(counts), logits.split(counts))):
            parts[row].append(pair)
        done = [start + n for start, n in zip(done, counts)]
    return [tuple(torch.cat(kind) for kind in zip(*pairs)) for pairs in parts]


def alone(step, row: list[int], dtype: torch.dtype, **module) -> tuple:
    cache = LatentCache.dense(step.model.config, 1, len(row), dtype=dtype)
    pairs = []
    for start in range(0, len(row), SERVES_UP_TO):
        piece = row[start : start + SERVES_UP_TO]
        if "below" in module:
            module["below_ND"] = module["below"][start : start + SERVES_UP_TO]
        options = {name: value for name, value in module.items() if name != "below"}
        pairs.append(step.read(Rows(piece, [len(piece)]), cache, **options))
    return tuple(torch.cat(kind) for kind in zip(*pairs))


@needs_kernels
@pytest.mark.parametrize("seed", range(6))
def test_ragged_rows_in_scattered_blocks_are_rows_alone_in_one_piece_bit_for_bit(seed):
    chance = random.Random(seed)
    torch.manual_seed(seed)
    dtype, cache_dtype = chance.choice([torch.float32, torch.bfloat16]), chance.choice([torch.float32, torch.bfloat16])
    model = make_model(chance.choice([{}, V2, OPTIONS["narrow"], OPTIONS["wide"], OPTIONS["plain query"]])).to(dtype)
    step, vocabulary = DecodeStep(model), model.config.vocab_size
    totals = [chance.choice([1, 3, 7, 29, 71]) for _ in range(chance.choice([1, 2, 5, 11]))]
    rows = [[chance.randrange(vocabulary) for _ in range(n)] for n in totals]
    cache = scatter_blocks(model, totals, chance.choice([1, 3, 16]), chance, dtype=cache_dtype)
    got = read_ragged(step, cache, rows, draw_steps(totals, chance))
    assert cache.lengths == totals
    for row, (hidden, logits) in zip(rows, got):
        want_hidden, want_logits = alone(step, row, cache_dtype)
        assert torch.equal(hidden, want_hidden)
        assert torch.equal(logits, want_logits)
    below, depth = [hidden for hidden, _ in got], chance.randrange(2)
    got = read_ragged(step, cache.module(depth), rows, draw_steps(totals, chance), depth=depth, below=below)
    for row, states, (hidden, logits) in zip(rows, below, got):
        want_hidden, want_logits = alone(step, row, cache_dtype, depth=depth, below=states)
        assert torch.equal(hidden, want_hidden)
        assert torch.equal(logits, want_logits)


@pytest.mark.parametrize("changes", [{}, V2, {"q_lora_rank": None, "rope_scaling": OPTIONS["yarn"]["rope_scaling"]}])
def test_ragged_rows_are_what_the_model_says_of_each(changes, form):
    """A long piece of a prompt among them, and a row that waits; in PyTorch operations the rows are padded."""
    chance, model = random.Random(5), make_model(changes)
    step, totals = DecodeStep(model), [11, 2, 97, 23]
    rows = [[chance.randrange(53) for _ in range(n)] for n in totals]
    cache = scatter_blocks(model, totals, 5, chance)
    cache.store.latent_LPTW.zero_()  # PyTorch's attention reads what it then weighs with 0
    steps = [[5, 0, 70, 1], [1, 1, 3, 17], [5, 0, 1, 5], [0, 1, 23, 0]]
    got = read_ragged(step, cache, rows, steps)
    below = [hidden for hidden, _ in got]
    got_module = read_ragged(step, cache.module(1), rows, steps, depth=1, below=below)
    with torch.no_grad():
        for row, (hidden, logits), states, (further, _) in zip(rows, got, below, got_module):
            want = model.hidden_states(torch.tensor([row]))[0]
            assert (hidden - want).abs().max() <= TOLERANCE
            assert (logits - model.lm_head(want)).abs().max() <= TOLERANCE
            embedding, rotation = model.embed_tokens(torch.tensor([row])), model.place_tokens(len(row), None)[0]
            assert (further - model.mtp[1](states[None], embedding, rotation)[0]).abs().max() <= TOLERANCE


def test_logits_come_of_the_tokens_that_are_asked_for_and_in_that_order(form):
    model = make_model({})
    step, tokens = DecodeStep(model), [index % 53 for index in range(81)]
    want = step.read(Rows(tokens, [5, 0, 70, 6]), LatentCache.dense(model.config, 4, 70))[1]
    for wanted in ([80, 4, 74], [], [3]):
        cache = LatentCache.dense(model.config, 4, 70)
        hidden, logits = step.read(Rows(tokens, [5, 0, 70, 6]), cache, logits_of=wanted)
        assert logits.shape == (len(wanted), 53)
        assert torch.allclose(logits, want[wanted], rtol=0, atol=TOLERANCE)
        assert hidden.shape == (81, model.config.hidden_size)
        assert cache.lengths == [5, 0, 70, 6]


def test_long_rows_are_read_alone_and_short_ones_together():
    got = list(split_rows([3, 0, 600, 2]))
    assert [rows for rows, _ in got] == [[2], [2], [0, 3]]
    assert [len(tokens) for _, tokens in got] == [512, 88, 5]
    assert got[2][1] == [0, 1, 2, 603, 604]


def test_what_cannot_be_read_is_said(form):
    model = make_model({})
    step, store = DecodeStep(model), LatentStore(model.config, 7, 3)
    for rows, message in [
        (Rows([1, 2], [1, 0]), "2 tokens for rows of"),
        (Rows([], [0, 0]), "0 tokens for rows of"),
        (Rows([1], [1]), "1 rows of tokens for a cache of 2 rows"),
        (Rows([1] * 4, [0, 4]), r"0 cached \+ 4 new tokens exceed the cache's capacity of 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            step.read(rows, LatentCache(store, [[0, 1], [2]]))
    with pytest.raises(ValueError, match="the store has 3 layers: none for module 0"):
        LatentCache(store, [[0]]).module(0)
    with pytest.raises(ValueError, match="n_blocks=0"):
        LatentStore(model.config, 0, 3)


@needs_kernels
@pytest.mark.parametrize("block", [7, -1])
def test_a_block_that_the_store_does_not_have_is_refused_before_anything_is_read(block):
    model = make_model({})
    step, store = DecodeStep(model), LatentStore(model.config, 7, 3)
    cache = LatentCache(store, [[6, block], [2]])
    with pytest.raises(IndexError, match="1 blocks of the cache's tables are not below n_blocks=7"):
        step.read(Rows([1] * 5, [4, 1]), cache)
    assert cache.lengths == [0, 0]
    assert not store.latent_LPTW.any()
