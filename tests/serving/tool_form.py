"""A tokenizer with DeepSeek's marks of tools, and a template that writes them."""

from tokenizers import AddedToken

from deepseek_v3.data.side_files import SideFiles
from deepseek_v3.data.tokenizer import Tokenizer

BEGIN, END, SEP = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁sep｜>"
CALL, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
OUTPUTS = ("<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>")
MARKS = (BEGIN, END, CALL, CALL_END, SEP, *OUTPUTS)  # as in the released tokenizer: added, but not special
TEXT = 'the quick brown fox jumps; héllo wörld, 你好世界 and 🙂🙃 again. {"a": [1, 2]} ' * 5

TEMPLATE = """
{{- bos_token }}
{%- if tools %}{{ '## Tools' }}{% for tool in tools %}{{ '\n' + tool.function.name + ' ' + tool | tojson }}{% endfor %}{% endif -%}
{%- for message in messages -%}
{%- if message.role == 'user' %}{{ '<｜User｜>' + message.content }}
{%- elif message.role == 'tool' %}{{ '<｜tool▁output▁begin｜>' + message.content + '<｜tool▁output▁end｜>' }}
{%- elif message.role == 'assistant' -%}{{ '<｜Assistant｜>' + (message.content or '') }}
{%- if message.tool_calls -%}{{ '<｜tool▁calls▁begin｜>' }}
{%- for call in message.tool_calls %}{{ '<｜tool▁call▁begin｜>' + call.function.name }}
{{- '<｜tool▁sep｜>' + call.function.arguments + '<｜tool▁call▁end｜>' }}{% endfor -%}
{{- '<｜tool▁calls▁end｜>' }}{% endif %}{{ eos_token }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"""  # noqa: E501


def new_form(name: str, arguments: str) -> str:
    return f"{CALL}{name}{SEP}{arguments}{CALL_END}"


def old_form(name: str, arguments: str) -> str:
    return f"{CALL}function{SEP}{name}\n```json\n{arguments}\n```{CALL_END}"


def train_with_tools(vocab_size: int) -> Tokenizer:
    """A tokenizer of so many tokens and the marks behind them."""
    backend = Tokenizer.train([TEXT], vocab_size)._backend
    backend.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in MARKS])
    return Tokenizer(backend, side=SideFiles({"chat_template.jinja": TEMPLATE.encode()}))
