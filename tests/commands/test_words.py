"""What was given on a command line is known, and nothing of it is lost."""

from deepseek_v3.commands.generate import GenerateOptions
from deepseek_v3.commands.words import bind_values, given_flags, join_repeats
from deepseek_v3.training.options import TrainOptions


def test_a_flag_given_twice_keeps_the_values_of_both():
    joined = join_repeats(TrainOptions, ["--set", "a=1", "--lr", "2", "--set", "b=2", "c=3", "--steps", "4"])
    assert joined == ["--lr", "2", "--steps", "4", "--set", "a=1", "b=2", "c=3"]
    assert join_repeats(TrainOptions, ["--set=a=1", "--set=b=2"]) == ["--set", "a=1", "b=2"]
    once = ["--set", "a=1", "b=2", "--lr", "3"]
    assert join_repeats(TrainOptions, once) == once


def test_a_prompt_may_begin_with_a_dash():
    assert bind_values(GenerateOptions, ["r", "--prompt", "-x"]) == ["r", "--prompt=-x"]
    assert bind_values(GenerateOptions, ["r", "--prompt", "--", "--seed", "1"]) == ["r", "--prompt=--", "--seed", "1"]
    assert bind_values(GenerateOptions, ["--prompt", "--seed", "1"]) == ["--prompt", "--seed", "1"]


def test_given_flags_are_known_however_they_are_spelled():
    assert given_flags(TrainOptions, ["--lr=1", "--no-resume", "--batch_size", "4", "--set", "lanes=3"]) == {
        "lr",
        "resume",
        "batch_size",
        "set",
    }
