"""Supervised fine-tuning: the same cross-entropy as ever, on the tokens of the answers and on no others.

Run it:    python supervised_fine_tuning.py
Notebook:  supervised_fine_tuning.ipynb
Source:    arXiv:2412.19437, section 5.1 (packed with sample masking); the markers are those of its tokenizer.
Letters:   B packed rows, T tokens of a row, S = T - 1 rows that predict, V vocabulary.

Three things decide whether it is right, and none of them crashes when it is wrong. The mask belongs to the token that
is *predicted*, so it moves by one place against the token that is read. Dialogues that share a row must not see each
other. And the sum over tokens is divided once, by the tokens of the whole batch, however many pieces it came in.
"""

from typing import NamedTuple

import numpy as np
from token_policy import (
    ALPHABET,
    END,
    PAD,
    Adam,
    PolicyWeights,
    decode_tokens,
    encode_text,
    measure_accuracy,
    policy_backward,
    policy_forward,
    read_windows,
    sorting_problems,
    token_log_probs_backward,
    token_log_probs_forward,
    window_of,
)

IGNORE = -100  # the target of a row that does not count, as in chapter 04
BOS, USER, ASSISTANT, EOS = "<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"


class Turn(NamedTuple):
    """One message of a dialogue; the role is system, user or assistant."""

    role: str
    text: str


def render_dialogue(turns: list[Turn]) -> list[tuple[str, bool]]:
    """Write a dialogue as DeepSeek-V3's template has it: pieces of text, each with whether it is to be learned.

        BOS system <User> question <Assistant> answer EOS <User> ...

    The answer and the EOS after it count: a model that never learns its EOS never stops. The marker <Assistant> does
    not: whoever asks writes it.

    Raises:
        ValueError: a role that the template lacks, a system message that is not the first, or no answer to learn.
    """
    pieces = [(BOS, False)]
    for i, (role, text) in enumerate(turns):
        if role == "system" and i == 0:
            pieces.append((text, False))
        elif role == "user":
            pieces += [(USER, False), (text, False), (ASSISTANT, False)]
        elif role == "assistant":
            pieces += [(text, True), (EOS, True)]
        else:
            raise ValueError(f"turn {i} is of {role!r}; the template has user, assistant, and system as the first turn")
    if not any(learned for _, learned in pieces):
        raise ValueError(f"{len(turns)} turns and no answer among them: there is nothing to learn")
    return pieces


class Dialogue(NamedTuple):
    """A dialogue as tokens, and which of them are to be learned."""

    token_T: np.ndarray
    answer_T: np.ndarray


def sorting_dialogue(question: str, answer: str) -> Dialogue:
    """Write one question and answer of the sorting task as a dialogue: only the answer and its END are learned."""
    token_T = np.array(encode_text(question + answer))
    return Dialogue(token_T, np.arange(len(token_T)) >= len(question))


def answer_targets(token_BT: np.ndarray, answer_BT: np.ndarray) -> np.ndarray:
    """Shift tokens and mask together: row i is trained on token i + 1 if token i + 1 is of an answer."""
    return np.where(answer_BT, token_BT, IGNORE)[:, 1:]


class Packed(NamedTuple):
    """Several dialogues in a row."""

    token_BT: np.ndarray
    answer_BT: np.ndarray
    document_BT: np.ndarray  # number of the dialogue within its row, -1 for padding
    position_BT: np.ndarray  # counted from 0 within every dialogue


def pack_dialogues(dialogues: list[Dialogue], length: int) -> Packed:
    """Put dialogues into rows of `length` tokens: longest first, each into the first row with room; none is cut.

    Raises:
        ValueError: a dialogue is longer than a row.
    """
    rows: list[list[Dialogue]] = []
    for number, dialogue in sorted(enumerate(dialogues), key=lambda d: -len(d[1].token_T)):
        need = len(dialogue.token_T)
        if need > length:
            raise ValueError(f"dialogue {number} has {need} tokens, a row only {length}; lengthen the rows or drop it")
        home = next((row for row in rows if sum(len(d.token_T) for d in row) + need <= length), None)
        if home is None:
            rows.append(home := [])
        home.append(dialogue)
    packed = Packed(*(np.full((len(rows), length), fill) for fill in (PAD, False, -1, 0)))
    for b, row in enumerate(rows):
        start = 0
        for document, (token_T, answer_T) in enumerate(row):
            place = slice(start, start := start + len(token_T))
            packed.token_BT[b, place], packed.answer_BT[b, place] = token_T, answer_T
            packed.document_BT[b, place], packed.position_BT[b, place] = document, np.arange(len(token_T))
    return packed


def attention_mask(document_T: np.ndarray) -> np.ndarray:
    """Say what row i of a packed row may attend to: not later, and of its own dialogue (sample masking)."""
    same_TT = document_T[:, None] == document_T[None, :]
    return np.tril(same_TT) & (document_T >= 0)[:, None]


