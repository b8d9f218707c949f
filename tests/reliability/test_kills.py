"""Nothing is lost by kills and nothing wrong is read of damaged files: few of them here, many by `make reliability`."""

import pytest

from molequi.training.trainer import Training

from . import kills as kit
from .targets import Stopped


def test_kills_at_random_moments_and_in_writes(tmp_path):
    """FAULTS B10, B11: the training ends with the bits of the one that was left alone."""
    lost = kit.kills(2, seed=3, folder=tmp_path)
    assert lost.kills == 2 and lost.in_writes == 1 and lost.trainings >= 1
    assert lost.clean(), lost


def test_a_stop_between_the_last_step_of_an_epoch_and_its_validation(tmp_path, monkeypatch):
    """Found by 50 kills: the history had the learning rate of the options in place of that of the steps."""
    original = Training.end_of_epoch

    def stopping(self):
        if self.place.epoch == 3:
            raise Stopped
        return original(self)

    kit.train(tmp_path / "whole")
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(Training, "end_of_epoch", stopping)
        kit.train(tmp_path / "parts")
    kit.train(tmp_path / "parts")
    whole, parts = (kit._result(tmp_path / name) for name in ("whole", "parts"))
    assert whole[1] == parts[1] and kit._same(whole, parts)
    rates = [row.split(",")[2] for row in whole[1][1:]]
    assert len(set(rates)) > 1 and rates[-1] != "0.05"  # the schedule matters


def test_the_count_of_losses_sees_a_state_that_is_lost(tmp_path, monkeypatch):
    """The control: a state that is written in place, not beside the old one."""
    from molequi.util import files

    def in_place(path, write):
        import os

        write(path)
        with open(path, "rb+") as file:
            os.fsync(file.fileno())

    monkeypatch.setattr(files, "write_atomically", in_place)
    lost = kit.Losses()
    for places in (5, 9):
        folder = tmp_path / str(places)
        killed, _ = kit.run_child(folder, places, in_write=True)
        assert killed
        kit.look(folder, -1, lost)
    assert lost.unreadable


@pytest.mark.parametrize("kind", ["model", "state", "neighbors"])
def test_damaged_files_are_never_read_as_something_else(tmp_path, kind):
    """FAULTS A36, B15."""
    path, load = kit.files(tmp_path)[kind]
    found = kit.damage(path, 60, seed=0, load=load)
    assert found.files == 60 and not found.changed and not found.raw, found
    assert found.refused >= 55  # what says nothing of the content, such as the number of a save, may change


def test_the_count_of_damage_sees_a_changed_weight(tmp_path):
    path = tmp_path / "plain"
    path.write_bytes(bytes(range(200)))
    found = kit.damage(path, 10, seed=0, load=lambda p: p.read_bytes())
    assert found.changed == 10 and not found.refused
