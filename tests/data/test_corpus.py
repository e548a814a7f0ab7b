"""Text in, documents out: every kind of source, the split by hash, and one clear line for what cannot be used."""

import json

import pytest

from deepseek_v3.data.corpus import DataError, Document, load_corpus, split_documents

LONG = "\n\n".join(f"paragraph {i}: " + "word " * 40 for i in range(200))


def test_the_embedded_corpus_has_prose_docstrings_and_code_on_both_sides_of_no_document():
    corpus = load_corpus("stdlib")
    names = {document.name for document in [*corpus.train, *corpus.heldout]}
    assert {"topics/for", "docstrings/builtins", "argparse.py"} <= names
    assert not {d.name for d in corpus.train} & {d.name for d in corpus.heldout}
    assert not any(name.startswith(("test/", "site-packages/")) for name in names)
    assert 0.01 < len(corpus.heldout) / len(names) < 0.12
    assert corpus.digest == load_corpus("stdlib").digest


def test_a_document_stays_on_its_side_when_others_come():
    few = [Document(f"{i}.txt", str(i)) for i in range(100)]
    many = few + [Document(f"new/{i}.txt", f"new {i}") for i in range(211)]
    side = {d.name for d in split_documents("few", few, 0.1).heldout}
    assert side == {d.name for d in split_documents("many", many, 0.1).heldout if not d.name.startswith("new/")}


@pytest.mark.parametrize("count", [2, 3])
def test_few_documents_still_leave_one_on_each_side(count):
    for fraction in (1e-9, 1 - 1e-9):
        corpus = split_documents("x", [Document(f"{i}", f"text {i}") for i in range(count)], fraction)
        assert corpus.train
        assert corpus.heldout


def test_the_digest_notices_a_changed_character():
    one = split_documents("x", [Document("a", "text"), Document("b", "more")], 0.5)
    other = split_documents("x", [Document("a", "texT"), Document("b", "more")], 0.5)
    assert one.digest != other.digest


def test_a_text_file_is_cut_into_passages_that_lose_nothing(tmp_path):
    (tmp_path / "a.txt").write_text(LONG, encoding="utf-8")
    corpus = load_corpus(str(tmp_path / "a.txt"))
    documents = [*corpus.train, *corpus.heldout]
    assert len(documents) > 5
    assert sorted("".join(d.text for d in documents)) == sorted(LONG)


def test_a_folder_is_read_file_by_file_and_what_is_not_text_is_counted(tmp_path):
    (tmp_path / "sub").mkdir()
    for i in range(5):
        (tmp_path / "sub" / f"{i}.md").write_text(f"file {i}", encoding="utf-8")
    (tmp_path / "copy.md").write_text("file 3", encoding="utf-8")  # an exact copy is dropped
    (tmp_path / ".hidden.txt").write_text("secret", encoding="utf-8")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x00\x00")
    corpus = load_corpus(str(tmp_path))
    assert len([*corpus.train, *corpus.heldout]) == 5
    assert "secret" not in [d.text for d in [*corpus.train, *corpus.heldout]]
    assert corpus.skipped == 1


def test_rows_of_jsonl_and_parquet_are_documents(tmp_path):
    rows = [{"id": i, "content": f"row {i}"} for i in range(7)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    texts = {row["content"] for row in rows}
    corpus = load_corpus(str(tmp_path / "a.jsonl"))
    assert {d.text for d in [*corpus.train, *corpus.heldout]} == texts
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"content": sorted(texts)}), tmp_path / "a.parquet")
    corpus = load_corpus(str(tmp_path / "a.parquet"))
    assert {d.text for d in [*corpus.train, *corpus.heldout]} == texts