def masked_loss_forward(
    logits_BSV: np.ndarray, target_BS: np.ndarray, divisor: float | None = None
) -> tuple[float, tuple]:
    """Average -log pi(target) over the rows that count: L = -1/divisor sum log pi.

    Args:
        divisor: how many rows count in the *whole* batch, when this is a piece of it; those here when None.
    Raises:
        ValueError: no row counts.
    """
    counted_BS = target_BS != IGNORE
    if divisor is None:
        divisor = int(counted_BS.sum())
    if divisor <= 0:
        raise ValueError("no token of an answer in this batch: nothing to divide by; a mask that is off by a turn?")
    logp_BS, cache = token_log_probs_forward(logits_BSV, np.where(counted_BS, target_BS, PAD))
    weight_BS = np.where(counted_BS, -1 / divisor, 0.0)
    return float((weight_BS * logp_BS).sum()), (weight_BS, cache)


def masked_loss_backward(dloss: float, cache: tuple) -> np.ndarray:
    """Return dlogits_BSV: (probability - one-hot) / divisor where a row counts, exactly 0 where not."""
    weight_BS, logp_cache = cache
    return token_log_probs_backward(dloss * weight_BS, logp_cache)


def fine_tuning_gradient(
    weights: PolicyWeights, packed: Packed, divisor: float | None = None
) -> tuple[float, PolicyWeights]:
    """Compute loss and gradient of packed dialogues; the window sees its own dialogue only."""
    window_BSW = read_windows(packed.token_BT, window_of(weights), packed.document_BT)[:, :-1]
    logits_BSV, cache = policy_forward(weights, window_BSW)
    target_BS = answer_targets(packed.token_BT, packed.answer_BT)
    loss, loss_cache = masked_loss_forward(logits_BSV, target_BS, divisor)
    return loss, policy_backward(masked_loss_backward(1.0, loss_cache), cache)


def sorting_dialogues(prompt_BT: np.ndarray) -> list[Dialogue]:
    """Write the questions with their right answers as dialogues."""
    texts = [decode_tokens(row) for row in prompt_BT]
    return [sorting_dialogue(text, "".join(sorted(text[:3])) + ALPHABET[END]) for text in texts]


def warm_start(rng: np.random.Generator, n_steps: int = 60) -> PolicyWeights:
    """Train a policy on 48 solved questions for a few steps: right now and then, which is what rewards need."""
    weights, dialogues = PolicyWeights.init(rng), sorting_dialogues(sorting_problems()[0][:48])
    adam = Adam(weights)
    for _ in range(n_steps):
        packed = pack_dialogues([dialogues[i] for i in rng.integers(0, len(dialogues), 32)], 8)
        weights = adam.step(weights, fine_tuning_gradient(weights, packed)[1])
    return weights


def main() -> None:
    """Print a dialogue with its mask and its targets; pack; show that packing changes nothing; train for seconds."""
    turns = [Turn("system", "Sort."), Turn("user", "2 0 1"), Turn("assistant", "0 1 2")]
    for text, learned in render_dialogue(turns):
        print(f"  {'learned' if learned else '   -   '}  {text}")
    one = sorting_dialogue("201>", "012.")
    target = answer_targets(one.token_T[None], one.answer_T[None])[0]
    print("reads   ", " ".join(ALPHABET[t] for t in one.token_T[:-1]))
    print("predicts", " ".join("-" if t == IGNORE else ALPHABET[t] for t in target), "  (the row of > is the first)")

    rng = np.random.default_rng(0)
    weights, (train, held_out) = PolicyWeights.init(rng), sorting_problems()
    dialogues = sorting_dialogues(train)
    packed, apart = pack_dialogues(dialogues[:12], 32), pack_dialogues(dialogues[:12], 8)
    (loss, gradient), (loss_apart, gradient_apart) = (fine_tuning_gradient(weights, p) for p in (packed, apart))
    gap = max(np.abs(a - b).max() for a, b in zip(gradient, gradient_apart))
    rows = len(packed.token_BT), len(apart.token_BT)
    print(f"12 dialogues in {rows[0]} rows or in {rows[1]}: loss {loss:.6f} and {loss_apart:.6f}")
    print(f"  largest difference of a gradient {gap:.0e}")
    adam = Adam(weights)
    for step in range(121):
        if step % 40 == 0:
            right = measure_accuracy(weights, train), measure_accuracy(weights, held_out)
            print(f"step {step:>3}: right {right[0]:.0%} of the questions trained on, {right[1]:.0%} held out")
        few = pack_dialogues([dialogues[i] for i in rng.integers(0, len(dialogues), 32)], 32)
        weights = adam.step(weights, fine_tuning_gradient(weights, few)[1])


if __name__ == "__main__":
    main()
