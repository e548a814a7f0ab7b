"""The explorer's model in JavaScript against the package: the same folders, the same texts.

V3 with YaRN, groups and two MTP modules, and V2-Lite, read twenty texts each. Some of them are read by V2's grouped
choice with a tied head, in BF16 over several files, and by V3 in FP8 with blocks cut short at the edges. Logits within
1e-4: both sides round to FP32 between sums.
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "weights"))
from tiny_checkpoints import V2_LITE, V3, YARN, random_model
from twenty_texts import TEXTS

from deepseek_v3.data.tokenizer import Tokenizer
from deepseek_v3.engine.generate import open_engine
from deepseek_v3.engine.request import Request
from deepseek_v3.model.cache import LatentCache
from deepseek_v3.model.router import RoutingRecord
from deepseek_v3.weights.convert import convert_checkpoint
from deepseek_v3.weights.load import load_model
from deepseek_v3.weights.save import save_model

CLOSE = 1e-4
TOKENS, DRAFTS = 12, [0, 1, 2, 4]  # of what is written; 4 drafts are more than there are modules
GROUPED = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
MODELS = {
    "yarn": {**V3, "rope_scaling": YARN, "num_nextn_predict_layers": 2, "max_position_embeddings": 640},
    "v2-lite": {**V2_LITE, "rope_scaling": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707}},
    "tied": {
        **V2_LITE,
        "topk_method": "group_limited_greedy",
        "n_group": 4,
        "topk_group": 2,
        "tie_word_embeddings": True,
    },
    "fp8": {**V3, "hidden_size": 150, "initializer_range": 0.1},
}
VOCABULARY = 397


@pytest.fixture(scope="module")
def stock(tmp_path_factory, run_node):
    """Models as the package reads them, and what the explorer made of the same folders."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = Tokenizer.train(TEXTS, VOCABULARY)
    size = tokenizer.vocab_size
    for name, values in MODELS.items():
        save_model(random_model(values, vocab_size=size), root / name, tokenizer)
    convert_checkpoint(root / "tied", root / "tied-bf16", to="bf16", shard_bytes=30_000)
    convert_checkpoint(root / "fp8", root / "fp8-fp8", to="fp8")
    names, n_texts, drafts = ["yarn", "v2-lite", "tied-bf16", "fp8-fp8"], [20, 20, 5, 5], [DRAFTS, [0], [0], [1]]
    tasks = [{"folder": str(root / n), "texts": TEXTS[:k], "drafts": d} for n, k, d in zip(names, n_texts, drafts)]
    seen = run_node("read_models.mjs", {"models": tasks, "tokens": TOKENS})
    models = [load_model(root / name, dtype=torch.float32)[0].eval() for name in names]
    return list(zip(names, models, seen)), tokenizer


def worst(ours: torch.Tensor, theirs: np.ndarray) -> float:
    return float(np.abs(ours.numpy() - theirs).max())


@torch.no_grad()
def test_logits_of_twenty_texts_are_the_packages(stock, unpack):
    models, tokenizer = stock
    for name, model, seen in models:
        for text, read in zip(TEXTS, seen["texts"]):
            assert read["ids"] == tokenizer.encode(text)
            logits, ahead = model(torch.tensor([read["ids"]]), mtp=True)
            assert worst(logits[0], unpack(read["logits"])) <= CLOSE, (name, text)
            assert worst(logits[0], unpack(read["absorbed"])) <= CLOSE, (name, text)
            assert worst(logits[0, -1:], unpack(read["lens"])) <= CLOSE  # behind the last layer the lens is the model
            assert len(ahead) == len(read["ahead"])
            for depth, (rows, theirs) in enumerate(zip(ahead, read["ahead"]), 1):
                if theirs is not None:
                    assert worst(rows[0, :-depth], unpack(theirs)) <= CLOSE, (name, text, depth)


@torch.no_grad()
def test_every_expert_choice_is_the_packages(stock, unpack):
    models, _ = stock
    for name, model, seen in models:
        for read in seen["texts"]:
            record = RoutingRecord()
            model.hidden_states(torch.tensor([read["ids"]]), record=record)
            chosen = {i: rows for i, rows in enumerate(read["chosen"]) if rows is not None}
            assert {i: [sorted(row) for row in rows] for i, rows in chosen.items()} == {
                i: index.sort(-1).values.tolist() for i, index in record.choices.items()
            }, name
            for i in chosen:
                total = unpack(read["weights"][i]).sum(1)
                assert not model.config.norm_topk_prob or np.allclose(total, model.config.routed_scaling_factor)


@torch.no_grad()
def test_the_cache_and_the_residual_stream_are_the_packages(stock, unpack):
    models, _ = stock
    for _, model, seen in models:
        trace, tokens = seen["trace"], torch.tensor([seen["texts"][0]["ids"]])
        states: list[torch.Tensor] = []
        keep = partial(lambda kept, *given: kept.append(given[2][0]), states)
        hooks = [layer.register_forward_hook(keep) for layer in model.layers]
        cache = LatentCache.dense(model.config, 1, tokens.shape[1])
        model.hidden_states(tokens, cache=cache)
        for hook in hooks:
            hook.remove()
        width = model.config.kv_lora_rank
        for i, state in enumerate(states):
            held = cache.store.latent_LPTW[i].flatten(0, 1)[: tokens.shape[1]]
            assert worst(state, unpack(trace["states"][i])) <= CLOSE
            assert worst(held[:, :width], unpack(trace["latents"][i])) <= CLOSE
            assert worst(held[:, width:], unpack(trace["ropeKeys"][i])) <= CLOSE


def written_by_the_package(model, tokens: list[int], drafts: int) -> list:
    """The events of a greedy request that has more tokens to come than are compared: its end drafts less."""
    request = Request(tokens, max_new_tokens=TOKENS + 12, drafts=drafts)
    engine = open_engine(model, [request], None)
    engine.admit(request)
    return [event for _ in iter(lambda: bool(engine.sequences), False) for event in engine.step()]


def test_greedy_text_drafts_and_what_stands_are_the_packages(stock):
    models, _ = stock
    for name, model, seen in models:
        for text, read in zip(TEXTS, seen["texts"]):
            for drafts, written in zip(DRAFTS if name == "yarn" else [len(model.mtp)], read["written"]):
                events = written_by_the_package(model, read["ids"], drafts)
                steps = written["steps"]
                assert [step["accepted"] + step["rejected"] for step in steps] == [
                    list(event.drafts) for event in events[: len(steps)]
                ], (name, text, drafts)
                assert [[*step["accepted"], step["next"]] for step in steps] == [
                    event.tokens for event in events[: len(steps)]
                ], (name, text, drafts)
                assert written["ids"][:TOKENS] == read["written"][0]["ids"][:TOKENS]  # as without drafts
                assert [step["cacheLength"] for step in steps] == list(
                    np.cumsum([len(read["ids"]), *[len(step["accepted"]) + 1 for step in steps[1:]]])
                )


def test_drafts_are_tried_and_some_stand(stock):
    models, _ = stock
    steps = [step for written in models[0][2]["texts"] for step in written["written"][2]["steps"]]
    assert sum(len(step["rejected"]) for step in steps) > 20
    assert sum(len(step["accepted"]) for step in steps) > 0


def test_what_a_trace_shows_adds_up(stock):
    for _, _, seen in stock[0]:
        assert seen["trace"]["sums"] < 1e-5  # shares of attention
        assert seen["trace"]["apart"] < 1e-4  # expanded, absorbed, and the scores shown
