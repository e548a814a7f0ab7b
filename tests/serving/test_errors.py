"""What cannot be served is answered in OpenAI's words, codes and objects, and never by a server error."""

import json

import pytest

LONG = "fox " * 400
HELLO = [{"role": "user", "content": "a"}]


def fault(server, path="/v1/completions", **body):
    status, said = server.post(path, {"model": "tiny", **body})
    assert set(said) == {"error"}, said
    assert set(said["error"]) == {"message", "type", "param", "code"}
    return status, said["error"]


def test_a_prompt_beyond_the_context_is_told_in_tokens(server):
    status, error = fault(server, prompt=LONG)
    assert (status, error["code"], error["type"]) == (400, "context_length_exceeded", "invalid_request_error")
    assert error["message"].startswith("This model's maximum context length is 256 tokens. However, you requested ")
    status, error = fault(server, "/v1/chat/completions", messages=[{"role": "user", "content": LONG}])
    assert (status, error["code"], error["param"]) == (400, "context_length_exceeded", "messages")
    status, error = fault(server, prompt="a", max_tokens=1000)
    assert (status, error["code"]) == (400, "context_length_exceeded")
    assert "1000 in the completion" in error["message"]


def test_another_model_is_not_found(server):
    status, error = fault(server, model="gpt-4", prompt="a")
    assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert server.get("/v1/models/tiny")[1]["id"] == "tiny"
    assert server.get("/v1/models/other/one")[0] == 404


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [10**30]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": "a", "temperature": 2.1}, "temperature"),
        ({"prompt": "a", "temperature": "1"}, "temperature"),
        ({"prompt": "a", "temperature": True}, "temperature"),
        ({"prompt": "a", "top_p": 0}, "top_p"),
        ({"prompt": "a", "top_k": -2}, "top_k"),
        ({"prompt": "a", "min_p": 1.1}, "min_p"),
        ({"prompt": "a", "presence_penalty": -2.1}, "presence_penalty"),
        ({"prompt": "a", "repetition_penalty": 0}, "repetition_penalty"),
        ({"prompt": "a", "n": 0}, "n"),
        ({"prompt": "a", "n": 10**9}, "n"),
        ({"prompt": "a", "max_tokens": -1}, "max_tokens"),
        ({"prompt": "a", "max_tokens": 1.5}, "max_tokens"),
        ({"prompt": "a", "seed": 2**64}, "seed"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
        ({"prompt": "a", "stop": ["a"] * 17}, "stop"),
        ({"prompt": "a", "stop": ""}, "stop"),
        ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias"),
        ({"prompt": "a", "logit_bias": {"1": 101}}, "logit_bias"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
        ({"prompt": "a", "suffix": "z"}, "suffix"),
        ({"prompt": "a", "stream_options": {"x": 1}}, "stream_options.x"),
        ({"prompt": "a", "frobnicate": 1}, "frobnicate"),
        ({"prompt": "a", "model": 7}, "model"),
        ({"prompt": ["a"] * 65}, "n"),
    ],
)
def test_a_field_out_of_its_bounds_is_named(server, body, param):
    status, error = fault(server, **body)
    assert (status, error["param"], error["type"]) == (400, param, "invalid_request_error"), error


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"prompt": "a", "stop": ["a"] * 17}, "stop: List should have at most 16 items"),
        ({"prompt": "a", "stop": [""]}, "stop.0: String should have at least 1 character"),
        ({"prompt": [1, "a"]}, "prompt.1: Input should be a valid integer"),
        ({"prompt": None}, "prompt: Input should be a valid string"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type: Input"),
        ({"messages": HELLO, "tool_choice": "required"}, "tool_choice: only 'none' and 'auto' are served here"),
    ],
)  # fmt: skip
def test_a_fault_is_told_in_words_of_the_request_not_of_its_parser(server, body, said):
    _, error = fault(server, "/v1/chat/completions" if "messages" in body else "/v1/completions", **body)
    assert error["message"].startswith(said)


def test_a_request_without_a_body_is_no_json(server):
    for body in (None, b"", b"[]"):
        status, said = server.post("/v1/completions", body)
        assert (status, said["error"]["message"]) == (400, "We could not parse the JSON body of your request.")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": "a"}]}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": "a"}], "top_logprobs": 3}, "top_logprobs"),
        ({"messages": [{"role": "user", "content": "a"}], "max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"messages": [{"role": "user", "content": "a"}], "tool_choice": "required"}, "tool_choice"),
        (
            {
                "messages": [{"role": "user", "content": "a"}],
                "tools": [{"type": "function", "function": {"name": "f"}}],
            },
            "tools",
        ),
    ],
)
def test_a_dialogue_that_cannot_be_answered_is_explained(server, body, param):
    status, error = fault(server, "/v1/chat/completions", **body)
    assert (status, error["param"]) == (400, param), error


