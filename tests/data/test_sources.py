"""Files of any size and shape become documents, in pieces, and nothing of them is lost."""

import json
import os

import pytest

from deepseek_v3.data import pieces, sources
from deepseek_v3.data.corpus import DataError, load_corpus


def texts_of(path, **options) -> list[str]:
    corpus = load_corpus(str(path), **options)
    return [document.text for document in [*corpus.train, *corpus.heldout]]


@pytest.mark.parametrize(
    "text",
    [
        " ".join(map(str, range(999))),
        "".join(map(str, range(1999))),
        "A title\n\n" + "".join(f"line {i} of the body\n" for i in range(307)),
        "A title\n\n" + " ".join(f"body {i}" for i in range(809)),
    ],
    ids=["one line", "one word", "title and lines", "title and a line"],
)
def test_a_file_of_one_long_line_or_a_title_and_a_body_can_be_trained_on(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    corpus = load_corpus(str(tmp_path / "a.txt"), 0.1)
    learned, held = (sum(len(d.text) for d in side) for side in (corpus.train, corpus.heldout))
    assert learned > 3 * held > 0
    assert learned + held <= len(text)


def test_a_text_in_pieces_is_the_text_whole_wherever_the_pieces_end(tmp_path, monkeypatch):
    text = "\ufeffgrößer\r\n漢字 🙂\r\n\r\nend\r"
    (tmp_path / "a.txt").write_bytes(text.encode())
    for size in range(1, 23):
        monkeypatch.setattr(pieces, "PIECE_BYTES", size)
        assert pieces.read_whole(tmp_path / "a.txt") == "größer\n漢字 🙂\n\nend\r"


def test_a_large_file_read_in_pieces_gives_every_character_once_and_in_order(tmp_path, monkeypatch):
    text = "\n\n".join(f"paragraph {i} " + "word " * (i % 211) for i in range(307))
    (tmp_path / "b").mkdir()
    for place in ("a.txt", "b/c.txt"):
        (tmp_path / place).write_text(text)
    monkeypatch.setattr(pieces, "PIECE_BYTES", 1009)
    monkeypatch.setattr(sources, "WHOLE_BYTES", 5003)
    monkeypatch.setattr(sources, "DOCUMENT_CHARS", 4001)
    for place in ("a.txt", "b"):
        found = [d.text for d in sources.read_documents(str(tmp_path / place), None, [])]
        assert "".join(found) == text
        assert len(found) > 9
        assert max(map(len, found)) <= 2 * 4001 + 4000


def test_a_row_without_end_is_read_as_several_documents(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "DOCUMENT_CHARS", 503)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "word " * 1999}) + "\n")
    found = list(sources.read_documents(str(tmp_path / "a.jsonl"), None, []))
    assert "".join(d.text for d in found) == "word " * 1999
    assert max(len(d.text) for d in found) <= 2 * 503
    assert len({d.name for d in found}) == len(found)


def test_a_folder_beyond_a_gigabyte_is_not_cut_short(tmp_path, monkeypatch):
    for i in range(23):
        (tmp_path / f"{i}.txt").write_text(f"file {i} " + "word " * 101)
    assert len(texts_of(tmp_path)) >= 23
    import inspect

    assert "limit_mb" not in inspect.signature(load_corpus).parameters  # there is no limit to set too low


def test_linked_folders_are_read_and_a_link_upwards_ends(tmp_path):
    data, other = tmp_path / "data", tmp_path / "other"
    for folder in (data, other):
        folder.mkdir()
    (data / "a.txt").write_text("inside " * 40)
    (other / "b.txt").write_text("outside " * 40)
    (data / "linked").symlink_to(other)
    (data / "loop").symlink_to(data)
    joined = "".join(texts_of(data))
    assert joined.count("outside") == joined.count("inside") == 40


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_counted(tmp_path):
    (tmp_path / "a.txt").write_text("word " * 100)
    (tmp_path / "closed").mkdir(mode=0)
    assert load_corpus(str(tmp_path)).skipped == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "half \\ud83d"}', "lone surrogate"),
        (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "line 2 is not JSON"),
        (b'{"text": "caf\xe9"}', "line 2 is not UTF-8"),
        (b"[" * 100_000, "line 2 is not JSON"),
    ],
    ids=["surrogate", "digits", "latin", "depth"],
)
def test_a_row_that_cannot_be_read_gets_one_line_with_its_place(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(DataError, match=message) as caught:
        load_corpus(str(tmp_path / "a.jsonl"))
    assert "\n" not in str(caught.value)
