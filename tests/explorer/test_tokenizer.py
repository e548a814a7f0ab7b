"""The explorer's tokenizer against the `tokenizers` library: 2,000 strings of every kind, token by token."""

import json
import random

import pytest

from deepseek_v3.data.tokenizer import SPECIAL_TOKENS, Tokenizer

STRINGS = 2000
MIXED = (
    "def return self the of Tokenizer encode naïve café Straße 深度 求索 模型 ひらがな カタカナ привет κόσμε हिन्दी "
    "עברית العربية 한국어 e\u0301 n\u0303 🙂 👩‍👩‍👧 🇩🇪 x² ½ ① Ⅷ १२३ ٣٤ 1234567 3.14 1e-7 don't I'll we're ... !? → "
    '"q" € © ™ a_b #tag @x C:\\dir\\ $x_i^2$ <｜User｜> <｜Assistant｜> <think> </think> <｜end▁of▁sentence｜> <｜User'
)
WORDS = MIXED.split(" ")
BLANKS = ("  ", "    ", "\t", "\n", "\n\n", "\r\n", "\r", " \n", "\n ", "\x0b", "\x0c", "\x1c", "\u0085", "\u00a0")
SPACES = [*" " * 6, *[""] * 4, *BLANKS, "\u180e", "\u200b", "\u2028", "\u3000", "\ufeff"]
RANGES = [
    *((32, 127), (0, 32), (0xA0, 0x250), (0x300, 0x370), (0x370, 0x530), (0x900, 0x980), (0x2000, 0x2070)),
    *((0x2190, 0x2200), (0x3000, 0x3100), (0x4E00, 0x9FA6), (0xAC00, 0xD7A4), (0xFF00, 0xFF60), (0x1F300, 0x1F600)),
]


def make_string(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.6:
        return "".join(rng.choice(WORDS) + rng.choice(SPACES) for _ in range(rng.randint(0, 14)))
    if kind < 0.8:
        low, high = rng.choice(RANGES)
        return "".join(chr(rng.randrange(low, high)) for _ in range(rng.randint(1, 30)))
    ranges = rng.choices(RANGES, k=rng.randint(1, 40))
    return "".join(chr(rng.randrange(*r)) + rng.choice(SPACES) * rng.randint(0, 2) for r in ranges)


def byte_level(*, use_regex: bool) -> dict:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def make_tokenizers(released: dict) -> list[dict]:
    """The released rules, GPT-2's, digits one by one, and words that need no merge."""
    model, digits = released["model"], {"type": "Digits", "individual_digits": True}
    single = {"type": "Sequence", "pretokenizers": [digits, byte_level(use_regex=False)]}
    return [
        released,
        {**released, "pre_tokenizer": byte_level(use_regex=True)},
        {**released, "pre_tokenizer": single},
        {**released, "model": {**model, "ignore_merges": True, "merges": model["merges"][:100]}},
    ]


@pytest.fixture(scope="module")
def seen(run_node, tmp_path_factory):
    """Strings, the package's tokenizers, which are the library's, and the explorer's answers."""
    rng, folder = random.Random(11), tmp_path_factory.mktemp("tokenizers")
    texts = [make_string(rng) for _ in range(STRINGS)]
    released = json.loads(Tokenizer.train(texts[::2], 900).to_json())
    files = []
    for i, description in enumerate(make_tokenizers(released)):
        files.append(folder / f"{i}.json")
        files[-1].write_text(json.dumps(description), encoding="utf-8")
    refused = [
        {**released, "normalizer": {"type": "NFC"}},
        {**released, "model": {**released["model"], "type": "Unigram"}},
        {**released, "pre_tokenizer": {"type": "Metaspace"}},
        {**released, "normalizer": {"type": "Sequence", "normalizers": []}},
    ]
    answers = run_node("tokenize.mjs", {"files": list(map(str, files)), "texts": texts, "refused": refused})
    return texts, [Tokenizer.from_file(file) for file in files], answers


def test_two_thousand_strings_have_the_librarys_tokens(seen):
    texts, ours, answers = seen
    for tokenizer, results in zip(ours, answers["results"]):
        for text, result in zip(texts, results):
            assert result["ids"] == tokenizer.encode(text), repr(text)
            assert result["special"] == tokenizer.encode(text, special=True), repr(text)


def test_every_string_comes_back(seen):
    texts, ours, answers = seen
    for tokenizer, results in zip(ours, answers["results"]):
        for text, result in zip(texts, results):
            assert result["back"] == text == tokenizer.decode(result["ids"])
            assert result["shown"] == text
            assert result["pieces"] == len(result["ids"])


def test_added_tokens_were_among_the_strings(seen):
    _, ours, answers = seen
    found = {i for result in answers["results"][0] for i in result["special"] if ours[0].is_special(i)}
    assert len(found) == 5
    assert set(SPECIAL_TOKENS) >= {ours[0].decode([i], skip_special=False) for i in found}


def test_a_tokenizer_that_works_otherwise_is_refused_in_words(seen):
    changes_text, not_bpe, other_rules, as_released = seen[2]["refused"]
    assert "changes text" in changes_text
    assert "not byte-level BPE" in not_bpe
    assert "Metaspace" in other_rules
    assert as_released == seen[1][0].vocab_size
