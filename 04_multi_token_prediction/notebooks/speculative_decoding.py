# %% [markdown]
# # Two words for one pass, and the text unchanged?
#
# **The question.** To write one word, all weights of a model must be fetched and used, and the next word waits until
# they have been. But one pass over *several* words costs hardly more than a pass over one: the weights are fetched once
# for all. If only one knew the next words, one could check them all at once. Who knows them?
#
# A minister dictates letters, slowly. Her secretary has worked for her for years. He writes the next words *in pencil*
# before she has said them, and holds the sheet under her eyes. She reads a whole line as fast as a word, and at the
# first word that she would not have said, she strikes it and everything behind it, and says her own. He never waits for
# her to speak a word that he could have guessed. And nobody who reads her letters can ever tell that he exists.
#
# The secretary is the MTP module. The promise in the last sentence is the hard part, and it comes in two sizes. If the
# minister always takes her *likeliest* word, the letter must be the same, word for word. If she rolls dice, the letter
# must have the same *distribution*: every letter exactly as likely as if she had dictated alone. At the end of this
# notebook both hold on a real text, and we see what the secretary saves.

# %%
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small matrices: a second thread would only get in the way

from functools import partial

import numpy as np
from causal_block import compact_block_forward
from mtp_module import mtp_forward

# %%
from small_language_model import (
    DecodingSession,
    PackedText,
    SmallModel,
    cast_arrays,
    decode_text,
    draw_prompts,
    main_forward,
    read_topics,
    train_model,
)

# %%
from speculative_decoding import (
    GreedyRule,
    Report,
    SamplingRule,
    acceptance_probability,
    draw_tokens,
    expected_speedup,
    expected_tokens_per_step,
    plain_decode,
    residual_distribution,
    softmax,
    speculative_decode,
    verify_drafts,
    verify_greedily,
)

# %%
from utils.drawings_04 import draw_checks, draw_written
from utils.plots_02 import plot_lines
from utils.plots_04 import plot_bars, plot_shares, plot_speedups
from utils.story_drafts import draw_stories, load_stories

# %%
draw_checks()

# %% [markdown]
# ## Numbers to follow with a pencil
#
# Three tokens. The minister would say them with probabilities $p = (0.5, 0.3, 0.2)$, the secretary pencils them with
# $q = (0.2, 0.6, 0.2)$. He is too fond of token 1.
#
# 1. **What passes.** A draft $d$ is accepted with probability $\min(1, p_d / q_d)$: token 0 always, token 1 in
#    $0.3/0.6$, half, of the cases, token 2 always. So what comes out *by acceptance* is $0.2$, $0.6 \cdot \tfrac12 =
#    0.3$, $0.2$: for each token the smaller of $p$ and $q$. Together $0.7$.
# 2. **What is missing.** In the other 0.3 of the cases she strikes the draft and draws anew, not from $p$ but from what
#    has come up short so far: $p$ minus what passed is $(0.3, 0, 0)$. Scaled to one: $(1, 0, 0)$. She says token 0.
# 3. **Together** $(0.2 + 0.3, 0.3, 0.2) = (0.5, 0.3, 0.2) = p$.
# 4. **What is gained.** If a draft passes in 0.85 of the cases, a pass gives $1 + 0.85 = 1.85$ words. With three drafts
#    that each pass in 0.7: $1 + 0.7 + 0.49 + 0.343 = 2.533$, for the second counts only if the first has passed.

# %%
p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.6, 0.2])
passed = np.minimum(p, q)
shown = {"drafts, q": [(q, "draft")], "accepted": [(passed, "draft")]}
shown |= {"and drawn anew": [(passed, "draft"), (p - passed, "content")], "the model alone, p": [(p, "content")]}
plot_shares(shown, f"{passed.sum():.1f} of the drafts pass, and the two parts add up to p")
print("residual", residual_distribution(p, q), " words a pass:", round(expected_tokens_per_step(0.7, 3), 3))

# %% [markdown]
# ## Build it
#
# Letters: $K$ drafts, $V$ tokens. First one draft, then a line of them. Beside each draft lies $q$, what it was drawn
# from; the main model's pass gives $K + 1$ rows $p$, one for each place that a draft stands at, and one behind the
# last.


