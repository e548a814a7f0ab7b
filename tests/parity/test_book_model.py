"""The book's model read three times: by the package, by chapter 06 in NumPy, by the explorer in JavaScript."""

import base64
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from deepseek_v3.engine.generate import generate
from deepseek_v3.model_io import load
from utils.story_model import FOLDER, Book, find_word, kind_of, new_stories

TEXTS = [
    "The owl was in the barn. The fox was there too. The owl that saw the fox sat.\nWho sat? The",
    "def read_lines(path):\n    return",
]
NODE = Path(__file__).resolve().parent.parent / "explorer" / "read_models.mjs"


@pytest.fixture(scope="module")
def package():
    model, tokenizer = load(FOLDER, dtype=torch.float64)
    return model, tokenizer


@pytest.fixture(scope="module")
def book():
    return Book()


@pytest.mark.parametrize("text", TEXTS)
def test_the_chapter_reads_it_as_the_package_does(text, package, book):
    model, tokenizer = package
    ids = [tokenizer.bos_id, *tokenizer.encode(text)]
    assert book.encode(text) == ids
    with torch.no_grad():
        logits, drafts = model(torch.tensor([ids]), mtp=True)
    np.testing.assert_allclose(book.read(text).logits, logits[0].numpy(), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(book.guess(text)[1], drafts[0][0, :-1].argmax(-1).numpy())  # the last has no token
    new = book.write(text, 20, n_drafts=1).tokens[len(ids) :]
    assert new == [int(token) for token in generate(model, ids, max_new_tokens=20, stop_tokens=())]


def test_the_explorer_reads_it_as_the_package_does(package):
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node is not installed")
    job = {"models": [{"folder": str(FOLDER), "texts": TEXTS, "drafts": [1]}], "tokens": 12}
    done = subprocess.run([node, str(NODE)], input=json.dumps(job).encode(), capture_output=True, timeout=300)
    assert not done.returncode, done.stderr.decode()[-2000:]
    model, tokenizer = package
    (seen,) = json.loads(done.stdout)
    for text, found in zip(TEXTS, seen["texts"], strict=True):
        ids = tokenizer.encode(text)
        assert found["ids"] in (ids, [tokenizer.bos_id, *ids])
        with torch.no_grad():
            logits = model(torch.tensor([found["ids"]]))[0].numpy()
        packed = found["logits"]
        rows = np.frombuffer(base64.b64decode(packed["data"]), packed["type"]).reshape(packed["shape"])
        np.testing.assert_allclose(rows, logits, rtol=0, atol=1e-3)


def test_what_is_kept_of_a_reading_is_what_its_name_says(book):
    seen = book.read(TEXTS[0])
    n_tokens = len(seen.tokens)
    assert seen.words[:3] == ["·", "The", "owl"]
    np.testing.assert_allclose(seen.attention.sum(axis=-1), 1)
    scores = seen.content + seen.rope
    scores[..., np.triu(np.ones((n_tokens, n_tokens), bool), 1)] = -np.inf
    odds = np.exp(scores - scores.max(axis=-1, keepdims=True))
    np.testing.assert_allclose(odds / odds.sum(axis=-1, keepdims=True), seen.attention, atol=1e-12)
    assert seen.latent.shape == (4, n_tokens, book.model.config.kv_lora_rank)
    assert seen.chosen.shape == (3, n_tokens, book.model.config.num_experts_per_tok)
    assert list(find_word(seen.words, "owl")) == [2, 15]
    assert [kind_of(word) for word in ("owl", "sat", "barn", "The", ".", "self")] == [
        "name", "verb", "place", "small word", "sign", "other"
    ]  # fmt: skip
    assert next(new_stories(1)).text != next(new_stories(1, first=1)).text
