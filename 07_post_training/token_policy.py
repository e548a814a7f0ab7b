"""A language model as a policy: it reads a prompt, writes an answer token by token, and can be asked how likely it was.

Run it:    python token_policy.py
Notebook:  token_policy.ipynb
Source:    the model is ours, small enough to watch; the logarithm of a probability as the handle of every loss of
           post-training: Williams 1992 (REINFORCE); its use in language models: arXiv:2402.03300, section 4.
Letters:   B answers (sequences), S rows that predict, T = S + 1 tokens, V vocabulary, W tokens of a window,
           D embedding width, F hidden width.

The task is to sort three digits: `201>` should be continued by `012.`, where the point ends the answer. The model is a
window of W tokens, an embedding, one hidden layer and a head:

    h = tanh(W_1 [e_{i-W+1} ; .. ; e_i] + b_1),   z = W_2 h,   pi(v | tokens up to i) = softmax(z)_v

Everything that post-training does to it goes through one number for each written token, log pi(token): supervised
fine-tuning, REINFORCE, GRPO and distillation differ only in the weight dL/d(log pi) that they hand back.
"""

from itertools import product
from typing import NamedTuple

import numpy as np

ALPHABET = "_.>0123456789"  # padding, the end of an answer, the end of a question, digits
PAD, END, ASK = 0, 1, 2


def encode_text(text: str) -> list[int]:
    """Look up the token numbers of a text in ALPHABET."""
    return [ALPHABET.index(letter) for letter in text]


def decode_tokens(tokens) -> str:
    """Turn token numbers back into text, padding left out."""
    return "".join(ALPHABET[t] for t in tokens if t != PAD)


class PolicyWeights(NamedTuple):
    """The arrays of the policy; gradients come in the same form."""

    embed_VD: np.ndarray
    hidden_FI: np.ndarray  # I = W * D, the embeddings of a window side by side
    bias_F: np.ndarray
    head_VF: np.ndarray

    @classmethod
    def init(cls, rng: np.random.Generator, hidden: int = 64, window: int = 7, width: int = 8) -> "PolicyWeights":
        """Draw weights so that the first answers are close to uniform."""
        V, wide = len(ALPHABET), window * width
        return cls(
            rng.standard_normal((V, width)),
            rng.standard_normal((hidden, wide)) / np.sqrt(wide),
            np.zeros(hidden),
            rng.standard_normal((V, hidden)) * 0.3 / np.sqrt(hidden),
        )


class Answers(NamedTuple):
    """What was written: whole sequences, which rows wrote, and how likely the writer found each token."""

    token_BT: np.ndarray  # prompt, answer, padding
    written_BS: np.ndarray  # row i counts: it chose token i + 1, the end token included
    logp_BS: np.ndarray  # log pi of token i + 1 when it was drawn; 0 where nothing was written


def read_windows(token_BT: np.ndarray, window: int, document_BT: np.ndarray | None = None) -> np.ndarray:
    """Give every row the last `window` tokens that it may see: itself and its past, of its own document.

    Args:
        document_BT: numbers of packed documents; what belongs to another one is seen as padding.
    Returns:
        window_BTW, the newest token last.
    """
    B, T = token_BT.shape
    place_TW = np.arange(T)[:, None] + np.arange(1 - window, 1)
    seen_BTW = np.where(place_TW >= 0, token_BT[:, place_TW.clip(0)], PAD)
    if document_BT is None:
        return seen_BTW
    return np.where(document_BT[:, place_TW.clip(0)] == document_BT[..., None], seen_BTW, PAD)


def policy_forward(weights: PolicyWeights, window_BSW: np.ndarray) -> tuple[np.ndarray, tuple]:
    """Compute the logits of the next token for every window: z = W_2 tanh(W_1 [e .. e] + b_1)."""
    input_BSI = weights.embed_VD[window_BSW].reshape(*window_BSW.shape[:-1], -1)
    hidden_BSF = np.tanh(input_BSI @ weights.hidden_FI.T + weights.bias_F)
    return hidden_BSF @ weights.head_VF.T, (weights, window_BSW, input_BSI, hidden_BSF)


