"""When checkpoints are written, and what happens if one cannot be: also of those that are on their way for a while."""

import pytest

from deepseek_v3.training.saving import Saving, TrainingError
from deepseek_v3.weights.errors import SaveError


class OnItsWay:
    """A checkpoint that is being written, and may fail."""

    def __init__(self, fails: bool) -> None:
        self.fails = fails

    def finish(self) -> None:
        if self.fails:
            raise SaveError("process 3: no space left on device")

    def abandon(self) -> None:
        pass


class Begun:
    """What a training begins to save; the attempts in `ill` fail, `at_once` or when they are waited for."""

    def __init__(self, ill: set[int], *, at_once: bool) -> None:
        self.ill, self.at_once, self.count = ill, at_once, 0

    def __call__(self) -> OnItsWay | None:
        fails = self.count in self.ill
        self.count += 1
        if fails and self.at_once:
            raise SaveError("no room")
        return None if self.at_once else OnItsWay(fails)


@pytest.mark.parametrize("at_once", [True, False])
def test_a_checkpoint_that_failed_on_the_way_is_told_and_written_again_at_the_end(tmp_path, at_once):
    told, save = [], Begun({1}, at_once=at_once)
    saving = Saving(save, tmp_path, told.append, at=-1)
    saving.on_the_way(5)
    assert not told
    saving.on_the_way(10)
    saving.at_the_end(10)
    assert len(told) == 1
    assert "was not written" in told[0]
    assert save.count == 3  # steps 5 and 10, and 10 again


@pytest.mark.parametrize("at_once", [True, False])
def test_a_step_that_is_saved_is_not_saved_again(tmp_path, at_once):
    save = Begun(set(), at_once=at_once)
    saving = Saving(save, tmp_path, pytest.fail, at=-1)
    saving.on_the_way(7)
    saving.at_the_end(7)
    Saving(save, tmp_path, pytest.fail, at=7).at_the_end(7)  # a resumed run that has nothing left to do
    assert save.count == 1


@pytest.mark.parametrize("at_once", [True, False])
def test_the_last_one_that_cannot_be_written_ends_the_training(tmp_path, at_once):
    saving = Saving(Begun({0}, at_once=at_once), tmp_path, pytest.fail, at=-1)
    with pytest.raises(TrainingError, match="the last checkpoint was not written"):
        saving.at_the_end(9)
