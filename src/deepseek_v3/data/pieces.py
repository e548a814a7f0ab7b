"""Text files in pieces, and pieces cut again: what is read never has to fit in memory at once."""

import codecs
from collections.abc import Iterable, Iterator
from pathlib import Path

from deepseek_v3.data.documents import DataError

SNIFFED_BYTES = 8192
PIECE_BYTES = 2**20


def read_pieces(path: Path) -> Iterator[str]:
    r"""Yield a text file by about a megabyte; \r\n becomes \n, a byte order mark at its beginning goes.

    Raises:
        DataError: it cannot be read, or is not UTF-8 text; the message names the byte.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    held, done, begun = "", 0, False
    try:
        with path.open("rb") as stream:
            while data := stream.read(PIECE_BYTES):
                if done == 0 and b"\0" in data[:SNIFFED_BYTES]:
                    raise DataError(f"{path} is not text (it holds zero bytes); give UTF-8 text")
                text = held + _decode(decoder, data, path, done, final=False)
                text = text if begun else text.removeprefix("\ufeff")
                begun, done = begun or bool(text), done + len(data)
                held = "\r" if text.endswith("\r") else ""
                yield text[: len(text) - len(held)].replace("\r\n", "\n")
        yield held + _decode(decoder, b"", path, done, final=True)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def _decode(decoder: codecs.IncrementalDecoder, data: bytes, path: Path, done: int, *, final: bool) -> str:
    waiting = len(decoder.getstate()[0])
    try:
        return decoder.decode(data, final)
    except UnicodeDecodeError as error:
        byte = done - waiting + error.start
        raise DataError(f"{path} is not UTF-8 text (byte {byte}); convert it, e.g. with iconv -t UTF-8") from None


def read_whole(path: Path) -> str:
    """Return the text of a file.

    Raises:
        DataError: as `read_pieces`.
    """
    return "".join(read_pieces(path))


def cut_blocks(pieces: Iterable[str], separator: str, size: int) -> Iterator[str]:
    """Yield what lies between separators, each at its block's end; a block of more than twice `size` is cut."""
    rest = ""
    for piece in pieces:
        blocks = (rest + piece).split(separator)
        rest = blocks.pop()
        for block in blocks:
            yield from cut_text(block + separator, size)
        if len(rest) > 8 * size:
            *whole, rest = cut_text(rest, size)
            yield from whole
    if rest:
        yield from cut_text(rest, size)


def cut_pieces(pieces: Iterable[str], size: int) -> Iterator[str]:
    """Yield parts as `cut_text` does, of a text that comes in pieces."""
    rest = ""
    for piece in pieces:
        *whole, rest = cut_text(rest + piece, size)
        yield from whole
    if rest:
        yield rest


def cut_text(text: str, size: int) -> Iterator[str]:
    """Yield parts of `size` to twice that, the last maybe shorter; they end behind a line, a space, or anywhere."""
    start = 0
    while len(text) - start > 2 * size:
        end = start + size
        for mark in ("\n\n", "\n", " "):
            if (found := text.find(mark, end, end + size - len(mark))) >= 0:
                end = found + len(mark)
                break
        yield text[start:end]
        start = end
    yield text[start:]


def cut_passages(blocks: Iterable[str], size: int) -> Iterator[str]:
    """Yield blocks joined until they have `size` characters."""
    gathered, length = [], 0
    for block in blocks:
        gathered.append(block)
        length += len(block)
        if length >= size:
            yield "".join(gathered)
            gathered, length = [], 0
    if gathered:
        yield "".join(gathered)
