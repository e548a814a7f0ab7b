"""From text to numbers: small stories, characters, byte pairs, and a row of numbers for each token.

    python text_tokens.py       a worked example to follow with a pencil, and the gradient check
    text_tokens.ipynb           the same on the whiteboard

Source: byte pairs are Sennrich et al. 2016 (arXiv:1508.07909), on bytes as in DeepSeek-V3 (arXiv:2412.19437, 4.1).
Letters: N tokens (any leading axes), V vocabulary, D model width.

The stories are ours: 224 sentences, each with a known probability. So it is known how well anybody can predict them.
"""

from collections import Counter
from functools import cache
from itertools import pairwise

import numpy as np

DOES = {  # what each actor likes to do: three times in four the first, otherwise the second
    "cat": ("sat", "slept"),
    "dog": ("ran", "sat"),
    "owl": ("sang", "slept"),
    "fox": ("ran", "sang"),
}
HOME = {"cat": "on the mat", "dog": "at the gate", "owl": "in the oak", "fox": "by the lake"}
OFTEN = 0.75  # how often an actor does the first thing, and how often it does it at home


@cache
def sentence_chances() -> dict[str, float]:
    """List every sentence of the stories with its probability: actor, perhaps a clause, what it does, where.

        P = 1/4 * (1/2, or 1/2 * 1/2 * 1/3 with a clause) * (3/4 or 1/4) * (3/4 at home, or 1/12 at another's)

    Returns:
        224 sentences, each with its full stop and a blank after it; the probabilities sum to one.
    """
    chances = {}
    for actor, acts in DOES.items():
        others = [name for name in DOES if name != actor]
        clauses = {"": 0.5, **{f"that {sense} the {name} ": 1 / 12 for sense in ("saw", "heard") for name in others}}
        places = {HOME[actor]: OFTEN, **{HOME[name]: (1 - OFTEN) / 3 for name in others}}
        for clause, p_clause in clauses.items():
            for act, p_act in zip(acts, (OFTEN, 1 - OFTEN)):
                for place, p_place in places.items():
                    chances[f"the {actor} {clause}{act} {place}. "] = p_clause * p_act * p_place / len(DOES)
    return chances


def tell_stories(rng: np.random.Generator, n_sentences: int) -> str:
    """Draw sentences one after the other, each independent of those before it."""
    sentences, chances = zip(*sentence_chances().items())
    edges = np.cumsum(chances)  # a number between 0 and 1 falls between two edges; the sentence is that between them
    drawn = np.searchsorted(edges, rng.random(n_sentences) * edges[-1], side="right")
    return "".join(sentences[i] for i in drawn)


def story_floor() -> float:
    """Say how surprised, in nats per character, even a reader is who knows all of `sentence_chances`.

    entropy of a sentence / its mean length        (no model can be below it on long texts)
    """
    sentences, chances = zip(*sentence_chances().items())
    p = np.array(chances)
    return float(-(p @ np.log(p)) / (p @ [len(s) for s in sentences]))


ALPHABET = "".join(sorted(set("".join(sentence_chances()))))  # the blank, the full stop, and the letters that occur


def encode_characters(text: str) -> np.ndarray:
    """Number each character by its place in `ALPHABET`.

    Raises:
        ValueError: a character that no story has.
    """
    strange = sorted(set(text) - set(ALPHABET))
    if strange:
        raise ValueError(f"{strange} occur in no story; the alphabet is {ALPHABET!r}, byte pairs take any text")
    return np.array([ALPHABET.index(c) for c in text], dtype=np.int64)


def decode_characters(tokens: np.ndarray) -> str:
    """Turn numbers back into text."""
    return "".join(ALPHABET[t] for t in tokens)


