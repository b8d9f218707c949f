"""The folder of a screening: its settings, which blocks are done, and how often a block was begun."""

import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from molequi.errors import CheckpointError, ConfigError, DataError, OtherSettingsError
from molequi.readers.blocks import Block, Source
from molequi.util.files import write_file
from molequi.util.state_files import differences

FORMAT = 1
MODEL = "screened.safetensors"  # not model.safetensors: the folder may be that of a training
_NOTE, _DONE, _BEST = "screen.json", "done.jsonl", "best.csv"


class ScreenFolder:
    """The files of a screening.

    ``screen.json`` has its settings, ``done.jsonl`` a line for each block that is done, ``parts`` the
    tables of results, ``structures`` those with quantities of atoms, and ``attempts`` a small file each time
    that a worker began a block that is not done yet.

    Parameters
    ----------
    path : Path
        The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts, self.structures, self.attempts = (path / n for n in ("parts", "structures", "attempts"))
        self.model, self.best = path / MODEL, path / _BEST

    def check(self, settings: Mapping[str, Any], resume: str) -> bool:
        """Whether the folder holds a screening to go on with; nothing is changed.

        Parameters
        ----------
        settings : mapping
            The settings of this call, as values of JSON.
        resume : {"auto", "restart"}
            What the user wants.

        Raises
        ------
        OtherSettingsError
            If it holds one with other settings or inputs.
        ConfigError
            If it holds files that would be overwritten and are not of a screening.
        """
        if not (self.path / _NOTE).exists():
            taken = [
                p
                for p in (self.parts, self.structures, self.path / _DONE, self.best, self.model)
                if p.exists()
            ]
            if taken and resume != "restart":
                raise ConfigError(
                    f"{self.path}: there is {', '.join(p.name for p in taken)} and no {_NOTE}, so that "
                    "files of something else would be overwritten; choose another folder with out=, or "
                    "overwrite them with resume='restart'"
                )
            return False
        if resume == "restart":
            return False
        found = self.note()
        changed = differences(found["settings"], json.loads(json.dumps(settings)))
        if found.get("format") != FORMAT:
            changed = [f"format: {found.get('format')!r} → {FORMAT} (another version of molequi)"]
        if changed:
            text = f"{self.path} holds another screening:\n  " + "\n  ".join(changed)
            raise OtherSettingsError(text, self.path, force=False)
        return True

    def begin(self, settings: Mapping[str, Any], work: Mapping[str, Any]) -> None:
        """Empty the folder, and write the settings.

        Parameters
        ----------
        settings : mapping
            What must be the same when the screening goes on.
        work : mapping
            What workers need.
        """
        (self.path / _NOTE).unlink(missing_ok=True)
        for path in (self.path / _DONE, self.best, *self._results()):
            path.unlink(missing_ok=True)
        self.parts.mkdir(exist_ok=True)
        self.structures.mkdir(exist_ok=True)
        self.write_note(settings, work)

    def _results(self) -> list[Path]:
        names = ("parts/*.parquet", "parts/*.csv", "structures/*.xyz")
        return [p for name in names for p in self.path.glob(name) if p.stem.isdecimal()]

    def write_note(self, settings: Mapping[str, Any], work: Mapping[str, Any]) -> None:
        """Write the settings.

        Parameters
        ----------
        settings, work : mapping
            As in `begin`.
        """
        note = {"format": FORMAT, "settings": settings, "work": work}
        write_file(self.path / _NOTE, json.dumps(note, indent=1) + "\n", error=DataError)

    def note(self) -> dict[str, Any]:
        """What `write_note` wrote.

        Raises
        ------
        CheckpointError
            If the file is damaged.
        """
        path = self.path / _NOTE
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            assert isinstance(found["settings"], dict) and isinstance(found["work"], dict)
        except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
            raise CheckpointError(
                f"{path}: not the note of a screening ({type(error).__name__}: {error}); begin anew with "
                "resume='restart'"
            ) from error
        return found

    @property
    def sources(self) -> list[Source]:
        """The files of inputs."""
        return [
            Source(**{**entry, "columns": tuple(entry["columns"])})
            for entry in self.note()["work"]["sources"]
        ]

    def clean(self) -> None:
        """Forget attempts and unfinished files of processes that have ended."""
        self.attempts.mkdir(exist_ok=True)
        for path in (*self.attempts.iterdir(), *self.path.glob("*/.*.tmp")):
            path.unlink(missing_ok=True)

    def attempt(self, block: Block) -> int:
        """Note that this process begins a block, and return how often that happened before.

        Parameters
        ----------
        block : Block
            The block.
        """
        before = len(self._attempts(block))
        text = f"{os.getpid()} {socket.gethostname()}\n"
        (self.attempts / f"{block.number:06d}-{before}").write_text(text)
        return before

    def _attempts(self, block: Block) -> list[Path]:
        return list(self.attempts.glob(f"{block.number:06d}-*"))

    def forget_attempts(self, block: Block) -> None:
        """Remove the notes of attempts at a block that is done.

        Parameters
        ----------
        block : Block
            The block.
        """
        for path in self._attempts(block):
            path.unlink(missing_ok=True)

    def done(self) -> dict[int, dict[str, Any]]:
        """What is known of each block that is done and whose files are there."""
        try:
            lines = (self.path / _DONE).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return {}
        found: dict[int, dict[str, Any]] = {}
        for line in lines:
            try:
                note = json.loads(line)
            except ValueError:  # cut off by a kill
                continue
            found[note["block"]] = note
        sizes = {str(path.relative_to(self.path)): path.stat().st_size for path in self._results()}
        return {
            number: note
            for number, note in found.items()
            if all(sizes.get(name) == size for name, size in note["files"].items())
        }

    def add(self, notes: Sequence[Mapping[str, Any]]) -> None:
        """Note that blocks are done; that is on the disk when this returns.

        Parameters
        ----------
        notes : sequence of mapping
            What is known of each.

        Raises
        ------
        DataError
            If the disk is full.
        """
        text = "".join(json.dumps(note) + "\n" for note in notes)
        path = self.path / _DONE
        try:
            with open(path, "a", encoding="utf-8") as file:
                if file.tell() and not _ends_line(path):
                    file.write("\n")
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DataError(
                f"{path}: cannot be written ({error.strerror or error}); make room, then start the same "
                "command again: it goes on with the blocks that are missing"
            ) from error


def _ends_line(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def sources_as_json(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """Files of inputs as values of JSON.

    Parameters
    ----------
    sources : sequence of Source
        The files.
    """
    return [asdict(source) for source in sources]
