"""Packing: every token is a target once, rows of a batch differ in document, a cursor gives the same rows again."""

import itertools
import json

import numpy as np
import pytest
import torch

from deepseek_v3.data.corpus import DataError
from deepseek_v3.data.packing import PackedStream, encode_document
from deepseek_v3.data.tokenizer import Tokenizer

TEXTS = [f"document {i} " + " ".join(str(i * j) for j in range(5 + i)) for i in range(11)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 300)


def read_lane(stream: PackedStream, lane: int, lanes: int, rows: int) -> list[int]:
    """Return what one lane reads in a row: rows overlap by the token that opens the next."""
    batch = stream.next_batch(rows * lanes)
    mine = batch.tokens[lane::lanes].tolist()
    for before, after in itertools.pairwise(mine):
        assert before[-1] == after[0]
    return mine[0] + [token for row in mine[1:] for token in row[1:]]


def test_one_lane_reads_every_document_once_in_a_pass(tokenizer):
    wanted = sorted((0, *tokenizer.encode(text), 1) for text in TEXTS)
    total = sum(map(len, wanted))
    stream = PackedStream(TEXTS, tokenizer, 7, seed=3, lanes=1)
    tokens = read_lane(stream, 0, 1, total // 7 + 1)[:total]
    documents, current = [], []
    for token in tokens:
        current.append(token)
        if token == tokenizer.eos_id:
            documents.append(tuple(current))
            current = []
    assert sorted(documents) == wanted


def test_document_numbers_change_exactly_behind_the_end_of_a_document(tokenizer):
    batch = PackedStream(TEXTS, tokenizer, 13, seed=1, lanes=3).next_batch(60)
    ended = batch.tokens[:, :-1] == tokenizer.eos_id
    assert torch.equal(batch.documents[:, 1:] != batch.documents[:, :-1], ended)
    assert torch.equal(batch.tokens[:, 1:][ended], torch.zeros(int(ended.sum()), dtype=torch.int64))


def test_rows_of_a_batch_come_from_different_documents(tokenizer):
    batch = PackedStream(TEXTS, tokenizer, 5, lanes=5).next_batch(5)
    assert len(set(batch.documents[:, 0].tolist())) == 5


@pytest.mark.parametrize("rows_before", [0, 1, 17, 101])
def test_a_cursor_put_down_and_taken_up_gives_the_same_rows(tokenizer, rows_before):
    settings = {"seed": 5, "fim_rate": 0.5, "lanes": 4}
    stream = PackedStream(TEXTS, tokenizer, 7, **settings)
    if rows_before:
        stream.next_batch(rows_before)
    state = json.loads(json.dumps(stream.state_dict()))
    wanted = stream.next_batch(23)
    again = PackedStream(TEXTS, tokenizer, 7, **settings)
    again.load_state_dict(state)
    got = again.next_batch(23)
    assert torch.equal(got.tokens, wanted.tokens)
    assert torch.equal(got.documents, wanted.documents)


def test_passes_have_their_own_order_and_seeds_theirs(tokenizer):
    def order(seed: int, rows: int) -> list[int]:
        return PackedStream(TEXTS, tokenizer, 7, seed=seed, lanes=1).next_batch(rows).tokens.flatten().tolist()

    assert order(1, 30) == order(1, 30) != order(2, 30)


def test_fill_in_the_middle_moves_the_middle_behind_prefix_and_suffix(tokenizer):
    begin, hole, end = tokenizer.fim_ids
    text = "The quick brown fox — jumps."
    for seed in range(20):
        ids = encode_document(text, tokenizer, 1.0, np.random.default_rng(seed))
        assert (ids[0], ids[1], ids[-1]) == (tokenizer.bos_id, begin, tokenizer.eos_id)
        at, after = ids.index(hole), ids.index(end)
        prefix, suffix, middle = (
            tokenizer.decode(part) for part in (ids[2:at], ids[at + 1 : after], ids[after + 1 : -1])
        )
        assert prefix + middle + suffix == text
    assert encode_document(text, tokenizer, 0.0, np.random.default_rng(0))[1] != begin


def test_fill_in_the_middle_comes_at_its_rate(tokenizer):
    begin = tokenizer.fim_ids[0]
    made = [
        encode_document("some text", tokenizer, 0.1, np.random.default_rng(seed))[1] == begin for seed in range(2000)
    ]
    assert 0.07 < np.mean(made) < 0.13  # 0.1 within 4.5 standard errors


def test_what_was_seen_is_what_was_read_and_no_more(tokenizer):
    stream = PackedStream(TEXTS, tokenizer, 7, seed=2, lanes=2)
    assert stream.seen_texts() == []
    stream.next_batch(3)
    seen = "".join(stream.seen_texts())
    assert 0 < len(seen) < sum(map(len, TEXTS))
    assert all(any(text.startswith(part) for text in TEXTS) for part in stream.seen_texts())
    stream.next_batch(300)
    assert sorted(stream.seen_texts()) == sorted(TEXTS)


def test_other_data_or_settings_refuse_the_cursor(tokenizer):
    state = PackedStream(TEXTS, tokenizer, 7).state_dict()
    for texts, length, seed in ((TEXTS[1:], 7, 0), (TEXTS, 8, 0), (TEXTS, 7, 1)):
        with pytest.raises(DataError, match="the data changed"):
            PackedStream(texts, tokenizer, length, seed=seed).load_state_dict(state)


def test_impossible_settings_are_refused(tokenizer):
    for texts, settings in (([], {}), (TEXTS, {"seq_len": 1}), (TEXTS, {"fim_rate": 1.1}), (TEXTS, {"lanes": 0})):
        with pytest.raises(DataError):
            PackedStream(texts, tokenizer, **{"seq_len": 7, **settings})


def test_other_texts_of_equal_length_and_another_tokenizer_of_equal_size_are_refused(tokenizer):
    state = json.loads(json.dumps(PackedStream(TEXTS, tokenizer, 7).state_dict()))
    swapped = [text.swapcase() for text in TEXTS]
    with pytest.raises(DataError, match="texts changed"):
        PackedStream(swapped, tokenizer, 7).load_state_dict(state)
    other = Tokenizer.train([text[::-1] for text in TEXTS], 300)
    assert other.vocab_size == tokenizer.vocab_size
    with pytest.raises(DataError, match="tokenizer changed"):
        PackedStream(TEXTS, other, 7).load_state_dict(state)


def test_a_cursor_written_before_contents_were_compared_goes_on(tokenizer):
    stream = PackedStream(TEXTS, tokenizer, 7)
    stream.next_batch(5)
    state = {key: value for key, value in stream.state_dict().items() if key != "contents"}
    again = PackedStream(TEXTS, tokenizer, 7)
    again.load_state_dict(state)
    assert torch.equal(again.next_batch(3).tokens, stream.next_batch(3).tokens)


def test_fill_in_the_middle_without_its_tokens_is_refused_at_the_start(tokenizer):
    import tokenizers

    bare = json.loads(tokenizer.to_json())
    for token in bare["added_tokens"]:
        token["content"] = token["content"].replace("fim", "xxx")
    bare["model"]["vocab"] = {
        key.replace("▁fim", "xxx").replace("fim▁", "xxx▁"): i for key, i in bare["model"]["vocab"].items()
    }
    without = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(bare)))
    with pytest.raises(ValueError, match=r"no <｜fim.*--fim-rate 0"):
        PackedStream(TEXTS, without, 7, fim_rate=0.1)
    PackedStream(TEXTS, without, 7, fim_rate=0.0).next_batch(5)