# %%
def naive_check(rng, draft, q, p):
    """Return the token that comes out, and whether it was the draft."""
    if rng.random() < min(1.0, p[draft] / q[draft]):
        return draft, True
    rest = np.maximum(p - q, 0)
    return rng.choice(len(p), p=rest / rest.sum()), False


# %%
def naive_line(rng, drafts, qs, ps):
    """Check drafts from left to right; the first that is struck ends the line."""
    out = []
    for draft, q, p in zip(drafts, qs, ps):
        token, was_draft = naive_check(rng, draft, q, p)
        out.append(token)
        if not was_draft:
            return out
    return [*out, rng.choice(len(ps[-1]), p=ps[-1])]  # all passed: one more from the model itself


# %% [markdown]
# Does it hold what it promises? With lines of two drafts there are few enough outcomes to count them: 30,000 lines, the
# first two tokens of each, against the product of the two rows $p$.

# %%
rng = np.random.default_rng(1)
qs, ps = rng.dirichlet(np.ones(3), size=2), rng.dirichlet(np.ones(3), size=3)
counts = {"naive": np.zeros((3, 3)), "module": np.zeros((3, 3))}
drafts = np.stack([rng.choice(3, size=30_000, p=q) for q in qs], axis=1)
spread = [np.broadcast_to(a, (30_000, *a.shape)) for a in (qs, ps)]
for line, out in zip(drafts, verify_drafts(rng, drafts, *spread).token_NK1):
    for name, tokens in (("naive", naive_line(rng, line, qs, ps)), ("module", out)):
        if len(tokens) > 1 and tokens[1] >= 0:
            counts[name][tokens[0], tokens[1]] += 1
shares = {name: c.sum(axis=1) for name, c in counts.items()}
second = {name: c / c.sum(axis=1, keepdims=True) for name, c in counts.items()}
assert all(np.allclose(s, ps[1], atol=0.05) for s in second.values())
print("second token after each first one:", *(s.round(2).tolist() for s in second.values()), " p:", ps[1].round(2))

# %% [markdown]
# ## The derivation
#
# **Taking the likeliest.** Accept a draft exactly when it is what the model would have taken. By induction every word
# is the one of plain decoding; there is nothing else to show.
#
# **Rolling dice** (arXiv:2211.17192). A draft $d$ was drawn from $q$; what comes out must be distributed as $p$.
#
# 1. The token $v$ comes out by acceptance with probability $q_v \cdot \min(1, p_v / q_v) = \min(p_v, q_v)$.
# 2. Struck is the rest, $1 - \sum_v \min(p_v, q_v)$. Since $\sum_v p_v = 1$, that is
#    $\sum_v \big(p_v - \min(p_v, q_v)\big) = \sum_v \max(p_v - q_v, 0)$.
# 3. Then draw from $\max(p - q, 0)$, divided by that same sum. So $v$ comes out this way with probability
#    $\max(p_v - q_v, 0)$: the sum cancels.
# 4. Together: $\min(p_v, q_v) + \max(p_v - q_v, 0) = p_v$. Exactly, for any $q$, however bad. A bad $q$ costs time, not
#    truth.
# 5. A line of drafts is checked from left to right; row $p$ of a place is right only if all drafts before it stayed. If
#    all $K$ pass, the last row gives one more word for nothing: step 3 with nothing offered, $q = 0$.
# 6. If each draft passes with probability $a$, independently, a pass gives $1 + a + a^2 + \dots + a^K$ words.
#
# Step 4 for a thousand random pairs, and the check of a greedy line:

# %%
many_p, many_q = rng.dirichlet(np.ones(7), size=(2, 1000))
out = np.minimum(many_p, many_q)
out = out + (1 - acceptance_probability(many_p, many_q))[:, None] * residual_distribution(many_p, many_q)
assert np.allclose(out, many_p, atol=1e-15)
verdict = verify_greedily(np.array([[2, 0]]), np.eye(3)[[[2, 1, 0]]])
print("drafts 2, 0; the model takes 2, 1, 0: out comes", verdict.token_NK1[0], "(−1: nothing)")

