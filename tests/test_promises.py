"""Promises of docs/ and the tests that hold them: the sentence still stands there, and the test is still there."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROMISES = [  # document, words of the sentence, file below tests/, the test
    (
        "training",
        "what is there is whole",
        "training/test_trainer.py",
        "a_kill_while_saving_leaves_the_newest_checkpoint",
    ),
    ("training", "The second is refused", "training/test_run_folder.py", "a_second_training_in_a_folder_is_refused"),
    ("training", "is no run folder", "training/test_run_folder.py", "a_folder_that_holds_something_of_somebodys"),
    (
        "training",
        "A flag on resume** is obeyed",
        "training/test_run_folder.py",
        "a_flag_on_resume_is_obeyed_or_refused",
    ),
    (
        "training",
        "tokenizer, row length or seed is refused",
        "training/test_trainer.py",
        "resuming_with_other_data_is_refused",
    ),
    (
        "training",
        "equals one that was never stopped",
        "training/test_trainer.py",
        "twenty_steps_are_ten_a_stop_and_ten",
    ),
    ("training", "(or `false`, `no`, `off`)", "commands/test_doctor.py", "kernels_are_switched_off_by_any_word"),
]


@pytest.mark.parametrize(("document", "words", "file", "test"), PROMISES)
def test_a_promise_and_its_test_stand_side_by_side(document, words, file, test):
    assert words in " ".join((ROOT / "docs" / f"{document}.md").read_text(encoding="utf-8").split())
    assert f"def test_{test}" in (ROOT / "tests" / file).read_text(encoding="utf-8")