def merge_pair(tokens: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """Replace the pair by `new` wherever it stands, from left to right; a token is used once."""
    merged, i = [], 0
    while i < len(tokens):
        here = tuple(tokens[i : i + 2]) == pair
        merged.append(new if here else tokens[i])
        i += 2 if here else 1
    return merged


def learn_merges(text: str, n_merges: int) -> list[tuple[int, int]]:
    """Find the pairs worth a token of their own: merge the most frequent pair, and again.

    Args:
        n_merges: at most so many; fewer when no pair occurs twice. Merge i becomes token 256 + i.
    Returns:
        the pairs in the order of their merging. Ties go to the pair that stands first in the text.
    """
    tokens, merges = list(text.encode()), []
    for i in range(n_merges):
        counts = Counter(pairwise(tokens))
        if not counts or max(counts.values()) < 2:
            break
        pair = max(counts, key=lambda p: counts[p])  # of equals, the first that was counted
        merges.append(pair)
        tokens = merge_pair(tokens, pair, 256 + i)
    return merges


def encode_pairs(text: str, merges: list[tuple[int, int]]) -> list[int]:
    """Cut any text into tokens: start from its bytes, apply the merges in the order in which they were learned."""
    tokens = list(text.encode())
    for i, pair in enumerate(merges):
        tokens = merge_pair(tokens, pair, 256 + i)
    return tokens


def spell_tokens(merges: list[tuple[int, int]]) -> list[bytes]:
    """Spell every token of the vocabulary in bytes: 256 bytes themselves, then each merge as its two parts joined."""
    pieces = [bytes([b]) for b in range(256)]
    for left, right in merges:
        pieces.append(pieces[left] + pieces[right])
    return pieces


def decode_pairs(tokens: list[int], merges: list[tuple[int, int]]) -> str:
    """Join the spellings; bytes that are no valid text (half a letter, say) become the replacement sign."""
    pieces = spell_tokens(merges)
    return b"".join(pieces[t] for t in tokens).decode(errors="replace")


def embed_forward(token_N: np.ndarray, embed_tokens_VD: np.ndarray) -> tuple[np.ndarray, tuple]:
    """Give each token its row of the table.

        x_n = embed_tokens[token_n]        (a product with a one-hot row, without the product)

    Returns:
        x_ND
    Raises:
        ValueError: a token outside the table (a negative one would count from the end, in silence).
    """
    V = len(embed_tokens_VD)
    if token_N.size and not 0 <= token_N.min() <= token_N.max() < V:
        raise ValueError(f"tokens {token_N.min()}..{token_N.max()} leave the table of {V} rows; another tokenizer?")
    return embed_tokens_VD[token_N], (token_N, V)


def embed_backward(dx_ND: np.ndarray, cache: tuple) -> np.ndarray:
    """Send each row's gradient to the row of the table that it came from; a token that occurs twice gets the sum.

    Returns:
        dembed_tokens_VD: zero in the rows of tokens that did not occur.
    """
    token_N, V = cache
    dembed_tokens_VD = np.zeros((V, dx_ND.shape[-1]), dx_ND.dtype)
    np.add.at(dembed_tokens_VD, token_N, dx_ND)  # `d[token] += dx` would keep the last of two equal tokens only
    return dembed_tokens_VD


def main() -> None:
    """Merge pairs of a short word, count how likely a sentence is, and look rows up."""
    text = "the cat sat on the mat"
    merges = learn_merges(text, 3)
    pieces = spell_tokens(merges)
    print(f"{text!r} has {len(text)} characters, so {len(text.encode())} bytes")
    for n, (left, right) in enumerate(merges, 1):
        cut = [pieces[t].decode() for t in encode_pairs(text, merges[:n])]
        print(f"  merge {n}: {pieces[left]!r} + {pieces[right]!r} is token {255 + n}: {len(cut)} tokens, {cut}")
    print(f"back again: {decode_pairs(encode_pairs(text, merges), merges)!r}")

    line = "the cat sat on the mat. "
    print(f"\nP({line!r}) = 1/4 cat * 1/2 no clause * 3/4 sat * 3/4 at home = {sentence_chances()[line]:.4f} = 9/128")
    print(f"all {len(sentence_chances())} sentences together: {sum(sentence_chances().values()):.6f}")
    print(f"nobody predicts these stories better than {story_floor():.4f} nats a character")
    print(f"three of them: {tell_stories(np.random.default_rng(0), 3)}")

    table, token = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), np.array([2, 0, 2])
    x, cache = embed_forward(token, table)
    dtable = embed_backward(np.array([[1.0, 0.0], [10.0, 0.0], [100.0, 0.0]]), cache)
    print(f"\ntokens 2, 0, 2 of a table with rows (1, 2), (3, 4), (5, 6) are {x.tolist()}")
    print(f"gradients 1, 10, 100 in the first coordinate go to the rows as {dtable[:, 0].tolist()}: row 2 gets 1 + 100")
    step = 1e-6 * np.random.default_rng(1).standard_normal(table.shape)
    weight = np.array([[1.0, 0.0], [10.0, 0.0], [100.0, 0.0]])
    up, down = (np.sum(weight * embed_forward(token, table + s)[0]) for s in (step, -step))
    print(f"gradient check: central difference / by hand = {(up - down) / 2 / np.sum(dtable * step):.8f}")


if __name__ == "__main__":
    main()
