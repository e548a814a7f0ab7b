"""The tags in the code name what the report has, cover the architecture, and are what the committed map shows."""

import re

import pytest

from utils.paper_map import MAP, REPORT, ROOT, build_map, collect_places, find_gaps, find_stale, name_lines, read_tags


def test_every_equation_of_the_architecture_has_a_chapter_a_package_line_and_a_test():
    assert not find_gaps(collect_places())


def test_the_committed_map_is_current():
    stale = find_stale(MAP.read_text(encoding="utf-8"), collect_places())
    assert not stale, f"run: python -m utils.paper_map\n{stale}"


def test_a_map_built_now_is_current_and_each_link_leads_to_its_tag():
    places = collect_places()
    text = build_map(places)
    assert not find_stale(text, places)
    for row in text.splitlines():
        for path, line in re.findall(r"\]\(\.\./([^)#]+)#L(\d+)\)", row):
            item = row.split("|")[1].strip()
            assert f"V3 {item}" in (ROOT / path).read_text(encoding="utf-8").splitlines()[int(line) - 1], (item, path)


def test_a_tag_that_comes_goes_or_is_no_longer_on_the_screen_makes_the_map_stale():
    places = collect_places()
    text, one = build_map(places), places[0]
    assert find_stale(text, places[1:])
    assert find_stale("", places)
    assert not find_stale(text, [one._replace(line=one.line + 3), *places[1:]])
    assert find_stale(text, [one._replace(line=one.line + 300), *places[1:]])
    assert find_stale(text, [one._replace(name="another_function"), *places[1:]])


def make_tree(root, text: str):
    """A tree with one chapter file."""
    (root / "01_attention").mkdir()
    (root / "01_attention" / "heads.py").write_text(text, encoding="utf-8")
    return root


def test_a_tag_of_an_equation_that_the_report_does_not_have_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"heads\.py, line 2: the report has no Eq\. \(99\)"):
        collect_places(make_tree(tmp_path, "x = 1\ny = 2  # V3 Eq. (99)\n"))


@pytest.mark.parametrize("comment", ["V3 Eq. 7", "V3 Eq (7)", "V3 Fig 2", "V3 Table. 4", "V3 Eq. (7"])
def test_a_misspelled_tag_is_refused_and_shown_the_right_form(tmp_path, comment):
    with pytest.raises(ValueError, match=r"line 1: write '# V3 Eq\. \(7\)'"):
        collect_places(make_tree(tmp_path, f"x = 1  # {comment}\n"))


def test_several_tags_of_a_line_are_read_and_text_and_strings_are_not():
    assert read_tags("x = 1  # V3 Eq. (2), V3 Eq. (5): both\n") == [(1, "Eq. (2)"), (1, "Eq. (5)")]
    assert read_tags('"""As V3 Eq. (1) says."""\n# of V3 in general\n') == []


def test_a_line_is_named_by_the_innermost_function():
    assert name_lines("class A:\n    def f(self):\n        return 1\n\n\nx = 1\n").get(3) == "A.f"


def test_the_descriptions_are_short():
    assert all(3 <= len(words.split()) <= 9 for words in REPORT.values())