def test_a_token_outside_the_vocabulary_is_the_clients_fault(server):
    for body in ({"prompt": [5, 9999]}, {"prompt": "a", "logit_bias": {"9999": 1}}):
        for stream in (False, True):
            status, error = fault(server, **body, stream=stream)
            assert status == 400
            assert "9999" in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"model": "tiny", "prompt": "\xff"}',
        b"[1]",
        b'"a"',
        b"null",
        b"\x00" * 9,
        b'{"a":1e999}',
    ],
)
def test_what_is_no_json_object_is_refused(server, body):
    status, said = server.post("/v1/completions", body)
    assert status == 400, said
    assert said["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "body",
    [
        '{"model": "tiny", "prompt": "a", "temperature": NaN}',
        '{"model": "tiny", "prompt": "a", "temperature": 1e400}',
        '{"model": "tiny", "prompt": "\\ud800"}',
        '{"model": "tiny", "prompt": "a", "user": "\\udc00x"}',
        '{"model": "\\ud83d", "prompt": "a"}',
        '{"model": "tiny", "prompt": "a", "seed": ' + "9" * 5000 + "}",
        '{"model": "tiny", "prompt": "a", "\\ud800": 1}',
    ],
)
def test_odd_numbers_and_half_characters_are_the_clients_fault(server, body):
    status, said = server.post("/v1/completions", body.encode())
    assert status == 400, said


def test_a_whole_surrogate_pair_is_a_character(server):
    status, said = server.post("/v1/completions", b'{"model": "tiny", "prompt": "\\ud83d\\ude42", "max_tokens": 1}')
    assert status == 200, said


def test_the_responses_api_is_declined_with_a_hint(server):
    status, said = server.post("/v1/responses", {"model": "tiny", "input": "a"})
    assert status == 404
    assert "/v1/chat/completions" in said["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "unknown_url"),
        ("GET", "/v1/models/", 404, None),
        ("POST", "/v1/models", 405, "method_not_supported"),
        ("GET", "/v1/completions", 405, "method_not_supported"),
        ("DELETE", "/v1/models/tiny", 405, "method_not_supported"),
        ("GET", "/docs", 404, "unknown_url"),
        ("GET", "/../../etc/passwd", 404, "unknown_url"),
        ("GET", "/%2e%2e/etc/passwd", 404, "unknown_url"),
        ("GET", "/v1//models", 404, "unknown_url"),
        ("GET", "/v1/models/%00", 404, "model_not_found"),
    ],
)
def test_an_address_or_method_that_is_none_is_an_error_object(server, method, path, status, code):
    found, _, said = server.ask(method, path, b"{}" if method == "POST" else None)
    assert (found, code or said["error"]["code"]) == (status, said["error"]["code"])


def test_no_error_names_a_file_or_an_address_in_memory(server):
    for body in (
        b"{",
        b'{"model": "tiny", "prompt": [1, [2]]}',
        json.dumps({"model": "x" * 400, "prompt": ""}).encode(),
    ):
        _, said = server.post("/v1/completions", body)
        text = json.dumps(said)
        assert not any(word in text for word in ("/work", "site-packages", ".py", "0x", "Traceback", "pydantic"))


@pytest.mark.parametrize("grammar", ["start: x\nx: x", 'start: "a" x\nx: x'], ids=["nothing", "a dead end"])
def test_a_grammar_that_leads_nowhere_is_the_clients_fault_and_ends_that_text_alone(server, grammar):
    wish = {"prompt": "a", "response_format": {"type": "grammar", "grammar": grammar}}
    status, error = fault(server, **wish)
    assert (status, error["param"], error["type"]) == (400, "response_format", "invalid_request_error")
    assert "leads nowhere" in error["message"]
    assert server.stream("/v1/completions", wish)[-1] == {"error": error}
    assert server.complete(max_tokens=3)["usage"]["completion_tokens"] == 3


BOUNDS = {"string": ["maxLength", "pattern"], "array": ["maxItems"], "object": ["maxProperties"]}
BOUNDS |= {"number": ["maximum"], "integer": ["maximum", "exclusiveMaximum"], "boolean": ["type"], "null": ["type"]}


def find_boundless(part, parts, place):
    """Places in a description of a request where a value may be as large as it likes."""
    if "$ref" in part:
        part = parts[part["$ref"].rsplit("/", 1)[1]]
    if "const" in part or "enum" in part:
        return []
    kind = part.get("type")
    fixed = kind == "object" and part.get("additionalProperties") is False
    found = [] if not kind or fixed or any(bound in part for bound in BOUNDS[kind]) else [f"{place}: {kind}"]
    below = [(place, one) for one in part.get("anyOf", [])]
    below += [(f"{place}.{name}", one) for name, one in part.get("properties", {}).items()]
    below += [(f"{place}[]", part[key]) for key in ("items", "additionalProperties") if isinstance(part.get(key), dict)]
    return found + [fault for where, one in below for fault in find_boundless(one, parts, where)]


def test_every_field_of_a_request_has_bounds(server):
    parts = server.get("/openapi.json")[1]["components"]["schemas"]
    for name in ("CompletionRequest", "ChatRequest"):
        assert len(parts[name]["properties"]) > 20
        assert find_boundless(parts[name], parts, name) == []
