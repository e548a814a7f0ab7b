"""The explorer's page as one static folder: its modules joined into one classic script, the model's files in another.

A page that is opened as a file may load classic scripts and pictures, but no modules and no data. So every module
becomes a function that returns what it exports, in the order of the imports, and every file of the model is held in
base64. The result works from any web server too.
"""

import base64
import json
import re
import shutil
import tempfile
from pathlib import Path, PurePosixPath

MOST_TEXT = 3 * 2**27  # bytes of a model's file: in base64 it must fit into one string of the browser (2^29)
IMPORT = re.compile(r"^import\s+(\{[^}]*\}|\* as \w+)\s+from\s+['\"](\.{1,2}/[^'\"]+)['\"];?[ \t]*$", re.MULTILINE)
EXPORT = re.compile(r"^export\s+((?:async\s+)?function\*?|class|const)\s+(\w+)", re.MULTILINE)
UNKNOWN = re.compile(r"^(?:import|export)\b.*|\bimport\s*\(.*|\bimport\.meta\b.*", re.MULTILINE)
ENTRY = re.compile(r"<script type=\"module\" src=\"(?:\./)?([\w/.-]+)\"></script>")
SCRIPT, WEIGHTS = "explorer.js", "weights.js"


def join_modules(files: dict[str, Path], entry: str) -> str:
    """Return one classic script that does what the module `entry` does with all that it imports.

    Args:
        files: by path; a module imports names from others by relative paths, and exports functions, classes and
            constants, each by its own line.
    Raises:
        ValueError: another form of import or export, a file that is not there, or a circle.
    """
    joined: list[str] = []
    done: set[str] = set()

    def add(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            raise ValueError(f"{name} imports itself, by way of {', '.join(above)}")
        if name in done:
            return
        if name not in files:
            raise ValueError(f"{above[-1] if above else 'the page'} imports {name}, which is not there")
        text = files[name].read_text(encoding="utf-8")
        for found in IMPORT.finditer(text):
            add(resolve_import(name, found[2]), (*above, name))
        joined.append(wrap_module(name, text, is_entry=not above))
        done.add(name)

    add(entry, ())
    return "'use strict';\nconst modules = {};\n" + "".join(joined)


def resolve_import(name: str, target: str) -> str:
    """Return the path that `./x.js` or `../x.js` means in a module."""
    parts = list(PurePosixPath(name).parent.parts)
    for part in target.split("/"):
        if part == "..":
            if not parts:
                raise ValueError(f"{name} imports {target}, which lies outside of the page")
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


def wrap_module(name: str, text: str, *, is_entry: bool) -> str:
    """Write one module as a function that is called at once; the entry may wait (`await`) at its top level."""

    def bind(found: re.Match) -> str:
        names = found[1].removeprefix("* as ").strip().replace(" as ", ": ")
        return f"const {names} = modules[{json.dumps(resolve_import(name, found[2]))}];"

    exported = [found[2] for found in EXPORT.finditer(text)]
    body = EXPORT.sub(r"\1 \2", IMPORT.sub(bind, text))
    if left := UNKNOWN.search(body):
        line = body.count("\n", 0, left.start()) + 1
        raise ValueError(f"{name}, about line {line}: `{left[0][:60]}` is no import or export that can be joined")
    start = "(async () => {" if is_entry else f"modules[{json.dumps(name)}] = (() => {{"
    return f"\n{start} // {name}\n{body}\nreturn {{{', '.join(exported)}}};\n}})();\n"


def write_weights(files: list[Path], target: Path) -> None:
    """Write the model's files as one script: their names and contents in base64."""
    with target.open("w", encoding="ascii") as script:
        script.write("globalThis.EXPLORER_FILES = {\n")
        for path in files:
            if path.stat().st_size > MOST_TEXT:
                raise ValueError(f"{path.name} holds {path.stat().st_size / 1e6:.0f} MB, a saved page at most "
                                 f"{MOST_TEXT / 1e6:.0f} MB a file; serve it instead, without --save")  # fmt: skip
            script.write(f'{json.dumps(path.name)}: "')
            with path.open("rb") as source:
                while piece := source.read(3 * 2**18):  # whole groups of three bytes
                    script.write(base64.b64encode(piece).decode("ascii"))
            script.write('",\n')
        script.write("};\n")


def save_page(page: dict[str, Path], folder: Path, target: str, *, to: str) -> None:
    """Write page and model into a folder: a new one, an empty one, or a page saved before.

    Raises:
        ValueError: a folder that holds something else.
    """
    from deepseek_v3.commands.rewriting import rewrite_folder

    there = Path(target)
    if not target.strip() or (there.exists() and not there.is_dir()):
        raise ValueError(f"--save {target!r} must name a folder")
    if there.exists() and any(there.iterdir()) and not (there / SCRIPT).is_file():
        raise ValueError(f"--save {target} holds something that is no saved page; name a new folder")
    index = page["index.html"].read_text(encoding="utf-8")
    entry = ENTRY.search(index)
    if entry is None:
        raise ValueError('index.html has no <script type="module" src="..."></script>')
    script = join_modules(page, entry[1])
    scripts = f'<script src="{WEIGHTS}" defer></script>\n<script src="{SCRIPT}" defer></script>'
    with tempfile.TemporaryDirectory() as beside:
        model = Path(beside) / "model"
        rewrite_folder(
            str(folder), str(model), to=to, without_mtp=False, shard_mb=256.0, skip_verify=False, follow_links=False,
            quiet=True,
        )  # fmt: skip
        there.mkdir(parents=True, exist_ok=True)
        files = [model / "config.json", model / "tokenizer.json", *sorted(model.glob("model*.safetensors*"))]
        write_weights(files, there / WEIGHTS)
    (there / SCRIPT).write_text(script, encoding="utf-8")
    (there / "index.html").write_text(index.replace(entry[0], scripts), encoding="utf-8")
    for name, path in page.items():
        if path.suffix != ".js" and name != "index.html":
            (there / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, there / name)
