"""Nothing is lost by kills and nothing wrong is read of damaged files: few of them here, many by `make reliability`."""

import pytest

from . import kills as kit


def test_kills_at_random_moments_and_in_writes(tmp_path):
    """FAULTS B10, B11: the training ends with the bits of the one that was left alone."""
    lost = kit.kills(4, seed=3, folder=tmp_path)
    assert lost.kills == 4 and lost.in_writes == 2 and lost.trainings >= 1
    assert lost.clean(), lost


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
