"""Exports never replace what they read, nor a training; "newest checkpoint" means one thing."""

import pytest

from deepseek_v3.commands.rewriting import check_names, newest_of_run, shard_bytes


def test_a_target_that_is_the_source_or_holds_it_or_a_training_is_refused(tmp_path):
    step = tmp_path / "run" / "checkpoints" / "step-00000002"
    step.mkdir(parents=True)
    (step / "training_state.json").write_text("{}")
    (tmp_path / "link").symlink_to(step)
    other = tmp_path / "other"
    for target in (step, tmp_path / "link", tmp_path / "run", step.parent):
        with pytest.raises(ValueError, match="is the source, or holds it"):
            check_names(str(step), str(target))
    for target in (step, tmp_path / "run"):
        with pytest.raises(ValueError, match="holds a training, which would be lost"):
            check_names(str(other), str(target))
    check_names(str(step), str(other))


def test_the_newest_checkpoint_is_the_one_that_a_resume_takes(tmp_path):
    for name, whole in (("step-00000002", True), ("step-00000009", False), ("step-abcdefgh", True)):
        folder = tmp_path / "checkpoints" / name
        folder.mkdir(parents=True)
        if whole:
            (folder / "training_state.json").write_text("{}")
    assert newest_of_run(str(tmp_path)).endswith("step-00000002")
    assert newest_of_run("elsewhere") == "elsewhere"


@pytest.mark.parametrize("size", [0.0, -1.0, float("nan"), float("inf"), 1e300])
def test_a_shard_size_that_is_none_is_refused(size):
    with pytest.raises(ValueError, match="--shard-mb"):
        shard_bytes(size)
