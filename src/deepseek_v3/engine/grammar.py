"""Structured output: which tokens a grammar allows next, by llguidance.

    grammars = Grammars(tokenizer.to_json(), vocab_size=config.vocab_size, end_token=tokenizer.eos_id)
    Request(tokens, constraint=grammars.compile("json_schema", {"type": "object", ...}))

A constraint is compiled once and serves any number of sequences, each with a state of its own. The end token is allowed
where the grammar may end. Drafts are tried in order and taken back: a draft that breaks the grammar falls.

Letters: S rows, V vocabulary, W words of 32 bits.
"""

import json
from collections.abc import Mapping, Sequence
from secrets import token_hex
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepseek_v3.engine.sampler import BrokenLogits

KINDS = ("json_object", "json_schema", "regex", "grammar")
GRAMMAR_FAILED = "masked by a grammar that failed"
COMPACT: Any = {"whitespace_flexible": False}  # of JSON: else a model that likes spaces writes them until it is cut


class Grammars:
    """Compiles grammars for one tokenizer; any thread may ask."""

    def __init__(self, tokenizer_json: str, *, vocab_size: int, end_token: int) -> None:
        """Take a tokenizer.json as text.

        Args:
            vocab_size: the model's, spare ids included.
            end_token: ends a text whose grammar is complete.
        Raises:
            ImportError: llguidance is not installed.
        """
        try:
            import llguidance  # only who constrains needs it
        except ImportError:
            raise ImportError("structured output needs llguidance: pip install llguidance") from None
        self.library = llguidance
        self.vocab_size, self.end_token = vocab_size, end_token
        renamed = rename_added_tokens(tokenizer_json)
        self.tokenizer = llguidance.LLTokenizer(renamed, n_vocab=vocab_size, eos_token=end_token)

    def compile(self, kind: str, source: str | Mapping[str, Any] = "") -> "Constraint":
        """Compile a grammar.

        Args:
            kind: json_object (any), json_schema, regex, or grammar in Lark's notation.
            source: the schema as JSON or a dict, the expression, or the grammar.
        Raises:
            ValueError: a kind, schema or grammar that cannot be served, and why.
        """
        matcher = self.library.LLMatcher(self.tokenizer, self._write(kind, source), log_level=0)
        if matcher.is_error():
            raise ValueError(f"this {kind} cannot be served: {matcher.get_error().splitlines()[0][:200]}")
        return Constraint(matcher, self.vocab_size, self.end_token)

    def _write(self, kind: str, source: str | Mapping[str, Any]) -> str:
        """Say a grammar in llguidance's own notation."""
        make = self.library.LLMatcher
        if kind in ("regex", "grammar"):
            return (make.grammar_from_regex if kind == "regex" else make.grammar_from_lark)(str(source))
        if kind not in KINDS:
            raise ValueError(f"a constraint of kind {kind!r} is not known; there are {', '.join(KINDS)}")
        schema = {"type": "object"} if kind == "json_object" else read_schema(source)
        return make.grammar_from_json_schema(schema, COMPACT)


def rename_added_tokens(tokenizer_json: str) -> str:
    """Give added tokens names that no text holds: a form that demands `<｜User｜>` is then written letter by letter.

    Else llguidance demands the token itself there, and afterwards does not take it for these letters.
    """
    content, secret = json.loads(tokenizer_json), token_hex(16)
    names = {token["content"]: f"{secret} {token['id']}" for token in content["added_tokens"]}
    for token in content["added_tokens"]:
        token |= {"content": names[token["content"]], "special": True}
    vocab = content["model"]["vocab"]
    content["model"]["vocab"] = {names.get(name, name): token for name, token in vocab.items()}
    return json.dumps(content)


def read_schema(source: str | Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema as a dict.

    Raises:
        ValueError: it is not JSON, or not an object.
    """
    try:
        schema = json.loads(source) if isinstance(source, str) else dict(source)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the json_schema is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise ValueError(f"a JSON schema must be an object, not {type(schema).__name__}")
    return schema


class Constraint:
    """A compiled grammar, and how far one text has come in it."""

    def __init__(self, matcher: Any, vocab_size: int, end_token: int) -> None:
        self.matcher, self.vocab_size, self.end_token = matcher, vocab_size, end_token

    def begin(self) -> "Constraint":
        """Return one of its own for a text that has not begun."""
        return Constraint(self.matcher.deep_copy(), self.vocab_size, self.end_token)

    def allowed(self, drafts: Sequence[int], first: int) -> Tensor:
        """Say which tokens may follow `first` of the drafts, one more of them, ..., all of them: booleans [S, V].

        Behind a draft that ends the text or breaks the grammar all may: nothing will stand there.
        """
        from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

        words_SW = allocate_token_bitmask(len(drafts) + 1 - first, self.vocab_size)
        taken = 0
        for behind in range(len(drafts) + 1):
            if behind >= first:
                fill_next_token_bitmask(self.matcher, words_SW, behind - first)
            if behind == len(drafts) or self.matcher.is_stopped() or drafts[behind] == self.end_token:
                break
            if self.matcher.try_consume_tokens([drafts[behind]]) == 0:
                break
            taken += 1
        if taken:
            self.matcher.rollback(taken)
        self._refuse_error()
        bits_SV = np.unpackbits(words_SW.view(np.uint8), axis=1, bitorder="little")[:, : self.vocab_size]
        return torch.from_numpy(bits_SV.astype(bool))

    def take(self, token: int) -> bool:
        """Go on by a token of the text; return whether nothing can follow it."""
        self.matcher.consume_token(token)
        self._refuse_error()
        return self.matcher.is_stopped()

    def _refuse_error(self) -> None:
        if self.matcher.is_error():
            raise BrokenLogits(f"{GRAMMAR_FAILED}: {self.matcher.get_error().splitlines()[0][:200]}")
