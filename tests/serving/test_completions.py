"""/v1/completions and /v1/chat/completions: the engine's tokens in OpenAI's objects, whole and as a stream."""

import json

import pytest
import torch

from deepseek_v3.data.chat import ChatTemplate, encode_rendering
from deepseek_v3.engine.generate import generate

CHAT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "héllo 🙂"}]


def greedy(model, tokens, count, stops=()):
    return list(generate(model, tokens, max_new_tokens=count, stop_tokens=stops))


def test_a_completion_is_the_greedy_text_of_the_model(server, model, tokenizer):
    answer = server.complete("the quick", temperature=0, max_tokens=13)
    tokens = [tokenizer.bos_id, *tokenizer.encode("the quick")]
    want = greedy(model, tokens, 13, tokenizer.stop_ids)
    stream = tokenizer.stream()
    assert answer["choices"][0]["text"] == "".join(map(stream.push, want)) + stream.finish()
    assert answer["choices"][0]["finish_reason"] == ("length" if len(want) == 13 else "stop")
    usage = {name: answer["usage"][name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
    want_usage = (len(tokens), len(want), len(tokens) + len(want))
    assert usage == dict(zip(("prompt_tokens", "completion_tokens", "total_tokens"), want_usage))
    assert answer["object"] == "text_completion"
    assert answer["model"] == "tiny"


def test_a_chat_is_the_greedy_text_behind_the_template(server, model, tokenizer):
    answer = server.chat(messages=CHAT, temperature=0, max_completion_tokens=11)
    tokens, _ = encode_rendering(tokenizer, ChatTemplate.find(tokenizer).render_prompt(CHAT))
    want = greedy(model, tokens, 11, tokenizer.stop_ids)
    stream = tokenizer.stream()
    assert answer["choices"][0]["message"]["content"] == "".join(map(stream.push, want)) + stream.finish()
    assert answer["usage"]["prompt_tokens"] == len(tokens)
    assert answer["choices"][0]["message"]["role"] == "assistant"


def test_parts_of_a_message_and_a_developer_are_understood(server):
    plain = server.chat(messages=CHAT, temperature=0, max_tokens=5)
    parts = [{"type": "text", "text": "héllo"}, {"type": "text", "text": " 🙂"}]
    other = server.chat(
        messages=[{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}],
        temperature=0,
        max_tokens=5,
    )
    assert other["choices"] == plain["choices"]


def test_several_prompts_as_texts_or_tokens_and_several_copies_stand_in_order(server, tokenizer):
    texts = ["the quick", "fox 🙂", "brown"]
    alone = [server.complete(text, temperature=0, max_tokens=7)["choices"][0]["text"] for text in texts]
    both = server.complete(texts, temperature=0, max_tokens=7, n=2)
    assert [choice["text"] for choice in both["choices"]] == [text for text in alone for _ in range(2)]
    assert [choice["index"] for choice in both["choices"]] == list(range(6))
    ids = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in texts]
    assert [c["text"] for c in server.complete(ids, temperature=0, max_tokens=7)["choices"]] == alone
    assert server.complete(ids[1], temperature=0, max_tokens=7)["choices"][0]["text"] == alone[1]


def test_usage_counts_every_text_and_a_prompt_once_whatever_its_copies(server, tokenizer):
    texts = ["the quick", "fox 🙂"]
    usage = server.complete(texts, max_tokens=7, n=3, ignore_eos=True)["usage"]
    assert usage["completion_tokens"] == 2 * 3 * 7
    assert usage["prompt_tokens"] == sum(1 + len(tokenizer.encode(text)) for text in texts)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_a_seed_repeats_a_text_and_copies_differ(server):
    one, two = (server.complete("fox", seed=3, n=4, max_tokens=9, temperature=2) for _ in range(2))
    texts = [choice["text"] for choice in one["choices"]]
    assert texts == [choice["text"] for choice in two["choices"]]
    assert len(set(texts)) > 1


def test_log_probabilities_of_an_echo_are_the_models(server, model, tokenizer):
    tokens = tokenizer.encode("the quick brown 你好")
    answer = server.complete(tokens, temperature=0, max_tokens=3, echo=True, logprobs=2)["choices"][0]
    with torch.no_grad():
        written = greedy(model, tokens, 3)
        exact = model(torch.tensor([[*tokens, *written]]))[0].log_softmax(-1)
    table = answer["logprobs"]
    assert table["token_logprobs"][0] is None
    assert table["top_logprobs"][0] is None
    for i, token in enumerate([*tokens, *written][1:], start=1):
        assert table["token_logprobs"][i] == pytest.approx(float(exact[i - 1, token]), abs=2e-5)
        assert max(table["top_logprobs"][i].values()) == pytest.approx(float(exact[i - 1].max()), abs=2e-5)
        assert len(table["top_logprobs"][i]) in (2, 3)
    assert answer["text"].startswith("the quick brown 你好")
    for start, token in zip(table["text_offset"], table["tokens"], strict=True):
        if not token.startswith("bytes:"):
            assert answer["text"].startswith(token, start) or tokenizer.token_id(token) is not None


def test_an_echo_without_text_scores_the_prompt_alone(server):
    answer = server.complete("the quick brown", max_tokens=0, echo=True, logprobs=1)
    assert answer["choices"][0]["text"] == "the quick brown"
    table = answer["choices"][0]["logprobs"]
    assert "".join(table["tokens"]) == "the quick brown"
    assert all(p < 0 for p in table["token_logprobs"])  # the begin token stands before the first
    assert answer["usage"]["completion_tokens"] == 0
    assert server.complete("the quick", max_tokens=0)["choices"][0]["text"] == ""


def test_log_probabilities_without_others_name_none(server):
    table = server.complete("the quick", max_tokens=3, logprobs=0, ignore_eos=True)["choices"][0]["logprobs"]
    assert table["top_logprobs"] is None
    assert [p < 0 for p in table["token_logprobs"]] == [True] * 3


def test_log_probabilities_of_a_chat_have_their_bytes(server):
    answer = server.chat(temperature=0, max_tokens=5, logprobs=True, top_logprobs=3)["choices"][0]
    for row in answer["logprobs"]["content"]:
        assert len(row["top_logprobs"]) == 3
        assert row["top_logprobs"][0]["logprob"] == pytest.approx(row["logprob"], abs=1e-6)  # greedy: the likeliest
        if not row["token"].startswith("bytes:"):
            assert bytes(row["bytes"]).decode() == row["token"]
    assert server.chat(temperature=0, max_tokens=5, logprobs=True)["choices"][0]["logprobs"]["content"][0][
        "top_logprobs"
    ] == []  # fmt: skip


def test_a_stop_text_ends_an_answer_and_is_not_shown(server):
    whole = server.complete("the quick", temperature=0, max_tokens=20)["choices"][0]["text"]
    stop = whole[3:6]
    answer = server.complete("the quick", temperature=0, max_tokens=20, stop=["\x00no", stop])
    assert answer["choices"][0]["text"] == whole[: whole.index(stop)]
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_a_bias_rules_and_drafts_change_nothing(server, tokenizer):
    token = tokenizer.encode("fox")[0]
    answer = server.complete("a", logit_bias={str(token): 100}, max_tokens=4, temperature=0)
    assert answer["choices"][0]["text"] == tokenizer.decode([token] * 4)
    texts = {server.complete("the", temperature=0, max_tokens=15, drafts=k)["choices"][0]["text"] for k in (0, 1, 3)}
    assert len(texts) == 1


def join_stream(events, chat):
    """Put a stream together: text and finish by choice, usage, log-probabilities."""
    texts, ends, scores, usage = {}, {}, {}, None
    for event in events:
        usage = event.get("usage") or usage
        for choice in event["choices"]:
            i = choice["index"]
            shown = choice["delta"].get("content") or "" if chat else choice["text"]
            texts[i] = texts.get(i, "") + shown
            assert i not in ends, "something comes behind the end"
            if choice["finish_reason"]:
                ends[i] = choice["finish_reason"]
            if choice["logprobs"]:
                column = "content" if chat else "token_logprobs"
                scores[i] = scores.get(i, []) + choice["logprobs"][column]
    return texts, ends, scores, usage


def check_stream(server, chat, body):
    """A stream put together is the whole answer."""
    path = "/v1/chat/completions" if chat else "/v1/completions"
    words = {"messages": CHAT} if chat else {"prompt": ["the 你", "🙂"]}
    body = {**words, **body}
    status, plain = server.post(path, {"model": "tiny", **body})
    assert status == 200, plain
    events = server.stream(path, {**body, "stream_options": {"include_usage": True}})
    texts, ends, scores, usage = join_stream(events, chat)
    shown = [c["message"]["content"] if chat else c["text"] for c in plain["choices"]]
    assert [texts[i] for i in range(len(shown))] == shown
    assert [ends[i] for i in range(len(shown))] == [c["finish_reason"] for c in plain["choices"]]
    assert {k: usage[k] for k in ("prompt_tokens", "completion_tokens")} == {
        k: plain["usage"][k] for k in ("prompt_tokens", "completion_tokens")
    }
    if plain["choices"][0]["logprobs"]:
        column = "content" if chat else "token_logprobs"
        assert [scores[i] for i in range(len(shown))] == [c["logprobs"][column] for c in plain["choices"]]
    assert [bool(event["choices"]) for event in events] == [True] * (len(events) - 1) + [False]


SEEDS = [pytest.param(range(12), id="12"), pytest.param(range(500), marks=pytest.mark.slow, id="500")]


@pytest.mark.parametrize("chat", [False, True], ids=["text", "chat"])
@pytest.mark.parametrize("seeds", SEEDS)
def test_a_stream_put_together_is_the_whole_answer(server, seeds, chat):
    """Random bytes from an untrained model: characters of up to four bytes, whole and broken, across tokens."""
    for seed in seeds:
        more = {"seed": seed, "temperature": 1.5, "max_tokens": 3 + seed % 17, "n": 1 + seed % 3}
        if seed % 4 == 1:
            more["stop"] = ["e", "你"]
        if seed % 4 == 2:
            more |= {"logprobs": True, "top_logprobs": 1} if chat else {"logprobs": 1, "echo": True}
        check_stream(server, chat, more)


def test_a_stream_without_usage_says_nothing_of_it(server):
    events = server.stream("/v1/completions", {"prompt": "a", "max_tokens": 3})
    assert all("usage" not in event for event in events)
    first = server.stream("/v1/chat/completions", {"messages": CHAT, "max_tokens": 3})[0]
    assert first["choices"][0]["delta"]["role"] == "assistant"


def test_a_stream_tells_how_its_tokens_came(server):
    body = {"prompt": "the", "temperature": 0, "max_tokens": 30, "drafts": 2}
    events = server.stream("/v1/completions", {**body, "stream_options": {"include_drafts": True}})
    came = [pair for event in events for choice in event["choices"] for pair in choice["drafts"]]
    text = "".join(choice["text"] for event in events for choice in event["choices"])
    shown = "".join(piece for piece, how in came if how < 2)
    assert shown == text.rstrip("\ufffd") or shown == text
    assert {how for _, how in came} <= {0, 1, 2}
    assert sum(how == 2 for _, how in came) > 0


def test_structured_output_is_of_its_form(server):
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["a"]}
    schema["additionalProperties"] = False
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for seed in range(5):
        answer = server.chat(response_format=form, max_tokens=60, seed=seed, temperature=2)["choices"][0]
        if answer["finish_reason"] == "stop":
            assert json.loads(answer["message"]["content"])["a"] in range(10)
    answer = server.complete("x", response_format={"type": "regex", "regex": "[ab]{3}"}, max_tokens=9)
    assert set(answer["choices"][0]["text"]) <= {"a", "b"}
    assert len(answer["choices"][0]["text"]) == 3
    for wrong in ({"type": "json_schema"}, {"type": "regex", "regex": "("}, {"type": "grammar", "grammar": "%%%"}):
        status, said = server.post(
            "/v1/completions", {"model": "tiny", "prompt": "x", "response_format": wrong, "max_tokens": 2}
        )
        assert (status, said["error"]["param"]) == (400, "response_format"), said