BAD = {
    "empty.txt": (b"", "is empty"),
    "blank.txt": (b" \n \n", "is empty"),
    "zeros.bin": (b"ab\0cd", "zero bytes"),
    "latin.txt": ("caf\xe9 ".encode("latin-1") * 40, "not UTF-8"),
    "short.txt": (b"one", "nothing is left to hold out"),
    "broken.jsonl": (b'{"text": "a"}\n{"text": ', "line 2 is not JSON"),
    "list.jsonl": (b"[1, 2]\n", "line 1 is a JSON list"),
    "other.jsonl": (b'{"body_html": "a"}\n', "no text under"),
    "number.jsonl": (b'{"text": 3}\n', "no text under"),
    "fake.parquet": (b"PAR1 not really", "not a Parquet file"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_what_cannot_be_used_gets_one_clear_line(tmp_path, name):
    content, message = BAD[name]
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_corpus(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_what_is_not_there_gets_one_clear_line(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        load_corpus(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no text"):
        load_corpus(str(tmp_path / "empty"))
    with pytest.raises(DataError, match="heldout_fraction"):
        load_corpus("stdlib", heldout_fraction=1.0)


def test_a_missing_column_is_named_with_what_is_there(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"title": "x", "words": "y"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"\['title', 'words'\].*--text-key"):
        load_corpus(str(tmp_path / "a.jsonl"))


def test_data_that_needs_an_absent_library_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="pip install"):
        load_corpus("hf:someone/something")


def test_one_large_and_one_small_file_are_both_learned_from_and_a_twentieth_is_held_out(tmp_path):
    for names in (("a", "b"), ("b", "a"), ("c", "x"), ("x", "c")):
        large, small = (
            Document(name, f"{name} sentence {word}. " * n) for name, n, word in zip(names, (9001, 41), "ls")
        )
        corpus = split_documents("x", [large, small], 0.05)
        sizes = [side.n_bytes() for side in (corpus.train, corpus.heldout)]
        assert 0.03 < sizes[1] / sum(sizes) < 0.08
        assert sum("sentence s" in d.text for d in corpus.train) == 1


def test_a_single_document_holds_out_its_end(tmp_path):
    (tmp_path / "only.md").write_text("".join(f"line {i}\n" for i in range(997)))
    corpus = load_corpus(str(tmp_path))
    assert corpus.train[0].text + corpus.heldout[0].text == (tmp_path / "only.md").read_text()
    assert corpus.heldout[0].text.startswith("line")


def test_what_is_held_out_is_said_in_one_line(tmp_path):
    many = split_documents("x", [Document(f"{i}", f"text {i} " * 50) for i in range(499)], 0.05)
    few = split_documents("x", [Document(f"{i}", f"text {i} " * 500) for i in range(3)], 0.05)
    assert f"{len(many.heldout)} documents" in many.describe()
    assert "3 last parts of documents" in few.describe()
    assert "\n" not in many.describe() + few.describe()


def test_measuring_reads_texts_that_are_spread_over_all(tmp_path):
    corpus = split_documents("x", [Document(f"{i}", f"text {i} " * 50) for i in range(997)], 0.5)
    some = corpus.heldout_texts(11)
    assert len(set(some)) == 11
    assert {some[0], some[-1]} <= {d.text for d in corpus.heldout}
    assert corpus.heldout_texts(10_000) == [d.text for d in corpus.heldout]


def test_a_tokenizer_is_learned_from_a_part_that_is_spread_over_a_large_corpus(monkeypatch):
    from deepseek_v3.data import corpus as module

    corpus = split_documents("x", [Document(f"{i}", f"{i} " * 100) for i in range(211)], 0.05)
    everything = list(corpus.texts_to_merge())
    assert everything == [d.text for d in corpus.train]
    monkeypatch.setattr(module, "LEARNED_CHARS", int(corpus.train.chars.sum()) // 10)
    part = list(corpus.texts_to_merge())
    assert len(everything) // 11 <= len(part) <= len(everything) // 9
    assert everything.index(part[-1]) > 0.8 * len(everything)


def test_a_disk_without_room_for_the_text_is_said_in_one_line(tmp_path, monkeypatch):
    import errno
    import os

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", refuse)
    with pytest.raises(DataError, match=r"needs [\d,]+ bytes .* no space left .* make room"):
        load_corpus("stdlib", scratch=tmp_path)
    assert list(tmp_path.iterdir()) == []