def policy_backward(dlogits_BSV: np.ndarray, cache: tuple) -> PolicyWeights:
    """Return the gradient of every weight, from the gradient of the logits."""
    weights, window_BSW, input_BSI, hidden_BSF = cache
    flat = lambda x: x.reshape(-1, x.shape[-1])  # noqa: E731
    dinner_BSF = (dlogits_BSV @ weights.head_VF) * (1 - hidden_BSF**2)  # tanh' = 1 - tanh^2
    dinput_BSI = dinner_BSF @ weights.hidden_FI
    dembed_VD = np.zeros_like(weights.embed_VD)
    np.add.at(dembed_VD, window_BSW, dinput_BSI.reshape(*window_BSW.shape, -1))
    return PolicyWeights(
        dembed_VD,
        flat(dinner_BSF).T @ flat(input_BSI),
        flat(dinner_BSF).sum(axis=0),
        flat(dlogits_BSV).T @ flat(hidden_BSF),
    )


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Compute z_v - log sum_u exp(z_u) over the last axis, the largest logit taken out first."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def token_log_probs_forward(logits_BSV: np.ndarray, target_BS: np.ndarray) -> tuple[np.ndarray, tuple]:
    """Read off log pi of the token that was written after every row."""
    all_BSV = log_softmax(logits_BSV)
    logp_BS = np.take_along_axis(all_BSV, target_BS[..., None], axis=-1)[..., 0]
    return logp_BS, (np.exp(all_BSV), target_BS)


def token_log_probs_backward(dlogp_BS: np.ndarray, cache: tuple) -> np.ndarray:
    """Send one number a token back to the logits: dz = dlogp (one-hot of the token - probability)."""
    prob_BSV, target_BS = cache
    dlogits_BSV = -dlogp_BS[..., None] * prob_BSV
    own_BS1 = np.take_along_axis(dlogits_BSV, target_BS[..., None], axis=-1)
    np.put_along_axis(dlogits_BSV, target_BS[..., None], own_BS1 + dlogp_BS[..., None], axis=-1)
    return dlogits_BSV


def score_answers_forward(weights: PolicyWeights, token_BT: np.ndarray) -> tuple[np.ndarray, tuple]:
    """Ask the policy how likely every token after the first is: logp_BS, S = T - 1; all rows at once."""
    logits_BSV, policy_cache = policy_forward(weights, read_windows(token_BT, window_of(weights))[:, :-1])
    logp_BS, logp_cache = token_log_probs_forward(logits_BSV, token_BT[:, 1:])
    return logp_BS, (policy_cache, logp_cache)


def score_answers_backward(dlogp_BS: np.ndarray, cache: tuple) -> PolicyWeights:
    """Turn a weight for each token, dL/d(log pi), into the gradient of every array of the policy."""
    policy_cache, logp_cache = cache
    return policy_backward(token_log_probs_backward(dlogp_BS, logp_cache), policy_cache)


def window_of(weights: PolicyWeights) -> int:
    """How many tokens the policy sees: W = I / D."""
    return weights.hidden_FI.shape[1] // weights.embed_VD.shape[1]


def write_answers(
    weights: PolicyWeights, prompt_BT: np.ndarray, rng: np.random.Generator | None = None, n_new: int = 4
) -> Answers:
    """Continue every prompt by up to `n_new` tokens: drawn when there is an `rng`, else the likeliest.

    An answer ends with its END token; what would come after is padding and does not count as written.
    """
    token_BT, alive_B = prompt_BT, np.ones(len(prompt_BT), dtype=bool)
    written, logp = [np.zeros((len(prompt_BT), prompt_BT.shape[1] - 1), dtype=bool)], []
    for _ in range(n_new):
        logits_BV = policy_forward(weights, read_windows(token_BT, window_of(weights))[:, -1])[0]
        all_BV = log_softmax(logits_BV)
        # the largest of logit + Gumbel noise is a draw from the softmax
        noise_BV = 0 if rng is None else rng.gumbel(size=all_BV.shape)
        new_B = np.where(alive_B, (all_BV + noise_BV).argmax(axis=-1), PAD)
        logp.append(np.where(alive_B, np.take_along_axis(all_BV, new_B[:, None], axis=-1)[:, 0], 0.0)[:, None])
        written.append(alive_B[:, None])
        token_BT, alive_B = np.concatenate([token_BT, new_B[:, None]], axis=1), alive_B & (new_B != END)
    logp_BS = np.concatenate([np.zeros(written[0].shape), *logp], axis=1)
    return Answers(token_BT, np.concatenate(written, axis=1), logp_BS)


