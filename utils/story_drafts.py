"""Chapter 00's sentences for chapter 04: what the best reader pays at each row, however far ahead it must guess.

A sentence is a document of its own. The 224 sentences and their probabilities are known, so the floor of every guess
is a sum over a table: among the sentences that begin alike, how many, by weight, go on like this one?
"""

from typing import NamedTuple

import numpy as np

from utils.story_task import story_words

CROWD = 1000  # documents of the places that are filled up: one each, so that no row reaches from one to the next


class Stories(NamedTuple):
    """All sentences: `word_NS` with -1 after the full stop, and how often each is told."""

    names: list[str]
    word_NS: np.ndarray
    chance_N: np.ndarray

    @property
    def tokens(self) -> np.ndarray:
        """Word numbers, 0 where a sentence has ended: what a model can read."""
        return np.maximum(self.word_NS, 0)

    @property
    def document(self) -> np.ndarray:
        """0 in the sentence; every place after its end is a document of its own."""
        return np.where(self.word_NS >= 0, 0, CROWD + np.arange(self.word_NS.shape[1]))

    def spell(self, tokens) -> list[str]:
        """The words of some tokens."""
        return [self.names[t] for t in tokens]


def load_stories() -> Stories:
    """Take the sentences of chapter 00 as words."""
    return Stories(*story_words())


def draw_stories(rng: np.random.Generator, stories: Stories, B: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Draw B sentences as they are told: (tokens_BS, document_BS), as the losses of chapter 04 want them."""
    row = rng.choice(len(stories.chance_N), size=B, p=stories.chance_N)
    return stories.tokens[row], stories.document[row]


def floor_rows(stories: Stories, depth: int, *, told: bool = True) -> np.ndarray:
    """What the best reader pays at each row of a depth, [N, S - 1 - depth]; NaN where the row has no target.

    Args:
        told: the row has read the words up to its depth, as in DeepSeek's chain; otherwise only up to its own place.
    """
    word, chance = stories.word_NS, stories.chance_N
    N, S = word.shape
    nats = np.full((N, S - 1 - depth), np.nan)
    for i in range(S - 1 - depth):
        seen, target = word[:, : i + 1 + depth * told], word[:, i + 1 + depth]
        for n in np.flatnonzero(target >= 0):
            alike = (target >= 0) & (seen == seen[n]).all(axis=1)
            nats[n, i] = -np.log(chance[alike & (target == target[n])].sum() / chance[alike].sum())
    return nats


def price_rows(logits_NSV: np.ndarray, stories: Stories, depth: int) -> np.ndarray:
    """What a model pays at each row of a depth, [N, S - 1 - depth]; NaN where the row has no target."""
    shifted = logits_NSV - logits_NSV.max(axis=-1, keepdims=True)
    log_prob = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    target = stories.word_NS[:, depth + 1 :]
    paid = -np.take_along_axis(log_prob, np.maximum(target, 0)[..., None], axis=-1)[..., 0]
    return np.where(target >= 0, paid, np.nan)


def mean_price(nats: np.ndarray, stories: Stories) -> float:
    """The mean over all rows that count, each sentence as often as it is told: exact, nothing is sampled."""
    counted = ~np.isnan(nats)
    return float((stories.chance_N @ np.where(counted, nats, 0)).sum() / (stories.chance_N @ counted).sum())
