"""Text to ids and back: nothing is lost, special tokens are never typed by accident, streams wait for characters."""

import json

import pytest

from deepseek_v3.data.tokenizer import BOS, SPECIAL_TOKENS, USER, Tokenizer, TokenizerError

TEXTS = [f"def f{i}(x):\n    return x + {i * 977}  # größer 漢字\n" for i in range(41)]
TRICKY = [
    "",
    " ",
    "\n\n  \t",
    "café ÀÉ",
    "漢字かな混じり文",
    "🙂👩‍👩‍👧",
    "a\r\nb",
    "12345678",
    "x" * 300,
    "\u0000\u001f\ufffd",
    USER,
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 400)


@pytest.mark.parametrize("text", TRICKY)
def test_every_text_comes_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not any(tokenizer.is_special(i) for i in ids)


@pytest.mark.parametrize("text", TRICKY)
def test_a_stream_gives_the_same_text_and_never_half_a_character(tokenizer, text):
    stream = tokenizer.stream()
    pieces = [stream.push(i) for i in tokenizer.encode(text)] + [stream.finish()]
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_a_broken_character_is_shown_as_such_at_the_end(tokenizer):
    stream = tokenizer.stream()
    first = tokenizer.encode("漢")[0]
    if len(tokenizer.token_bytes(first)) < 3:
        assert stream.push(first) == ""
        assert stream.finish() == "\ufffd"


def test_special_tokens_come_first_and_count_only_when_asked(tokenizer):
    assert [tokenizer.token_id(name) for name in SPECIAL_TOKENS] == list(range(10))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 1, 2)
    assert tokenizer.fim_ids == (4, 3, 5)
    assert tokenizer.encode(BOS, special=True) == [0]
    assert len(tokenizer.encode(BOS)) > 1
    assert tokenizer.decode([0, *tokenizer.encode("hi"), 1]) == "hi"
    assert tokenizer.decode([0, 1], skip_special=False).startswith(BOS)


def test_the_released_rules_split_numbers_in_threes_and_keep_punctuation_with_line_ends():
    tokenizer = Tokenizer.train(["1234567 1234567 x);\n x);\n"] * 60, 330)
    assert [tokenizer.decode([i]) for i in tokenizer.encode("1234567")] == ["123", "456", "7"]
    assert ");\n" in [tokenizer.decode([i]) for i in tokenizer.encode("x);\n")]


def test_bytes_of_tokens_add_up_to_the_text(tokenizer):
    lengths = tokenizer.byte_lengths(450)
    assert len(lengths) == 450
    assert lengths[:10] == [0] * 10
    for text in TEXTS[:3] + TRICKY:
        assert sum(lengths[i] for i in tokenizer.encode(text)) == len(text.encode())


def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = Tokenizer.from_file(tmp_path)
    assert again.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])
    assert again.vocab_size == tokenizer.vocab_size
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.encode(TEXTS[0], add_special_tokens=False) == tokenizer.encode(TEXTS[0])
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 1, 2)


def test_what_cannot_be_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(TokenizerError, match="at least 266"):
        Tokenizer.train(TEXTS, 265)
    with pytest.raises(TokenizerError, match="there is no"):
        Tokenizer.from_file(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match="not a tokenizer"):
        Tokenizer.from_file(tmp_path)


def changed(tokenizer: Tokenizer, tmp_path, **parts) -> str:
    description = {**json.loads(tokenizer.to_json()), **parts}
    (tmp_path / "changed.json").write_text(json.dumps(description))
    return str(tmp_path / "changed.json")


def test_truncation_and_padding_of_a_file_are_switched_off_and_told(tokenizer, tmp_path):
    cut = {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0}
    fill = {"strategy": {"Fixed": 99}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 2}
    fill |= {"pad_type_id": 0, "pad_token": "x"}
    text = "word " * 1000
    for parts in ({"truncation": cut}, {"padding": fill}, {"truncation": cut, "padding": fill}):
        again = Tokenizer.from_file(changed(tokenizer, tmp_path, **parts))
        assert again.decode(again.encode(text)) == text
        assert again.encode("a") == tokenizer.encode("a")
        assert len(again.notes) == len(parts)
        assert json.loads(again.to_json())["truncation"] is None
    assert tokenizer.notes == ()


@pytest.mark.parametrize("normalizer", [{"type": "Lowercase"}, {"type": "NFD"}, {"type": "NFKC"}, {"type": "NFC"}])
def test_a_tokenizer_that_changes_text_is_refused(tokenizer, tmp_path, normalizer):
    with pytest.raises(TokenizerError, match="changes text"):
        Tokenizer.from_file(changed(tokenizer, tmp_path, normalizer=normalizer))


def test_a_tokenizer_that_puts_a_space_in_front_is_refused(tokenizer, tmp_path):
    level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    with pytest.raises(TokenizerError, match="changes text"):
        Tokenizer.from_file(changed(tokenizer, tmp_path, pre_tokenizer=level))
