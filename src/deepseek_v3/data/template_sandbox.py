"""Run a chat template that came with a checkpoint: it reaches nothing, and ends in bounded time and size.

    run = compile_template(source)
    text = run(messages=[...], bos_token="<s>")

Jinja's immutable sandbox keeps a template from Python's inner names and from changing what it is handed. It knows no
bounds, so every loop, call, filter, sum and output is counted here: characters against SIZE, processor time against
SECONDS. There is no loader, so a template cannot include a file.
"""

import functools
import json
import re
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import islice
from threading import local
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.filters import FILTERS
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

SOURCE_SIZE = 2**17  # of a template; the longest released ones have some 10,000 characters
SIZE = 2**25  # characters that a rendering may make, those of steps on the way included
SECONDS = 2.0  # of this thread's processor time, so that a busy machine changes nothing
ITEM = 16  # characters that any value counts for beside its own
ITEMS = 10**5  # of one sequence or number handed to a function
WIDTH = 16  # of an indentation
FILTER_NAMES = """abs capitalize count d default dictsort e escape first float groupby indent int items join last length
list lower map max min reject rejectattr replace reverse round safe select selectattr sort string sum title trim unique
upper"""


class ChatError(ValueError):
    """A dialogue or a template that cannot be used; the message says which part."""


class Budget(local):
    """What the rendering in this thread has spent."""

    size, until = 0, 0.0

    def open(self) -> None:
        """Begin a rendering."""
        self.size, self.until = 0, time.thread_time() + SECONDS

    def charge(self, characters: int) -> None:
        """Count characters, and look at the clock."""
        self.size += characters
        if self.size > SIZE:
            raise ChatError(f"the chat template makes more than {SIZE:,} characters")
        if time.thread_time() > self.until:
            raise ChatError(f"the chat template takes more than {SECONDS:g} s")


