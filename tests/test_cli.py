"""The command as a new user types it: whatever is wrong, one line that names it and the mend, and no traceback."""

import pytest

from deepseek_v3.cli import main


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("train --steps 0", "deepseek-v3 train: --steps 0 must be at least 1"),
        ("demo --minutes 0", "deepseek-v3 demo: --minutes 0.0 must be a positive number"),
        ("train --lr nan", "deepseek-v3 train: --lr nan must be a positive number"),
        ("train --precision fp8", "deepseek-v3 train: --precision fp8 must be fp32, bf16 or auto"),
        ("train --batch-size-start 99", "deepseek-v3 train: --batch-size-start 99 exceeds --batch-size 16"),
    ],
)
def test_an_option_out_of_range_is_one_line(words, line, capsys):
    assert main(words.split()) == 1
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", line + "\n")


@pytest.mark.parametrize(
    ("words", "hint"),
    [("train --steps many", "--steps"), ("train --stepz 5", "--steps"), ("train --steps", "--steps")],
)
def test_words_that_cannot_be_read_are_answered_with_a_hint_and_exit_code_2(words, hint, capsys):
    with pytest.raises(SystemExit) as end:
        main(words.split())
    assert end.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert hint in said.err


def test_a_command_that_does_not_exist_names_its_neighbour(capsys):
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == "deepseek-v3: unknown command 'trian'; did you mean 'train'?\n"
