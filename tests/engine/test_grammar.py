"""What a constrained text is, another validator accepts; drafts that break the grammar fall and leave no trace."""

import json
import random
import re
from functools import cache

import pytest
import tokenizers
import torch

from deepseek_v3.data.tokenizer import Tokenizer
from deepseek_v3.engine.engine import Engine
from deepseek_v3.engine.grammar import Grammars
from deepseek_v3.engine.request import EngineOptions, Request
from deepseek_v3.engine.sampler import SamplingRule
from deepseek_v3.engine.sequence import Sequence
from deepseek_v3.engine.steering import Steering
from deepseek_v3.model.transformer import DeepseekV3
from tests.tiny import tiny_config

pytest.importorskip("llguidance")
VOCAB = 331  # spare ids behind the tokenizer's
LONGEST = 700


@cache
def make_tokenizer() -> Tokenizer:
    return Tokenizer.train(['{"name": "Ada", "ages": [12, 7]} true false null '] * 9, 317)


@cache
def make_model() -> DeepseekV3:
    torch.manual_seed(14)
    config = tiny_config(
        vocab_size=VOCAB, num_hidden_layers=2, max_position_embeddings=2 * LONGEST, num_nextn_predict_layers=1
    )
    return DeepseekV3(config)


@cache
def make_grammars() -> Grammars:
    tokenizer = make_tokenizer()
    return Grammars(tokenizer.to_json(), vocab_size=VOCAB, end_token=tokenizer.eos_id)


def write(kind: str, source="", *, model: DeepseekV3 | None = None, **options) -> tuple[str, Sequence]:
    """Let the model write under a grammar; return the text and the sequence."""
    tokenizer, constraint = make_tokenizer(), make_grammars().compile(kind, source)
    engine = Engine(model or make_model(), EngineOptions(n_blocks=1, block_size=2 * LONGEST), stream=tokenizer.stream)
    request = Request([tokenizer.bos_id, 70], **{"max_new_tokens": LONGEST, "constraint": constraint, **options})
    sequence, text = engine.admit(request), ""
    while not sequence.finish:
        text += "".join(event.shown for event in engine.step())
    assert not sequence.error
    return text, sequence


def random_schema(draw: random.Random, depth: int = 2) -> dict:
    """Bounded strings, numbers, arrays and objects, one in the other."""
    kinds = ["string", "integer", "number", "boolean", "null", "enum"] + ["array", "object"] * (depth > 0)
    kind = draw.choice(kinds) if depth < 2 else "object"
    low = draw.randint(-40, 40)
    if kind == "string":
        return {"type": "string", "minLength": draw.randint(0, 2), "maxLength": draw.randint(2, 7)}
    if kind == "integer":
        return {"type": "integer", "minimum": low, "maximum": low + draw.randint(0, 300)}
    if kind == "number":  # with at most two digits behind the point
        return {"type": "number", "minimum": low, "maximum": low + 9, "multipleOf": 0.25} if draw.random() < 0.5 else {
            "type": "number", "enum": [0.5, -3, 1e3]
        }  # fmt: skip
    if kind == "enum":
        return {"enum": ["red", "grün", 7, None]}
    if kind == "array":
        return {"type": "array", "items": random_schema(draw, depth - 1), "minItems": 1, "maxItems": draw.randint(1, 3)}
    if kind == "object":
        names = draw.sample(["a", "b", "name", "größe", "x y"], draw.randint(1, 3))
        properties = {name: random_schema(draw, depth - 1) for name in names}
        required = draw.sample(names, draw.randint(0, len(names)))
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {"type": kind}


def check_schema(seed: int) -> None:
    """A random schema, greedy or drawn, with and without drafts: what comes validates."""
    jsonschema = pytest.importorskip("jsonschema")
    schema = random_schema(random.Random(seed))
    how = {"rule": SamplingRule(1.2), "seed": seed} if seed % 3 else {}
    text, sequence = write("json_schema", schema, drafts=seed % 4, **how)
    assert sequence.finish == "stop", text
    jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize("seed", range(20))
def test_what_an_untrained_model_writes_under_a_schema_validates(seed):
    check_schema(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20, 200))
def test_what_an_untrained_model_writes_under_200_schemas_validates(seed):
    check_schema(seed)


@pytest.mark.parametrize("seed", range(3))
def test_greedy_text_under_a_grammar_is_the_same_with_drafts(seed):
    schema = random_schema(random.Random(seed))
    steering = Steering(logit_bias={token: random.Random(seed + token).random() for token in range(VOCAB)})
    texts = [write("json_schema", schema, drafts=drafts, steering=steering)[0] for drafts in (0, 1, 3)]
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize("drafts", [0, 2])
def test_regular_expressions_and_grammars_are_followed_to_their_end(drafts):
    how = {"rule": SamplingRule(1.5), "drafts": drafts}
    for seed in range(3):
        text, sequence = write("regex", r"[a-f]{3,9}-\d{2}", seed=seed, **how)
        assert re.fullmatch(r"[a-f]{3,9}-\d{2}", text)
        text, _ = write("grammar", 'start: "(" item ("," item)? ")"\nitem: /[xy]{1,3}/', seed=seed, **how)
        assert re.fullmatch(r"\([xy]{1,3}(,[xy]{1,3})?\)", text)
        assert sequence.finish == "stop"