# %% [markdown]
# ## A secretary for the stories
#
# A model with a module learns the sentences of chapter 00, word by word, laid end to end. Then it writes. First
# plainly, one pass a word; then with one draft a pass. In this naive form every pass reads the whole text again: no
# cache, no striking, nothing but the idea.

# %%
stories, rng = load_stories(), np.random.default_rng(0)
words = np.concatenate([line[line >= 0] for line in stories.word_NS[rng.choice(224, 3000, p=stories.chance_N)]])
sizes = {"vocab_size": len(stories.names), "hidden_size": 24, "n_heads": 2, "n_layers": 1}
teller = SmallModel.init(rng, **sizes)
train_model(teller, PackedText(words, 0 * words, ""), 300, n_windows=32, n_tokens=24, rate=2e-2)
teller = cast_arrays(teller, np.float64)  # so that rounding cannot decide between two words


# %%
def read_all(model, text):
    """One pass of the main model over the whole text: its answer at every place, and its notes."""
    notes, _ = main_forward(model, np.array([text]))
    return (notes[0] @ model.lm_head.T).argmax(axis=1), notes


def draft_next(model, notes, text):
    """The module's guess behind `text`; its notes reach to the word before the last."""
    block = partial(compact_block_forward, model.mtp_blocks[0], n_heads=model.n_heads)
    embedding, at = model.embed_tokens[np.array([text[1:]])], np.arange(len(text) - 1)[None]
    rows = mtp_forward(model.mtp[0], notes, embedding, at, block)[0]
    return int((rows[0, -1] @ model.lm_head.T).argmax())


# %%
def naive_speculate(model, prompt, n_new):
    """Write n_new words after the prompt; return the text and, pass by pass, what was accepted and added."""
    answers, notes = read_all(model, prompt)
    text, steps = [*prompt, int(answers[-1])], []
    while len(text) < len(prompt) + n_new:
        draft = draft_next(model, notes[:, : len(text) - 1], text)
        answers, notes = read_all(model, [*text, draft])  # one pass judges the draft and goes one further
        right = int(answers[len(text) - 1])
        own = int(answers[len(text)]) if draft == right else right
        steps.append(([draft] if draft == right else [], own))
        text += [*steps[-1][0], own]
    return text[: len(prompt) + n_new], steps


# %%
prompt = [stories.names.index(w) for w in ["^", "the", "cat", "that", "heard"]]
text, steps = naive_speculate(teller, prompt, 24)
report = speculative_decode(DecodingSession(teller), prompt, 24, GreedyRule())
assert text == report.tokens == plain_decode(DecodingSession(teller), prompt, 24, GreedyRule())
print(f"naive, module and plain decoding agree: 24 words in {1 + len(steps)} passes")
print(" ".join(stories.spell(text)))

# %%
told = [(stories.spell(accepted), stories.names[own]) for accepted, own in steps]
first = [*prompt, text[len(prompt)]]
draw_written(stories.spell(first), told, f"{1 + len(steps)} passes instead of 24; crimson words were drafted")

# %% [markdown]
# The module of the repository does the same with caches: old rows are kept, new ones are added, and struck rows are
# forgotten (`roll_back`), which the block of notebook 2 has promised to allow.
#
# ## The experiment: what wrong rules do
#
# Five rules, 200,000 drafts each, $p$ and $q$ as above. The chi-squared sum says how far the counts are from $p$; a
# right rule exceeds 27.6 once in a million.


# %%
def right(rng, d, q, p):
    shapes = np.broadcast_to(q, (len(d), 1, 3)), np.broadcast_to(p, (len(d), 2, 3))
    return verify_drafts(rng, d[:, None], *shapes).token_NK1[:, 0]


def unless(rng, d, passed, rest):
    return np.where(passed, d, draw_tokens(rng, np.broadcast_to(rest, (len(d), 3))))