class CountingTokenizer(Tokenizer):
    """Counts the documents that are encoded."""

    def __init__(self, backend) -> None:
        self.count = 0
        super().__init__(backend)
        self.count = 0

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Encode and count."""
        self.count += 1
        return super().encode(text, special=special)


def test_a_document_is_encoded_once_however_many_lanes_and_passes_read_it(tokenizer, tmp_path):
    counting = CountingTokenizer(tokenizer._backend)
    stream = PackedStream(TEXTS[:3], counting, 7, lanes=32, scratch=tmp_path)
    stream.next_batch(500)
    assert counting.count == 3
    assert stream.epoch > 10
    assert list(tmp_path.iterdir()) == []


def test_a_pass_draws_its_order_once_not_for_every_document(tokenizer, monkeypatch):
    drawn = []
    original = np.random.default_rng

    def counted(seed):
        drawn.append(seed)
        return original(seed)

    monkeypatch.setattr(np.random, "default_rng", counted)
    stream = PackedStream(TEXTS * 101, tokenizer, 7, lanes=4)
    stream.next_batch(400)
    assert sum(len(seed) == 2 for seed in drawn) <= 1 + stream.epoch


def test_tokens_that_cannot_be_kept_are_encoded_again_and_are_the_same(tokenizer, monkeypatch, caplog):
    import errno
    import os

    wanted = PackedStream(TEXTS, tokenizer, 7, lanes=3).next_batch(101)

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", refuse)
    got = PackedStream(TEXTS, tokenizer, 7, lanes=3).next_batch(101)
    assert torch.equal(got.tokens, wanted.tokens)
    assert "No space left" in caplog.text
