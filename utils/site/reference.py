"""A page of the reference: modules, classes and functions with their docstrings, read from the source, imported never.

A docstring here is prose, blocks that are indented (formulas, commands, tables), and sections: `Args:`, `Attributes:`,
`Returns:`, `Raises:`, `Yields:`, `Source:`. Each entry links to its line.
"""

import ast
import re
import textwrap
from pathlib import Path

from utils.site.markdown import escape
from utils.site.pages import ROOT, Page, modules_of

SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Yields|Source|Sources|Letters|Shapes):(.*)$")
ENTRY = re.compile(r"^(\*{0,2}[\w.]+(?:, \*{0,2}[\w.]+)*): (.*)$")


def write_reference(page: Page, root: Path = ROOT) -> str:
    """Return the Markdown of a page of the reference; links lead to source files by their path in the repository."""
    parts = [f"# {escape(page.title)}\n"]
    for path in modules_of(page, root):
        parts.append(describe_module(path, path.relative_to(root).as_posix()))
    return "\n".join(parts)


def describe_module(path: Path, name: str) -> str:
    """Return a module: its docstring, then everything public in it, in the order of the file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    title = path.parent.name if path.stem == "__init__" else path.stem
    parts = [f"## {escape(title)}\n\n{link(name, 1)}\n", render(ast.get_docstring(tree) or "")]
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            parts.append(describe_object(node, name))
    return "\n".join(parts)


def describe_object(node: ast.FunctionDef | ast.ClassDef, name: str) -> str:
    """Return a function, or a class with its methods."""
    head = f"### {escape(node.name)}\n\n{link(name, node.lineno)}\n\n```python\n{sign(node)}\n```\n"
    parts = [head, render(ast.get_docstring(node) or "")]
    if isinstance(node, ast.ClassDef):
        methods = [m for m in node.body if isinstance(m, ast.FunctionDef) and not m.name.startswith("_")]
        for method in methods:
            words = render(ast.get_docstring(method) or "")
            parts.append(f"**{escape(node.name)}.{escape(method.name)}**\n\n```python\n{sign(method)}\n```\n\n{words}")
    return "\n".join(parts)


def link(name: str, line: int) -> str:
    """Return a link to a line of a source file, from the pages below reference/."""
    return f"[{escape(name)}:{line}](../{name}#L{line})"


def sign(node: ast.FunctionDef | ast.ClassDef) -> str:
    """Return the signature, one argument a line where it is long; of a class its bases and its fields."""
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        fields = [ast.unparse(item) for item in node.body if isinstance(item, ast.AnnAssign)]
        return f"class {node.name}({bases})".removesuffix("()") + "".join(f"\n    {field}" for field in fields)
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    whole = f"def {node.name}({ast.unparse(node.args)}){returns}"
    if len(whole) <= 100:
        return whole
    stub = ast.parse(f"def f({ast.unparse(node.args)}): ...").body[0]
    assert isinstance(stub, ast.FunctionDef)
    return f"def {node.name}(\n" + "\n".join(f"    {argument}," for argument in spread(stub.args)) + f"\n){returns}"


def spread(arguments: ast.arguments) -> list[str]:
    """Return each argument by itself, with its type and its default."""
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(plain) - len(arguments.defaults)) + list(arguments.defaults)
    said = [say(*pair) for pair in zip(plain, defaults, strict=True)]
    if arguments.vararg or arguments.kwonlyargs:
        said.append("*" + (ast.unparse(arguments.vararg) if arguments.vararg else ""))
    said += [say(*pair) for pair in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    return said + (["**" + ast.unparse(arguments.kwarg)] if arguments.kwarg else [])


def say(argument: ast.arg, default: ast.expr | None) -> str:
    """Return one argument with its type and its default."""
    return ast.unparse(argument) + (f" = {ast.unparse(default)}" if default is not None else "")


def render(docstring: str) -> str:
    """Return a docstring as Markdown: prose escaped, indented blocks as code, sections as lists."""
    parts: list[str] = []
    block: list[str] = []
    lines = docstring.splitlines()
    for index, line in enumerate([*lines, ""]):
        found = SECTION.match(line)
        if block and (not line.strip() or found or indented(line) != indented(block[0])):
            parts.append(write_block(block))
            block = []
        if found:
            parts.append(render_section(found[1], found[2].strip(), lines[index + 1 :]))
        elif line.strip() and not in_section(lines, index):
            block.append(line)
    return "\n\n".join(part for part in parts if part) + "\n"


def indented(line: str) -> bool:
    """Whether a line is of a block of its own: a formula, a command, a row of a table."""
    return line.startswith("  ")


def in_section(lines: list[str], index: int) -> bool:
    """Whether an indented line belongs to the section above it."""
    while index >= 0 and (indented(lines[index]) or not lines[index].strip()):
        index -= 1
    return index >= 0 and SECTION.match(lines[index]) is not None


def write_block(block: list[str]) -> str:
    """Return lines as code if they are indented, else as a paragraph."""
    if indented(block[0]):
        return "```text\n" + textwrap.dedent("\n".join(block)) + "\n```"
    return escape("\n".join(block))


def render_section(name: str, rest: str, lines: list[str]) -> str:
    """Return a section: its entries as a list, or its words."""
    held: list[str] = []
    for line in lines:
        if line.strip() and not indented(line):
            break
        held.append(line)
    entries: list[str] = []
    for line in textwrap.dedent("\n".join(held)).splitlines():
        found = ENTRY.match(line)
        if found:
            entries.append(f"- `{found[1]}`: {escape(found[2])}")
        elif line.strip():
            before = entries.pop() + " " if entries else "- "
            entries.append(before + escape(line.strip()))
    return f"**{name}**" + (f" {escape(rest)}" if rest else "") + ("\n\n" + "\n".join(entries) if entries else "")