# %%
rest = residual_distribution(p, q)
rules = {
    "accept min(1, p/q), else residual": right,
    "accept without a check": lambda rng, d, q, p: d,
    "accept when q is sure of it": lambda rng, d, q, p: unless(rng, d, q[d] > 0.5, p),
    "struck: draw from p": lambda rng, d, q, p: unless(rng, d, rng.random(len(d)) * q[d] < p[d], p),
    "accept with probability p": lambda rng, d, q, p: unless(rng, d, rng.random(len(d)) < p[d], rest),
}

# %%
n, rng, chi = 200_000, np.random.default_rng(5), {}
for name, rule in rules.items():
    out = np.bincount(rule(rng, draw_tokens(rng, np.broadcast_to(q, (n, 3))), q, p), minlength=3)
    chi[name] = float(((out - n * p) ** 2 / (n * p)).sum())
least = min(list(chi.values())[1:])
title = f"The right rule: {chi['accept min(1, p/q), else residual']:.1f}. The least wrong one: {least:,.0f}"
plot_bars(chi, ["content"] + ["wrong"] * 4, title, "chi-squared, logarithmic", xscale="log", xlim=(0.1, 3e6))

# %% [markdown]
# ## The laboratory: a real text
#
# Letters of the language reference that every Python carries. 600 steps of training, then 80 letters after each of 8
# held-out beginnings, all inside the window that was trained.

# %%
rng = np.random.default_rng(0)
model, unseen = SmallModel.init(rng), read_topics(held_out=True)
train_model(model, read_topics(), 600)
model, prompts = cast_arrays(model, np.float64), draw_prompts(rng, unseen, 8)
plain = [plain_decode(DecodingSession(model), prompt, 80, GreedyRule()) for prompt in prompts]


def measure(rule, n_drafts, n_new=80):
    """Write after every prompt; return the reports, and one that joins their counts."""
    reports = [speculative_decode(DecodingSession(model), prompt, n_new, rule, n_drafts) for prompt in prompts]
    return reports, Report([], [], [n for r in reports for n in r.n_accepted])


# %%
greedy, sampled = {}, {}
for K in (1, 2, 3, 4):
    reports, greedy[K] = measure(GreedyRule(), K)
    assert [r.tokens for r in reports] == plain, "the text has changed"
    sampled_reports, sampled[K] = measure(SamplingRule(np.random.default_rng(K)), K)
    print(f"K = {K}: greedy {greedy[K].tokens_per_step:.2f} a pass, same text; dice {sampled[K].tokens_per_step:.2f}")

# %%
report = measure(SamplingRule(np.random.default_rng(1)), 1)[0][0]
cut, steps = 25, []
for n in report.n_accepted[:45]:
    line = decode_text(report.tokens[cut : cut + n + 1])
    steps.append((list(line[:n]), line[n:]))
    cut += n + 1
title = f"{len(steps)} passes, {cut - 25} letters: accepted drafts in crimson (rolling dice)"
draw_written(list(decode_text(report.tokens[:25])), [(a, own or " ") for a, own in steps], title, width=36)

# %%
curves = {}
for name, result in (("likeliest", greedy), ("dice", sampled)):
    curves[f"{name}, measured"] = (list(result), [r.tokens_per_step for r in result.values()])
    a = result[1].acceptance
    curves[f"{name}, 1 + a + … with a = {a:.2f}"] = ([*result], [expected_tokens_per_step(a, K) for K in result])
short = curves[list(curves)[3]][1][-1] - sampled[4].tokens_per_step
title = f"One draft: {sampled[1].tokens_per_step:.2f} letters a pass (dice); four are {short:.2f} short of the formula"
kinds = ["content", "#9DB9DC", "draft", "#E0A3BC"]
plot_lines(curves, kinds, title, "drafts K", "letters a pass", xticks=[1, 2, 3, 4])

# %% [markdown]
# The formula of step 6 assumes that every draft is as good as the first, and that they pass independently. Neither
# holds: the second draft and later ones are made from the module's *own* output, rows that it has never met in
# training. The greedy curve deserves less trust than that of the dice. The likeliest text of a small model runs in
# circles, and circles are easy to draft.
#
# ## The trained model speaks: which words are drafted?
#
# The model that runs through the book (`make book`) has one module, trained beside it from the first step. Here it goes
# on with a story, one draft a pass. Crimson words cost no pass of their own:

# %%
from utils.story_model import kind_of, new_stories, open_book

book, prompt = open_book(), "One evening Dora and the owl were in the garden. Ben was there too. The owl found"
report = book.write(prompt, 48, n_drafts=1)
assert report.tokens == book.write(prompt, 48).tokens  # not a word is changed by it
given, steps = len(book.encode(prompt)), []
spelled = [book.decode([token]) for token in report.tokens]
at = given + 1
for n_accepted in report.n_accepted:
    steps.append((spelled[at : at + n_accepted], "".join(spelled[at + n_accepted : at + n_accepted + 1])))
    at += n_accepted + 1
title = (
    f"{report.acceptance:.0%} of the drafts pass: {report.tokens_per_step:.2f} words for each pass of the main model"
)
draw_written(spelled[1 : given + 1], steps, title)

# %% [markdown]
# Which words are easy to draft? 60 new stories, each as it was told: is the module's best guess for the token after the
# next what the main model says itself when it gets there?

# %%
passed = {}
for story in new_stories(60, first=500):
    own, guess = book.guess(story.text)
    for word, right in zip(book.spell(own), own == guess):
        passed.setdefault(kind_of(word), []).append(right)
order = sorted((kind for kind in passed if len(passed[kind]) > 50), key=lambda kind: -np.mean(passed[kind]))
shares = {f"{kind} ({len(passed[kind])})": 100 * np.mean(passed[kind]) for kind in order}
every = 100 * np.mean([right for rows in passed.values() for right in rows])
title = f"{every:.0f} % of all drafts would pass; most among “{order[0]}”, least among “{order[-1]}”"
plot_bars(shares, ["draft"] * len(shares), title, "share of drafts that pass, %", " %", xlim=(0, 112))

# %% [markdown]
# A full stop, a *the* can be foreseen two words ahead. A name opens what comes next, and many would do: the module has
# to pick one of them a word earlier than the main model, and they seldom pick the same.
#
# ## What it is worth
#
# A draft is not free. Say that it costs $c$ of a pass of the main model, and that a checked row costs nothing beside
# the pass. Then $K$ drafts and a pass cost $1 + K c$ and give $1 + a + \dots + a^K$ words, where plain decoding gives
# one word for 1: the speed-up is $(1 + a + \dots + a^K) / (1 + K c)$. How large is $c$? V3's module is one layer, the
# projection, and once more the *head*, which is the larger part:


# %%
def count_draft(D=7168, V=129_280, H=128, Q=1536, C=512, F=2048):
    """Weights that one draft of V3 reads: attention, eight experts and the shared one, router, eh_proj, head."""
    attention = Q * D + H * (128 + 64) * Q + (C + 64) * D + H * (128 + 128) * C + D * H * 128
    return attention + 9 * 3 * D * F + 256 * D + 2 * D * D + V * D


cost = count_draft() / 37.55e9
print(f"{count_draft() / 1e9:.2f} of 37.55 billion active weights: {cost:.3f} of a pass; one layer of 61: {1 / 61:.3f}")
v3 = [expected_speedup(a, 1, cost) for a in (0.85, 0.9)]
print(f"V3 accepts 85 to 90 % of the drafts: {v3[0]:.2f} to {v3[1]:.2f} times as fast, if a checked row costs nothing")

# %%
a = np.linspace(0, 1, 101)
prices = {f"a draft costs {c:.3f} of a pass": c for c in (cost, 0.1, 0.3)}
gains = {name: np.array([expected_speedup(x, 2, c) for x in a]) for name, c in prices.items()}
even = a[np.argmax(gains["a draft costs 0.300 of a pass"] >= 1)]
title = f"Two drafts at 0.3 of a pass pay only if more than {even:.0%} are accepted"
plot_speedups(a, gains, ["draft", "content", "ink"], (0.85, 0.9), title)