@pytest.mark.parametrize("special", [True, False])
def test_names_of_added_tokens_that_a_grammar_demands_are_written_as_letters(special):
    """Such a token itself would be no text, or a control token that nobody but a template may write."""
    plain = make_tokenizer()
    backend = tokenizers.Tokenizer.from_str(plain.to_json())
    backend.add_tokens([tokenizers.AddedToken("<｜mark｜>", special=special), tokenizers.AddedToken("<ascii>")])
    tokenizer = Tokenizer(backend)
    grammars = Grammars(tokenizer.to_json(), vocab_size=VOCAB, end_token=tokenizer.eos_id)
    for name in ("<｜mark｜>", "<ascii>", "<think>", "<｜end▁of▁sentence｜>"):
        words = f"a{name}b{name}"
        constraint = grammars.compile("regex", re.escape(words))
        for rule in (SamplingRule(), SamplingRule(1.5)):
            engine = Engine(make_model(), EngineOptions(n_blocks=1, block_size=200), stream=tokenizer.stream)
            sequence = engine.admit(Request([0, 70], rule, max_new_tokens=150, drafts=1, constraint=constraint))
            shown = "".join(event.shown for _ in range(150) if not sequence.finish for event in engine.step())
            assert (shown, sequence.finish, sequence.error) == (words, "stop", "")
            assert not set(sequence.text) & set(tokenizer.added_tokens.values())


def test_a_text_that_was_cut_says_so_and_any_object_is_an_object():
    text, sequence = write("json_schema", {"type": "string", "minLength": 50}, max_new_tokens=20)
    assert sequence.finish == "length"
    assert text.startswith('"')
    text, sequence = write("json_object", rule=SamplingRule(1.0), seed=2)
    assert text.startswith("{")
    assert sequence.finish == "length" or isinstance(json.loads(text), dict)


def test_a_draft_that_breaks_the_grammar_leaves_no_trace():
    tokenizer = make_tokenizer()
    state = make_grammars().compile("regex", "[ab]{2}c").begin()
    (a, c), end = _letters("a", "c"), tokenizer.eos_id
    before = state.allowed([], 0)
    rows = state.allowed([a, c, a], 0)  # c comes too early
    assert rows.shape == (4, VOCAB)
    assert rows[0].equal(before[0])
    assert rows[1, a]
    assert not rows[1, c]
    assert rows[2].all()  # behind what falls
    assert state.allowed([a], 1).equal(rows[1:2])  # what a module asks for its second draft
    assert state.allowed([], 0).equal(before)
    assert not state.take(a)
    assert not state.take(a)
    ends = state.allowed([c, end], 0)
    assert ends[0].nonzero().flatten().tolist() == [c]
    assert ends[1].nonzero().flatten().tolist() == [end]
    assert ends[2].all()
    assert state.take(c)  # nothing can follow


def _letters(*letters: str) -> list[int]:
    return [make_tokenizer().encode(letter)[0] for letter in letters]


def test_one_constraint_serves_many_texts_each_from_its_beginning():
    constraint = make_grammars().compile("regex", "ab")
    a, b = _letters("a", "b")
    first, second = constraint.begin(), constraint.begin()
    first.take(a)
    assert first.allowed([], 0)[0, b]
    assert not second.allowed([], 0)[0, b]


@pytest.mark.parametrize(
    ("kind", "source", "word"),
    [
        ("xml", "", "kind 'xml' is not known"),
        ("json_schema", "[]", "a JSON schema must be an object"),
        ("json_schema", "{", "json_schema is not JSON"),
        ("json_schema", {"type": "no such"}, "this json_schema cannot be served"),
        ("json_schema", {"type": "object", "not": {}}, "this json_schema cannot be served"),
        ("regex", "(", "this regex cannot be served"),
        ("grammar", "start: missing", "this grammar cannot be served"),
    ],
)
def test_what_cannot_be_served_is_refused_with_a_reason(kind, source, word):
    with pytest.raises(ValueError, match=word):
        make_grammars().compile(kind, source)


def test_a_constraint_for_another_vocabulary_is_refused():
    tokenizer = make_tokenizer()
    other = Grammars(tokenizer.to_json(), vocab_size=VOCAB + 32, end_token=tokenizer.eos_id)
    engine = Engine(make_model(), EngineOptions(n_blocks=1))
    with pytest.raises(ValueError, match="the constraint is made for 363 tokens, the model has 331"):
        engine.admit(Request([3], max_new_tokens=2, constraint=other.compile("json_object")))