def weigh(value: Any) -> int:
    """Count the characters of a value, nested ones as often as they stand there; it stops a little over SIZE."""
    stack, total = [value], 0
    while stack and total <= SIZE:
        item = stack.pop()
        total += ITEM
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, dict):
            stack += [*item, *item.values()]
        elif isinstance(item, list | tuple):
            stack += item
        elif isinstance(item, int):
            total += item.bit_length() // 3
    return total


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of all templates; the budget is that of the thread."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])  # type: ignore[assignment]

    def __init__(self) -> None:
        self.budget = Budget()
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # nothing is computed while compiling, outside the budget
            finalize=self.spend,
            extensions=["jinja2.ext.loopcontrols", Generation],
        )
        self.filters = {name: self.guard(FILTERS[name]) for name in FILTER_NAMES.split()}
        self.filters["tojson"] = self.guard(to_json)
        self.globals = {name: self.globals[name] for name in ("range", "namespace", "dict")}
        self.globals |= {"raise_exception": refuse, "strftime_now": lambda form: datetime.now().strftime(form)}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = Counted().visit(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree

    def tick(self, characters: int) -> str:
        """Count one turn of a loop, with the fixed text that stands in it."""
        self.budget.charge(characters)
        return ""

    def spend(self, value: Any) -> Any:
        """Count what is about to become text, or what has just been made."""
        self.budget.charge(weigh(value))
        return value

    def concat_all(self, *parts: Any) -> str:
        """Join the operands of ~ to a text."""
        self.spend(list(parts))
        return "".join(map(str, parts))

    def guard(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a filter so that what it is handed, and what it returns, is counted."""

        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            values = [self.take(arg) for arg in args]
            named = {name: self.take(arg) for name, arg in kwargs.items()}
            self.foresee(function.__name__, [*values, *named.values()])
            return self.take(function(*values, **named))

        return guarded

    def take(self, value: Any) -> Any:
        """Return a value that can be counted: of an iterator a list."""
        if isinstance(value, Iterator):
            value = list(islice(value, ITEMS))
        return self.spend(value)

    def foresee(self, name: str, values: list[Any]) -> None:
        """Refuse what would be large before it is made: by a count, or by putting a text into another many times."""
        most = WIDTH if name in ("do_indent", "to_json") else ITEMS
        if any(isinstance(value, int) and abs(value) > most for value in values):
            raise ChatError(f"the chat template hands more than {most:,} to {name}")
        texts = [value for value in values if isinstance(value, str)]
        if "replace" in name and len(texts) > 2:
            self.budget.charge((texts[0].count(texts[1]) if texts[1] else len(texts[0]) + 1) * len(texts[2]))
        elif "join" in name:
            self.budget.charge(sum(map(len, texts)) * max((len(v) for v in values if hasattr(v, "__len__")), default=0))

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call what the template may call, counted."""
        bound = getattr(obj, "__self__", None)
        if bound is not self:
            handed = [bound, *args, *kwargs.values()] if isinstance(bound, str) else [*args, *kwargs.values()]
            self.spend(handed)
            self.foresee(getattr(obj, "__name__", "a function"), handed)
        return self.spend(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute what two values give, if it is not too large."""
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "**" and (not numbers or abs(right) > 64 or abs(left) > ITEMS):
            raise ChatError("the chat template computes a power that is too large")
        if operator == "*" and not numbers:
            count = next((value for value in (left, right) if isinstance(value, int)), 0)
            self.budget.charge(max(0, count) * (weigh(left) + weigh(right)))
        if operator == "%" and isinstance(left, str) and re.search(r"\*|\d{4}", left):
            raise ChatError("the chat template writes a number of unbounded width")
        self.spend([left, right])
        return self.spend(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> None:
        """Let `format` of a text be judged like any attribute."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may read an attribute; a text's `format` can write any width."""
        return attr not in ("format", "format_map") and super().is_safe_attribute(obj, attr, value)


class Counted(NodeTransformer):
    """Let every turn of a loop, and every ~, be counted by attributes of the environment: no template can hide them."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        """Count a turn, and the fixed text in it."""
        fixed = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        node.body.insert(0, nodes.Output([call_environment("tick", [nodes.Const(1 + fixed)])], lineno=node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        """Join by a method that counts."""
        self.generic_visit(node)
        return call_environment("concat_all", node.nodes)


def call_environment(name: str, args: list[nodes.Expr]) -> nodes.Call:
    """Write a call of a method of the environment."""
    return nodes.Call(nodes.EnvironmentAttribute(name), args, [], None, None)


class Generation(Extension):
    """The tag {% generation %} marks an answer in some templates; here it is what stands in it."""

    tags = {"generation"}  # noqa: RUF012  # as Jinja declares it

    def parse(self, parser: Any) -> list[nodes.Node]:
        """Read up to the end of the tag."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, sort_keys: bool = False) -> str:
    """Write JSON as chat templates expect it: no HTML escapes, letters as they are."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)


def refuse(message: str) -> None:
    """Let a template refuse a dialogue.

    Raises:
        ChatError: always.
    """
    raise ChatError(f"the chat template refuses this dialogue: {str(message)[:500]}")


SANDBOX = Sandbox()


def compile_template(source: str) -> Callable[..., str]:
    """Return the function that renders a template.

    Raises:
        ChatError: it is too long, or no template; the function raises one for what it refuses, cannot or may not do.
    """
    if len(source) > SOURCE_SIZE:
        raise ChatError(f"the chat template has {len(source):,} characters; {SOURCE_SIZE:,} are the most")
    template = _bounded(SANDBOX.from_string)(source)

    def render(**values: Any) -> str:
        parts: list[str] = []
        for part in template.generate(**values):
            SANDBOX.budget.charge(len(part))
            parts.append(part)
        return "".join(parts)

    return _bounded(render)


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run with a budget of its own; whatever goes wrong is said of the template."""

    def run(*args: Any, **kwargs: Any) -> Any:
        SANDBOX.budget.open()
        try:
            return function(*args, **kwargs)
        except ChatError:
            raise
        except SecurityError as error:
            raise ChatError(f"the chat template is stopped: {str(error)[:200]}") from None
        except TemplateError as error:
            raise ChatError(f"the chat template does not work: {str(error)[:200]}") from None
        except (ArithmeticError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as error:
            said = f"{type(error).__name__}: {str(error)[:200]}"
            raise ChatError(f"the chat template does not work here: {said}") from None

    return run
