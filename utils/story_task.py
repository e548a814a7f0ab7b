"""Who sat? Short sentences with known actors, to train the layers of chapter 01 on in seconds.

Two forms, and the one who does it stands in another place in each:

    the cat that saw the dog sat        the cat sat
    the cat saw the dog that sat        the dog sat

A row of numbers is the word and its place, one-hot each, side by side: who reads rows can ask for both. The layers are
trained by the gradients that the chapter derives, and by nothing else.
"""

from pathlib import Path

import numpy as np

from utils.exercises import load_file

ACTORS, VERBS = ("cat", "dog", "owl", "fox"), ("sat", "ran", "sang", "slept")
WORDS = (*ACTORS, *VERBS, "the", "that", "saw")  # actors first: the number of an actor is its place in an answer
N_PLACES = 7
WIDTH = len(WORDS) + N_PLACES  # D of a row
FORMS = (("the", 0, "that", "saw", "the", 1, 2), ("the", 1, "saw", "the", 0, "that", 2))  # 0 does it, 1 is the other


def draw_sentences(rng: np.random.Generator, B: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw B sentences: word numbers [B, 7], and the two answers [B, 2]: who does it, and who is the other."""
    words, answers = [], []
    for _ in range(B):
        does, other = rng.permutation(len(ACTORS))[:2]
        parts = {0: ACTORS[does], 1: ACTORS[other], 2: VERBS[rng.integers(len(VERBS))]}
        words.append([WORDS.index(parts.get(p, p)) for p in FORMS[rng.integers(2)]])
        answers.append([does, other])
    return np.array(words), np.array(answers)


def spell_words(word_S: np.ndarray) -> list[str]:
    """The words of one sentence."""
    return [WORDS[w] for w in word_S]


def show_rows(word_BS: np.ndarray) -> np.ndarray:
    """Word and place side by side, [B, S, D]."""
    places = np.broadcast_to(np.eye(N_PLACES), (*word_BS.shape, N_PLACES))
    return np.concatenate([np.eye(len(WORDS))[word_BS], places], axis=-1)


def judge_answers(out_BSU: np.ndarray, answer_BG: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Read G answers from the last row, four coordinates each: logits of the four actors.

    Returns:
        the mean surprise, the share of right answers [G], and the gradient of out.
    """
    B, G = answer_BG.shape
    logits = out_BSU[:, -1, : 4 * G].reshape(B, G, 4)
    prob = np.exp(logits - logits.max(axis=-1, keepdims=True))
    prob /= prob.sum(axis=-1, keepdims=True)
    one_hot = np.eye(4)[answer_BG]
    dout_BSU = np.zeros_like(out_BSU)
    dout_BSU[:, -1, : 4 * G] = ((prob - one_hot) / (B * G)).reshape(B, 4 * G)
    loss = -float(np.log(np.sum(prob * one_hot, axis=-1)).mean())
    return loss, (logits.argmax(axis=-1) == answer_BG).mean(axis=0), dout_BSU


def step_adam(arrays: dict, gradients: dict, moments: dict, step: int, rate: float) -> None:
    """One step of Adam (chapter 00), in place."""
    for name, array in arrays.items():
        first, second = moments.setdefault(name, (np.zeros_like(array), np.zeros_like(array)))
        first += 0.1 * (gradients[name] - first)
        second += 0.05 * (gradients[name] ** 2 - second)
        array -= rate * first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.95**step)) + 1e-8)


def train_who(weights, forward, backward, *, n_answers: int = 1, steps: int = 300, seed: int = 0, rate: float = 0.03):
    """Train a layer in place on 32 sentences a step; return the losses and the share of right answers, step by step.

    Args:
        weights: a dataclass of arrays.
        forward: (rows, weights) -> (out, cache); backward: (dout, cache) -> (drows, gradients in a class like weights).
        n_answers: 1 asks who does it, 2 asks for the other one too.
    """
    rng, moments, losses, right = np.random.default_rng(seed), {}, [], []
    for step in range(1, steps + 1):
        word, answer = draw_sentences(rng, 32)
        out, cache = forward(show_rows(word), weights)
        loss, share, dout = judge_answers(out, answer[:, :n_answers])
        losses.append(loss)
        right.append(share)
        step_adam(vars(weights), vars(backward(dout, cache)[1]), moments, step, rate)
    return np.array(losses), np.array(right)


def story_words() -> tuple[list[str], np.ndarray, np.ndarray]:
    """Chapter 00's 224 sentences as words.

    Returns:
        the vocabulary, of which word 0 opens a sentence and 1 is its full stop; all sentences [224, 12], filled up with
        -1; their probabilities.
    """
    chapter = load_file(Path(__file__).resolve().parent.parent / "00_language_model" / "text_tokens.py")
    lines = [("^ " + s.replace(".", " .")).split() for s in chapter.sentence_chances()]
    names = ["^", ".", *sorted({w for line in lines for w in line} - {"^", "."})]
    table = np.full((len(lines), max(map(len, lines))), -1)
    for row, line in zip(table, lines):
        row[: len(line)] = [names.index(w) for w in line]
    return names, table, np.array(list(chapter.sentence_chances().values()))


def word_floors(table: np.ndarray, chance: np.ndarray, n_words: int) -> tuple[float, float]:
    """What a word must cost on average, exactly: who knows all sentences, and who knows what follows each word."""
    n_guesses = chance @ (table >= 0).sum(axis=1) - 1  # every word but the one that opens
    pairs = np.zeros((n_words, n_words))
    for row, p in zip(table, chance):
        row = row[row >= 0]
        np.add.at(pairs, (row[:-1], row[1:]), p)
    shares = pairs / np.maximum(pairs.sum(axis=1, keepdims=True), 1e-300)
    bigram = -np.sum(pairs[pairs > 0] * np.log(shares[pairs > 0])) / n_guesses
    return float(-(chance @ np.log(chance)) / n_guesses), float(bigram)
