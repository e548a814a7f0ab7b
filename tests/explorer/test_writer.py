"""The explorer's rule of acceptance on distributions known in advance; its cut of the tail against the package's."""

import numpy as np
import torch

from deepseek_v3.engine.sampler import SamplingRule

P, Q = [0.5, 0.3, 0.2], [0.2, 0.6, 0.2]  # a draft stands with probability sum min(p, q) = 0.7
RULES = [(0.7, 0.9), (1.0, 1.0), (1.3, 0.4), (0.05, 0.95), (2.0, 1e-9), (0.0, 1.0), (1e-40, 1.0)]


def test_sampled_text_follows_the_model_whatever_the_drafts(run_node):
    logits = np.random.default_rng(3).normal(0, 3, (len(RULES), 53)).astype(np.float32)
    rule = [{"temperature": t, "topP": p, "logits": row.tolist()} for (t, p), row in zip(RULES, logits)]
    seen = run_node("write_by_rule.mjs", {"p": P, "q": Q, "runs": 150, "steps": 101, "rule": rule})
    counts = np.array(seen["counts"])
    expected = counts.sum() * np.array(P)
    assert ((counts - expected) ** 2 / expected).sum() < 13.8  # chi-squared of two degrees: 1 in 1,000
    share, tried = seen["stood"] / seen["tried"], seen["tried"]
    assert tried == 150 * 100
    assert abs(share - 0.7) < 4 * (0.7 * 0.3 / tried) ** 0.5
    np.testing.assert_allclose(seen["reason"], [1, 0.3, 0, 0.5], rtol=1e-6)  # greedily too, a share is the model's own
    assert seen["again"][0] == seen["again"][1]  # the same seed, the same text
    for (temperature, top_p), row, cut in zip(RULES, logits, seen["cut"]):
        ours = SamplingRule(temperature, top_p=top_p).probabilities(torch.tensor(row))
        np.testing.assert_allclose(cut, ours.numpy(), atol=1e-6)
