"""Files appear complete or not at all; progress goes to a terminal as a bar and to a log as lines; signals and tables."""

import hashlib
import os
import signal

import pytest

from molequi.errors import CheckpointError, DataError
from molequi.util import progress
from molequi.util.files import file_sha256, write_file
from molequi.util.progress import ProgressBar
from molequi.util.signals import catch_signals, stop_process
from molequi.util.tables import json_ready, text_table


@pytest.mark.parametrize(
    "content", ["Å\n", "Å\n".encode(), lambda path: path.write_text("Å\n", encoding="utf-8")]
)
def test_a_file_is_written_from_text_bytes_or_a_function(tmp_path, content):
    write_file(tmp_path / "a.txt", content)
    assert (tmp_path / "a.txt").read_bytes() == "Å\n".encode()
    assert file_sha256(tmp_path / "a.txt") == hashlib.sha256("Å\n".encode()).hexdigest()
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_that_cannot_be_written_is_named_and_the_old_one_stays(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def full(_):
        raise OSError(28, os.strerror(28))

    with pytest.raises(
        CheckpointError, match=r"a\.txt: cannot be written \(No space left on device\).*Make room"
    ):
        write_file(path, full)
    with pytest.raises(DataError, match="cannot be written"):
        write_file(tmp_path / "none" / "a.txt", "new", error=DataError)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now


def test_in_a_log_there_is_a_line_every_15_seconds_with_the_time_left(capsys, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    with ProgressBar("md", 100, start=40, delay=5) as bar:
        for _ in range(30):
            clock.now += 2
            bar.advance(text="T 300 K")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert lines[0] == "md: 43/100 step, 1:54 left, T 300 K"  # 57 steps of 2 s
    with ProgressBar("fit", 1.0, unit="", keep=True) as bar:
        bar.update(0.25)
        bar.update(0.5, "epoch 2")
    with ProgressBar("load", None, unit="B") as bar:
        bar.advance(7)
    with ProgressBar("silent", 10, show=False) as bar:
        bar.advance()
    assert capsys.readouterr().err.splitlines() == [
        "fit: 25 %, 0:00 left",
        "fit: 50 %, 0:00 left, epoch 2",
        "load: 7 B",
    ]


def test_on_a_terminal_there_is_a_bar(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with ProgressBar("md", 4, start=1, keep=True) as bar:
        bar.update(2, "T 300 K")
        bar.advance()
        bar.update(4)
    with ProgressBar("fit", 1.0, unit="", keep=True) as bar:
        bar.update(1.0, "epoch 3")
    err = capsys.readouterr().err
    assert "md: 100%" in err and "4/4" in err and "T 300 K" in err and "fit: 100%" in err


@pytest.mark.parametrize("number, ending", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_is_caught_once(number, ending):
    before = signal.getsignal(number)
    with catch_signals() as received:
        os.kill(os.getpid(), number)
        assert received == [number] and signal.getsignal(number) is before  # the second acts as usual
    assert signal.getsignal(number) is before
    with pytest.raises(ending):
        stop_process(received)
    with pytest.raises(KeyboardInterrupt):
        stop_process([])


def test_tables_are_aligned_and_json_has_no_infinities():
    assert text_table(["name", "value"], [["a", "1.5"], ["bcdef", "10"]]) == [
        "name   value",
        "a        1.5",
        "bcdef     10",
    ]
    assert json_ready({"a": [1.0, float("nan")], "b": (float("inf"), "x")}) == {
        "a": [1.0, None],
        "b": [None, "x"],
    }
