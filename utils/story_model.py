"""The trained model of the book, for notebooks: chapter 06 opens it, words go in, every inner number can be looked at.

    from utils.story_model import open_book
    book = open_book()
    seen = book.read("The cat that saw the dog sat.\\nWho sat?")
    seen.words; seen.attention[2][0]           layer 2, head 0: [S, S], a row a reader

The model is chapter 06's (NumPy, float64), the weights are those of book_model/, made by `make book`.
Letters: S tokens, L layers, H heads, C latent, N MoE layers, A chosen experts, V vocabulary, D model width.
"""

# ruff: noqa: SIM905   (a list of words is read more easily as words)

import json
import re
import sys
from collections.abc import Iterator
from copy import copy
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.story_book import tell_story
from utils.story_words import ACTS, ANIMALS, COLOURS, PLACES, PRONOUN, THINGS

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "book_model"
sys.path.append(str(ROOT / "06_whole_model"))  # behind the notebook's own chapter

KINDS = {
    "name": {*PRONOUN, *ANIMALS},
    "verb": {
        *ACTS,
        *ACTS.values(),
        *"was were is went walked came found took picked dropped gave saw said has".split(),
    },
    "place": set(PLACES),
    "thing": {*THINGS, *COLOURS},
    "small word": set(
        "the a an in at on to by of and that who so too there then she he it with for Did Where Who".split()
    ),
}


class Reading(NamedTuple):
    """What the model did with a text; the first token is the one that opens every document."""

    tokens: list[int]
    words: list[str]
    attention: np.ndarray  # [L, H, S, S]
    content: np.ndarray  # [L, H, S, S]: scores before the softmax, the part of what is said
    rope: np.ndarray  # [L, H, S, S]: and the part of where it stands
    latent: np.ndarray  # [L, S, C]: what the cache keeps
    chosen: np.ndarray  # [N, S, A]: experts of each token in each MoE layer
    inputs: np.ndarray  # [L, S, D]: what each attention reads, normed
    logits: np.ndarray  # [S, V]


class Book:
    """The model with its words."""

    def __init__(self, folder: Path = FOLDER) -> None:
        """Open a folder: config, weights, tokenizer."""
        from checkpoint import load_checkpoint
        from tokenizers import Tokenizer

        self.model = load_checkpoint(folder)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.opening = json.loads((folder / "config.json").read_text(encoding="utf-8"))["bos_token_id"]

    def with_weights(self, changed: dict[str, np.ndarray]) -> "Book":
        """Return the same book with some arrays in place of its own."""
        other = copy(self)
        other.model = self.model._replace(weights={**self.model.weights, **changed})
        return other

    def encode(self, text: str) -> list[int]:
        """Turn a text into tokens, the opening one first."""
        return [self.opening, *self.tokenizer.encode(text, add_special_tokens=False).ids]

    def decode(self, tokens: list[int]) -> str:
        """Turn tokens back into text."""
        return self.tokenizer.decode([int(token) for token in tokens])

    def guess(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """From the third token of a text on: what the main model holds likeliest, and what the module had drafted."""
        from model import predict_logits

        logits, drafts = predict_logits(self.model, np.array([self.encode(text)]))
        return logits[0, 1:].argmax(axis=1), drafts[0].argmax(axis=1)

    def write(self, text: str, n_new: int, rule=None, n_drafts: int = 0):
        """Continue a text by so many tokens, by a rule of chapter 04 (greedily without): the tokens, and the drafts."""
        from generation import write_tokens
        from speculative_decoding import GreedyRule

        return write_tokens(self.model, self.encode(text), n_new, rule or GreedyRule(), n_drafts)

    def spell(self, tokens: list[int]) -> list[str]:
        """Spell each token by itself, blanks taken off; the opening one is a dot, a line end an arrow."""
        shown = [self.tokenizer.decode([int(t)]).replace("\n", "↵").strip() or "·" for t in tokens]
        return ["·" if token == self.opening else word for token, word in zip(tokens, shown)]

    def read(self, text: str) -> Reading:
        """Run the main model over a text and keep what it did on the way."""
        from decoupled_rope import split_scores
        from model import hidden_forward

        tokens = self.encode(text)
        hidden, (_, caches, _, _) = hidden_forward(self.model, np.array([tokens]))
        parts = [split_scores(layer.attention) for layer in caches]
        return Reading(
            tokens,
            self.spell(tokens),
            np.stack([layer.attention[6][4][0] for layer in caches]),
            np.stack([content[0] for content, _ in parts]),
            np.stack([rope[0] for _, rope in parts]),
            np.stack([layer.attention[5][0] for layer in caches]),
            np.stack([layer.mlp.routing.index_NA for layer in caches if layer.load_E is not None]),
            np.stack([layer.attention[4][0][0] for layer in caches]),
            hidden[0] @ self.model.weights["lm_head.weight"].T,
        )


class Asked(NamedTuple):
    """A story up to the word that answers its question, that word, and the other that it might have been."""

    text: str
    answer: str
    other: str


@cache
def open_book() -> Book:
    """Open the model once."""
    return Book()


def kind_of(word: str) -> str:
    """Say what kind of word a token is: name, verb, place, thing, small word, sign, or other."""
    if not re.search(r"\w", word):
        return "sign"
    return next((kind for kind, words in KINDS.items() if word in words or word.lower() in words), "other")


def new_stories(n_stories: int, first: int = 0) -> Iterator:
    """Tell stories that the model has never read: of another seed than those of its training."""
    return (tell_story(1000, first + number) for number in range(n_stories))


def ask_who(n_asked: int) -> list[Asked]:
    """Ask "Who sat?" after new stories in which two people or two animals might have, and stop in front of the word."""
    asked: list[Asked] = []
    for story in new_stories(20 * n_asked):
        for question in story.questions:
            if question.kind == "who" and len(asked) < n_asked:
                *article, answer = question.key.split()
                told = f"{' '.join(story.sentences)}\n{question.text}{' The' if article else ''}"
                alike = [
                    actor
                    for actor in story.where
                    if actor != question.key and bool(actor[:4] == "the ") == bool(article)
                ]
                if alike:
                    asked.append(Asked(told, answer, alike[0].split()[-1]))
    return asked


def find_word(words: list[str], word: str) -> np.ndarray:
    """Where a word stands among the tokens; a word of several tokens is found by its first."""
    return np.array([i for i, w in enumerate(words) if w == word], dtype=int)