# %% [markdown]
# ## Change this, predict, run
#
# When dice are rolled, the secretary too may either roll (draft from $q$) or pencil his *likeliest* word, in which case
# $q$ is one-hot. The text is exact both ways. Which way are more drafts accepted? Predict, then run it on the rows that
# the trained model and its module give for held-out text.
#
# <details><summary>Afterwards</summary>
#
# More pass when he rolls. A word drawn from $q$ passes with probability $\sum_v \min(p_v, q_v)$, and if $q$ is close to
# $p$ that is close to one, however unsure both are. His likeliest word passes with probability $p_d$: only as often as
# *she* would say it, and when she is unsure that is seldom. (With greedy writing it is the other way round: there she
# always takes her likeliest, and so should he.)
#
# </details>


# %%
def both_rows(model, tokens):
    """p and q for the same places of a text: the main model from row 1 on, the module from row 0 on."""
    notes, _ = main_forward(model, tokens[:, :-1])
    block = partial(compact_block_forward, model.mtp_blocks[0], n_heads=model.n_heads)
    at = np.broadcast_to(np.arange(tokens.shape[1] - 2), (len(tokens), tokens.shape[1] - 2))
    rows = mtp_forward(model.mtp[0], notes[:, :-1], model.embed_tokens[tokens[:, 1:-1]], at, block)[0]
    return softmax(notes[:, 1:] @ model.lm_head.T), softmax(rows @ model.lm_head.T)


# %%
letters = unseen.tokens[: 16 * 130].reshape(16, 130)
for name, (P, Q) in {
    "letters": both_rows(model, letters),
    "stories": both_rows(teller, words[:960].reshape(40, 24)),
}.items():
    likeliest = np.take_along_axis(P, Q.argmax(axis=-1)[..., None], axis=-1)
    print(f"{name}: dice {acceptance_probability(P, Q).mean():.3f}, likeliest {likeliest.mean():.3f}")

# %% [markdown]
# ## A trap: longer than the window that was trained

# %%
report = speculative_decode(DecodingSession(model), prompts[0], 420, SamplingRule(np.random.default_rng(3)))
passed, place = np.array(report.n_accepted) > 0, 24 + np.cumsum(1 + np.array(report.n_accepted))
edges = [24, 129, 234, 339, 444]
share = {f"letters {lo} to {lo + 105}": passed[(place >= lo) & (place < lo + 105)].mean() for lo in edges[:-1]}
inside, *_, outside = share.values()
title = f"Beyond the trained length acceptance goes from {inside:.2f} to {outside:.2f}"
plot_bars(share, ["draft", "wrong", "wrong", "wrong"], title, "share of drafts accepted (dice)")

# %% [markdown]
# The text is still exactly the main model's, and gets worse as the main model does. Speed is what silently goes: **no
# test of the text will ever notice a bad draft.** Acceptance has to be watched.
#
# ## What you can now do
#
# Prove that a text written with drafts is the text without them, by the word or by the distribution; write the check,
# and recognise four wrong ones; say what a draft costs and when it pays; keep the module that the last notebooks would
# have dropped, and watch its acceptance.
#
# ## Exercises
#
# Graded: `check_draft`, `tokens_per_step`, `rows_to_keep` and, last, `mtp_from_an_empty_file` (`make check CH=04`). By
# thought alone:
#
# 1. Someone keeps struck rows in the *module's* cache. Which test can notice?
#
# <details><summary>Solution</summary>
#
# None that compares texts: the main model still checks every token. `HistorySession` in the tests asserts that each
# hidden row stands where it belongs, and so it does.
#
# </details>
#
# 2. With temperature 0.7, may $q$ be taken at temperature 1? And $p$?
#
# <details><summary>Solution</summary>
#
# $q$ may be anything that the draft was really drawn from; only acceptance suffers. But $p$ must be shaped *before* the
# check: accepting by the unshaped $p$ gives text at temperature 1.
#
# </details>
#
# 3. The minister strikes the second of three drafts. Why must the third go too, even if she would have said it there?
#
# <details><summary>Solution</summary>
#
# Her answer at the third place was given after reading the second draft, which is not in the letter. What she would say
# after her own word, nobody has asked yet.
#
# </details>