def read_answers(answers: Answers, n_prompt: int = 4) -> list[str]:
    """Return the text after every prompt of `n_prompt` tokens, the end token included when there is one."""
    return [decode_tokens(row[n_prompt:]) for row in answers.token_BT]


def sorting_problems(n_digits: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """List all questions `abc>` of digits below `n_digits`: three quarters to train on, and a quarter held out."""
    problems = np.array([encode_text("".join(map(str, abc)) + ">") for abc in product(range(n_digits), repeat=3)])
    order = np.random.default_rng(0).permutation(len(problems))
    cut = 3 * len(problems) // 4
    return problems[order[:cut]], problems[order[cut:]]


def solve_problems(prompt_BT: np.ndarray) -> np.ndarray:
    """Write the right answer after every question: token_BT of 8 tokens, the END token last."""
    answer = np.sort(prompt_BT[:, :3], axis=1)
    return np.concatenate([prompt_BT, answer, np.full((len(prompt_BT), 1), END)], axis=1)


class Adam:
    """Adam (arXiv:1412.6980) over the arrays of a NamedTuple: two running means for every weight."""

    def __init__(self, weights, rate: float = 3e-3):
        self.rate, self.count = rate, 0
        self.mean = [np.zeros_like(w) for w in weights]
        self.square = [np.zeros_like(w) for w in weights]

    def step(self, weights, gradient):
        """Return the weights after one step downhill."""
        self.count += 1
        new = []
        for i, (w, g) in enumerate(zip(weights, gradient)):
            self.mean[i] = 0.9 * self.mean[i] + 0.1 * g
            self.square[i] = 0.999 * self.square[i] + 0.001 * g * g
            mean, square = self.mean[i] / (1 - 0.9**self.count), self.square[i] / (1 - 0.999**self.count)
            new.append(w - self.rate * mean / (np.sqrt(square) + 1e-8))
        return type(weights)(*new)


def check_answers(token_BT: np.ndarray) -> np.ndarray:
    """Say which rows are a question with exactly its sorted answer and the END token."""
    return (token_BT == solve_problems(token_BT[:, :4])).all(axis=1)


def measure_accuracy(weights: PolicyWeights, prompt_BT: np.ndarray, rng: np.random.Generator | None = None) -> float:
    """Share of the questions that are answered right, greedily or by one drawn answer each."""
    return float(check_answers(write_answers(weights, prompt_BT, rng).token_BT).mean())


def main() -> None:
    """Ask an untrained policy, and follow the gradient of one written token."""
    rng = np.random.default_rng(0)
    weights = PolicyWeights.init(rng)
    train, held_out = sorting_problems()
    print(f"{len(train)} questions to train on, {len(held_out)} held out; {sum(w.size for w in weights)} parameters")
    answers = write_answers(weights, train[:4], rng)
    for prompt, text, logp in zip(train, read_answers(answers), answers.logp_BS):
        print(f"  {decode_tokens(prompt)}  ->  {text:<5} log-probability {logp.sum():.2f}")
    again, cache = score_answers_forward(weights, answers.token_BT)
    gap = np.abs((again - answers.logp_BS)[answers.written_BS]).max()
    print(f"asked again, all rows at once: the same log-probabilities to {gap:.0e}")
    dlogp = np.zeros_like(again)
    dlogp[0, 3] = -1.0  # lower the loss -log pi: make the first written token likelier
    step = PolicyWeights(*(w - 0.1 * g for w, g in zip(weights, score_answers_backward(dlogp, cache))))
    after = score_answers_forward(step, answers.token_BT)[0]
    before, now = np.exp(again[0, 3]), np.exp(after[0, 3])
    print(f"one step for the first token written: its probability {before:.3f} -> {now:.3f}")


if __name__ == "__main__":
    main()
