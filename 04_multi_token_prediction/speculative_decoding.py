"""Speculative decoding: the module drafts, the main model checks all drafts in one pass, the text stays the same.

Run it:    python speculative_decoding.py [training steps, 150 when not given]
Notebook:  speculative_decoding.ipynb
Source:    arXiv:2211.17192 (the rejection rule); arXiv:2412.19437, sections 2.2 and 5.4.3 (MTP as the draft).
Letters:   N sequences, K drafted tokens in a row, V vocabulary, S rows read at once, P prompt tokens.

One step, when rows 0 .. n-1 are read and x = t_n has been emitted but not read:
    draft    d_1 = MTP(h_{n-1}, E(x)),  d_2 = MTP(out of d_1's row, E(d_1)),  ...
    verify   one main pass over x, d_1 .. d_K at positions n .. n+K; its row j says what may stand where d_{j+1} stands
    accept   the longest prefix that the rule lets pass, and one token more from the main model itself
    roll back  both caches to the rows that were made of tokens that stayed
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np


class Session(Protocol):
    """What a model has to offer to be decoded: main rows, draft rows, and forgetting."""

    def read(self, tokens_S: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Append tokens to the main cache: (logits_SV, hidden_SD)."""
        ...

    def draft(self, hidden_SD: np.ndarray, tokens_S: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Append rows (h_i, t_{i+1}) to the draft cache: (logits_SV for t_{i+2}, out_SD)."""
        ...

    def roll_back(self, n_target: int, n_draft: int) -> None:
        """Keep the first rows of the main and of the draft cache."""
        ...


class Verdict(NamedTuple):
    """What a check of K drafts leaves: `token_NK1[n, : n_accepted_N[n] + 1]` is the text, -1 fills the rest."""

    token_NK1: np.ndarray
    n_accepted_N: np.ndarray


def softmax(logits: np.ndarray, temperature: float = 1.0, top_k: int = 0) -> np.ndarray:
    """Turn logits into the distribution to sample from; the same shaping must be used for draft and target.

    Args:
        temperature: above 0; greedy decoding is a rule of its own and not a temperature of 0.
        top_k: how many of the largest logits may be drawn; 0 for all.
    """
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} is not above 0; for greedy decoding use GreedyRule")
    if 0 < top_k < logits.shape[-1]:
        edge = np.partition(logits, -top_k, axis=-1)[..., -top_k, None]
        logits = np.where(logits < edge, -np.inf, logits)
    prob = np.exp((logits - logits.max(axis=-1, keepdims=True)) / temperature)
    return prob / prob.sum(axis=-1, keepdims=True)


def draw_tokens(rng: np.random.Generator, prob: np.ndarray) -> np.ndarray:
    """Draw one token from each row of `prob` [..., V]: the first whose cumulated share exceeds a uniform number."""
    cumulated = prob.cumsum(axis=-1)
    level = rng.random((*prob.shape[:-1], 1)) * cumulated[..., -1:]
    return (cumulated > level).argmax(axis=-1)


def acceptance_probability(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Compute how often a draft from q passes the check against p: sum_v min(p_v, q_v), one minus their distance."""
    return np.minimum(p, q).sum(axis=-1)


def residual_distribution(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Compute what to draw from after a rejection: the part of p that q did not offer, scaled back to one.

        residual = max(p - q, 0) / sum max(p - q, 0)

    Together with acceptance by min(1, p/q) the output is p exactly:
        q_v min(1, p_v/q_v) + (1 - sum min(p, q)) residual_v = min(p_v, q_v) + max(p_v - q_v, 0) = p_v
    """
    excess = np.maximum(p - q, 0)
    total = excess.sum(axis=-1, keepdims=True)
    return np.where(total > 0, excess / np.where(total > 0, total, 1), p)  # p = q: nothing is ever rejected


def verify_drafts(
    rng: np.random.Generator, draft_NK: np.ndarray, draft_prob_NKV: np.ndarray, target_prob_NK1V: np.ndarray
) -> Verdict:
    """Check K drafted tokens of N sequences so that what is emitted is distributed as the target.

    Accept d with probability min(1, p(d)/q(d)); at the first rejection draw from the residual and stop; if all are
    accepted draw one more from p. A draft taken by argmax has the one-hot q, and passes with probability p(d).

    Args:
        draft_prob_NKV: q, what each draft was drawn from.
        target_prob_NK1V: p; row j is the main model's answer after the drafts before d_{j+1}, row K after all.
    Source: arXiv:2211.17192, Algorithm 1.
    """
    N, K = draft_NK.shape
    if target_prob_NK1V.shape[:2] != (N, K + 1) or draft_prob_NKV.shape[:2] != (N, K):
        raise ValueError(
            f"{K} drafts need {K} draft rows and {K + 1} target rows, "
            f"got {draft_prob_NKV.shape[1]} and {target_prob_NK1V.shape[1]}"
        )
    n = np.arange(N)
    p_NK = np.take_along_axis(target_prob_NK1V[:, :K], draft_NK[..., None], axis=-1)[..., 0]
    q_NK = np.take_along_axis(draft_prob_NKV, draft_NK[..., None], axis=-1)[..., 0]
    accepted_NK = rng.random((N, K)) * q_NK < p_NK  # min(1, p/q) without dividing by a q of zero
    n_accepted_N = accepted_NK.cumprod(axis=1).sum(axis=1)
    # after the last draft nothing was offered: with q = 0 the residual is p itself, the bonus token
    offered_NK1V = np.concatenate([draft_prob_NKV, np.zeros_like(target_prob_NK1V[:, :1])], axis=1)
    last_NV = residual_distribution(target_prob_NK1V[n, n_accepted_N], offered_NK1V[n, n_accepted_N])
    token_NK1 = np.concatenate([draft_NK, np.full((N, 1), -1)], axis=1)
    token_NK1[np.arange(K + 1) > n_accepted_N[:, None]] = -1
    token_NK1[n, n_accepted_N] = draw_tokens(rng, last_NV)
    return Verdict(token_NK1, n_accepted_N)


def verify_greedily(draft_NK: np.ndarray, target_logits_NK1V: np.ndarray) -> Verdict:
    """Accept a draft exactly when it is the target's argmax, and end with the target's argmax."""
    best_NK1 = target_logits_NK1V.argmax(axis=-1)
    n_accepted_N = (draft_NK == best_NK1[:, :-1]).cumprod(axis=1).sum(axis=1)
    keep = np.arange(best_NK1.shape[1]) <= n_accepted_N[:, None]
    return Verdict(np.where(keep, best_NK1, -1), n_accepted_N)


class GreedyRule:
    """Take the likeliest token; a draft passes when the main model would have taken it too."""

    def pick(self, logits_V: np.ndarray) -> tuple[int, np.ndarray]:
        """Return a token and the distribution it was taken from."""
        token = int(logits_V.argmax())
        return token, np.eye(len(logits_V))[token]

    def verify(self, drafts: list[int], draft_prob_KV: np.ndarray, logits_K1V: np.ndarray) -> list[int]:
        """Return the tokens that the step emits: the accepted drafts and one more."""
        verdict = verify_greedily(np.array([drafts], dtype=int), logits_K1V[None])
        return verdict.token_NK1[0, : verdict.n_accepted_N[0] + 1].tolist()


@dataclass
class SamplingRule:
    """Draw from the shaped distribution; a draft passes by the rejection rule, so the text is distributed alike."""

    rng: np.random.Generator
    temperature: float = 1.0
    top_k: int = 0

    def pick(self, logits_V: np.ndarray) -> tuple[int, np.ndarray]:
        prob_V = softmax(logits_V, self.temperature, self.top_k)
        return int(draw_tokens(self.rng, prob_V)), prob_V

    def verify(self, drafts: list[int], draft_prob_KV: np.ndarray, logits_K1V: np.ndarray) -> list[int]:
        prob_K1V = softmax(logits_K1V, self.temperature, self.top_k)
        verdict = verify_drafts(self.rng, np.array([drafts], dtype=int), draft_prob_KV[None], prob_K1V[None])
        return verdict.token_NK1[0, : verdict.n_accepted_N[0] + 1].tolist()


@dataclass
class Report:
    """What decoding did: every step's drafts and how many of them passed."""

    tokens: list[int]
    drafts: list[list[int]] = field(default_factory=list)
    n_accepted: list[int] = field(default_factory=list)

    @property
    def acceptance(self) -> float:
        """Share of the first drafts that passed: V3's "acceptance rate of the second token"."""
        return float(np.mean([n > 0 for n in self.n_accepted])) if self.n_accepted else 0.0

    @property
    def tokens_per_step(self) -> float:
        """Emitted tokens per pass of the main model, the prompt's own pass left out."""
        return 1 + float(np.mean(self.n_accepted)) if self.n_accepted else 1.0


def plain_decode(session: Session, prompt: Sequence[int], n_new: int, rule) -> list[int]:
    """Write `n_new` tokens after the prompt, one main pass for each."""
    logits, _ = session.read(prompt)
    text = [*prompt]
    for _ in range(n_new):
        token, _ = rule.pick(logits[-1])
        text.append(token)
        if len(text) < len(prompt) + n_new:
            logits, _ = session.read([token])
    return text


def propose_tokens(session: Session, hidden_SD: np.ndarray, tokens_S: Sequence[int], rule, n_drafts: int):
    """Draft from the last of the pairs (h_i, t_{i+1}), then let the module go on from its own output.

    Returns:
        the drafts, and the distributions [K, V] that they were taken from.
    """
    drafts, prob = [], []
    for _ in range(n_drafts):
        logits_SV, out_SD = session.draft(hidden_SD, tokens_S)
        token, prob_V = rule.pick(logits_SV[-1])
        drafts.append(token)
        prob.append(prob_V)
        hidden_SD, tokens_S = out_SD[-1:], [token]
    return drafts, np.array(prob)


def speculative_decode(session: Session, prompt: Sequence[int], n_new: int, rule, n_drafts: int = 1) -> Report:
    """Write `n_new` tokens after the prompt, several for each main pass when the drafts are good.

    Args:
        session: fresh; its caches are empty.
        rule: GreedyRule() or SamplingRule(rng, ...), used for the drafts and for the check.
        n_drafts: tokens drafted in a row by the one module, 1 as in V3.
    Raises:
        ValueError: nothing to start from, or nothing to draft.
    """
    if len(prompt) == 0 or n_drafts < 1:
        raise ValueError(f"a prompt of {len(prompt)} tokens and {n_drafts} drafts: both must be at least 1")
    logits_SV, hidden_SD = session.read(prompt)
    token, _ = rule.pick(logits_SV[-1])
    report, n_read = Report([*prompt, token]), len(prompt)
    settled = report.tokens[1:]  # the tokens t_{i+1} that go with the hidden rows not yet in the draft cache
    while len(report.tokens) < len(prompt) + n_new:
        drafts, prob_KV = propose_tokens(session, hidden_SD, settled, rule, n_drafts)
        logits_SV, hidden_SD = session.read([report.tokens[-1], *drafts])
        settled = rule.verify(drafts, prob_KV, logits_SV)
        session.roll_back(n_read + len(settled), n_read)  # rejected rows, and draft rows that stood on guesses
        hidden_SD = hidden_SD[: len(settled)]
        n_read += len(settled)
        report.tokens += settled
        report.drafts.append(drafts)
        report.n_accepted.append(len(settled) - 1)
    del report.tokens[len(prompt) + n_new :]
    return report


def expected_tokens_per_step(acceptance: float, n_drafts: int) -> float:
    """Compute 1 + a + a^2 + ... + a^K: tokens per main pass when each draft passes with chance a, independently."""
    return float(sum(acceptance**k for k in range(n_drafts + 1)))


def expected_speedup(acceptance: float, n_drafts: int, draft_cost: float, verify_cost: float = 0.0) -> float:
    """Compute tokens per unit of time against plain decoding.

    Args:
        draft_cost: time of one drafted token, in main passes over one token (V3: 1.61 of 37.55 billion weights, 0.043).
        verify_cost: what each further row adds to a main pass, in the same unit; near 0 while memory is the limit.
    """
    return expected_tokens_per_step(acceptance, n_drafts) / (1 + n_drafts * (draft_cost + verify_cost))


def main() -> None:
    """Print the rejection rule on three tokens; then train a small model for seconds and decode with its module."""
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.6, 0.2])
    passed, rest = acceptance_probability(p, q), residual_distribution(p, q)
    print(f"target p {p}, draft q {q}: accepted {passed:.2f}, residual {rest}")
    rng = np.random.default_rng(0)
    draft = draw_tokens(rng, np.broadcast_to(q, (100_000, 1, 3)))
    out = verify_drafts(rng, draft, np.broadcast_to(q, (100_000, 1, 3)), np.broadcast_to(p, (100_000, 2, 3)))
    print(
        f"100,000 checked drafts come out as {(np.bincount(out.token_NK1[:, 0]) / 100_000).round(3)}: the target's p\n"
    )

    import small_language_model as small

    n_steps = int(sys.argv[1]) if len(sys.argv) > 1 else 150
    model, unseen = small.SmallModel.init(rng), small.read_topics(held_out=True)
    losses = small.train_model(model, small.read_topics(), n_steps)[-10:].mean(axis=0)
    print(
        f"{n_steps} steps on pydoc_data.topics: main loss {losses[0]:.2f}, module {losses[1]:.2f}; float64 from here on"
    )
    model = small.cast_arrays(model, np.float64)
    prompts = small.draw_prompts(rng, unseen, 8)
    plain = [plain_decode(small.DecodingSession(model), p, 80, GreedyRule()) for p in prompts]
    for n_drafts in (1, 2, 3):
        reports = [speculative_decode(small.DecodingSession(model), p, 80, GreedyRule(), n_drafts) for p in prompts]
        joint = Report([], [], [n for r in reports for n in r.n_accepted])
        expected = expected_tokens_per_step(joint.acceptance, n_drafts)
        print(
            f"{n_drafts} drafted: acceptance {joint.acceptance:.2f}, {joint.tokens_per_step:.2f} tokens per step "
            f"(independent drafts: {expected:.2f}), identical to plain greedy: {[r.tokens for r in reports] == plain}"
        )
    rule = SamplingRule(rng)
    reports = [speculative_decode(small.DecodingSession(model), p, 80, rule) for p in prompts]
    joint = Report([], [], [n for r in reports for n in r.n_accepted])
    print(f"sampling, 1 drafted: acceptance {joint.acceptance:.2f}, {joint.tokens_per_step:.2f} tokens per step")
    print(f"after {small.decode_text(prompts[0])!r} it writes {small.decode_text(plain[0][24:])!r}")


if __name__ == "__main__":
    main()
