"""Promises of docs/ and the tests that hold them (promises.txt): the sentence stands there still, the test too."""

import re
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
LINES = [line for line in (HERE / "promises.txt").read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
PROMISES = [tuple(part.strip() for part in re.split(r" \| | :: ?", line)) for line in LINES]
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
    (
        "post_training",
        "refused with file and line",
        "post_training/test_dialogues.py",
        "what_is_no_dialogue_is_refused_with_file_and_line",
    ),
    (
        "post_training",
        "Packing and padding change neither loss nor gradient",
        "post_training/test_sft.py",
        "packing_and_padding_change_neither_loss_nor_gradient",
    ),
    (
        "post_training",
        "costs its answer the reward",
        "post_training/test_rewards.py",
        "what_goes_wrong_is_counted_gives_0_and_stops_nothing",
    ),
    (
        "post_training",
        "the trainer's differ by less than 1e-5",
        "post_training/test_rollout.py",
        "the_trainer_finds_what_was_written_as_likely_as_the_engine",
    ),
    ("training", "(or `false`, `no`, `off`)", "commands/test_doctor.py", "kernels_are_switched_off_by_any_word"),
]


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: " ".join(promise[:2])[:60])
def test_a_promise_and_its_test_stand_side_by_side(promise):
    document, words, file, test = promise
    text = (HERE.parent / "docs" / f"{document}.md").read_text(encoding="utf-8")
    assert words.lower() in " ".join(text.replace("**", "").split()).lower()
    assert f"def test_{test}" in (HERE / file).read_text(encoding="utf-8")
