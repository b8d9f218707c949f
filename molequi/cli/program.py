"""The program ``molequi``: all commands, and one message and exit status for every end."""

import argparse
import shlex
import sys
import warnings
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from molequi.cli import (
    analyze,
    audit,
    compare,
    completion,
    convert,
    curve,
    data,
    engines,
    features,
    inference,
    info,
    lint,
    lists,
    merge,
    prepare,
    report,
    sample,
    screen,
    simulate,
    train,
    uncertainty,
)
from molequi.cli.command import Command, parser_of
from molequi.cli.parser import Parser
from molequi.cli.typed import OF_READERS, Typing, as_typed
from molequi.errors import ConfigError, DataWarning, MolequiError, OtherSettingsError, did_you_mean
from molequi.util.files import open_streams
from molequi.util.launchers import is_first_process
from molequi.util.memory import is_out_of_memory
from molequi.util.tables import text_table

COMMANDS = (
    *train.COMMANDS,
    *data.COMMANDS,
    *lint.COMMANDS,
    *prepare.COMMANDS,
    *inference.COMMANDS,
    *screen.COMMANDS,
    *convert.COMMANDS,
    *features.COMMANDS,
    *merge.COMMANDS,
    *sample.COMMANDS,
    *info.COMMANDS,
    *simulate.COMMANDS,
    *engines.COMMANDS,
    *uncertainty.COMMANDS,
    *analyze.COMMANDS,
    *audit.COMMANDS,
    *curve.COMMANDS,
    *compare.COMMANDS,
    *report.COMMANDS,
    *lists.COMMANDS,
    *completion.COMMANDS,
)
_MEMORY = (
    "out of memory; use fewer or smaller structures at a time (train.batch_size=2 of a training, "
    "--batch-edges 2000 of predictions, --index :100 of other commands), a smaller model, or a machine "
    "with more memory"
)
_ABOUT = "E(n)-equivariant graph networks for molecules, whose symmetry is measured."
# What other programs call a command.
_OTHER_NAMES = {
    **dict.fromkeys(("fit", "run", "learn"), "train"),
    **dict.fromkeys(("fine-tune", "fine_tune", "tune", "transfer", "retrain"), "finetune"),
    **dict.fromkeys(("eval", "test", "validate", "score", "benchmark"), "evaluate"),
    **dict.fromkeys(("infer", "inference", "deploy", "apply"), "predict"),
    **dict.fromkeys(("descriptors", "descriptor", "embed", "embeddings", "represent"), "features"),
    **dict.fromkeys(("average", "soup", "average-models", "combine"), "merge"),
    **dict.fromkeys(("generate", "design", "conformers"), "sample"),
    **dict.fromkeys(("screening", "virtual-screening", "batch"), "screen"),
    **dict.fromkeys(("simulate", "dynamics", "nvt", "nve", "npt"), "md"),
    **dict.fromkeys(("optimize", "optimise", "opt", "minimize", "relaxation"), "relax"),
    **dict.fromkeys(("show", "inspect", "describe", "summary"), "info"),
    **dict.fromkeys(("models", "architectures"), "backbones"),
    **dict.fromkeys(("examples", "configs"), "recipes"),
    **dict.fromkeys(("check", "equivariance", "symmetry"), "audit"),
    **dict.fromkeys(("check-data", "checkdata", "sanity"), "lint"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    arguments : sequence of str, optional
        Words of the command line; by default those of the process.

    Returns
    -------
    int
        Exit status: 0, 1 for an audit or a lint that fails, 2 for an error (one message), 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    open_streams()
    with warnings.catch_warnings():
        warnings.showwarning = partial(_show_warning, Typing(""))
        try:
            return _run(words)
        except (MolequiError, OSError) as error:
            print(f"molequi: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt as error:
            if is_first_process():
                print(f"molequi: interrupted{f'; {error}' if str(error) else ''}", file=sys.stderr)
            return 130
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            print(f"molequi: {_MEMORY}", file=sys.stderr)
            return 2


def _run(words: Sequence[str]) -> int:
    """Run the command that the words name."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if words else 2
    if words[0] in ("--version", "-V"):
        from molequi import __version__

        print(f"molequi {__version__}")
        return 0
    command = _command(words[0])
    parser = parser_of(command)
    if command.name == "train":
        parser.advice = _advice_of_train
    given = parser.read(words[1:])
    if given is None:
        return 0
    given.commands = COMMANDS  # for those that are about commands
    if command.name not in ("finetune", "convert"):  # these take names of published models themselves
        for name in ("model", "models"):
            if hasattr(given, name):
                setattr(given, name, _with_published(getattr(given, name)))
    how = _typing(command, parser, given)
    warnings.showwarning = partial(_show_warning, how)
    first, second = getattr(given, "model", None), getattr(given, "structures", getattr(given, "data", None))
    if first is not None and second is not None:
        from molequi.checkpoint import check_order

        check_order(command.name, first, second)
    try:
        return command.run(given) or 0
    except OtherSettingsError as error:
        if command.name == "train":  # its options are settings of a run
            raise
        raise OtherSettingsError(error.found, error.folder, partial(_retyped, words), error.force) from error
    except MolequiError as error:
        text = as_typed(_with_skip(str(error), words, parser.flags), how)
        if text == str(error):
            raise
        raise type(error)(text) from error


def _with_published(model: Any) -> Any:
    """Models of a command line with the files of published ones, such as 7net-mf-0@PBE."""
    if isinstance(model, list):
        return [_with_published(one) for one in model]
    if (
        not isinstance(model, str)
        or Path(model).suffix
        or Path(model).parent != Path()
        or Path(model).exists()
    ):
        return model
    from molequi.foreign import FOUNDATIONS, foundation_file

    name, _, level = model.partition("@")
    return str(foundation_file(name, level or None)) if name.lower() in FOUNDATIONS else model


def _typing(command: Command, parser: Parser, given: argparse.Namespace) -> Typing:
    """How the command takes options: with a YAML file or a recipe, those of readers are no flags."""
    config = getattr(given, "config", None)
    if config is None:
        return Typing(command.name, tuple(parser.flags))
    from molequi.config.automatic import is_data

    data = is_data(config)
    flags = tuple(name for name in parser.flags if data or name not in OF_READERS)
    return Typing(command.name, flags, settings=True, yaml=not data)


def _with_skip(message: str, words: Sequence[str], flags: Collection[str]) -> str:
    """A message about molecules that cannot be used, with the command line that leaves them out."""
    from molequi.readers.molecule_data import SKIP

    config = Path(words[1]) if len(words) > 1 else Path()
    if "skip" not in flags or SKIP not in message:
        return message
    if words[0] == "train" and config.suffix in (".yaml", ".yml"):
        return message.replace(SKIP, f"{config}: write skip: true below the reader, which leaves them out")
    return message.replace(SKIP, f"Leave them out:\n  {shlex.join(['molequi', *words, '--skip'])}")


def _retyped(words: Sequence[str], name: str, value: str) -> str:
    """The command line with another value of a flag."""
    kept: list[str] = []
    for k, word in enumerate(words):
        if word.partition("=")[0] != f"--{name}" and (k == 0 or words[k - 1] != f"--{name}"):
            kept.append(word)
    return shlex.join(["molequi", *kept, f"--{name}", value])


def _command(name: str) -> Command:
    """The command of a name. Raises ConfigError if there is none."""
    names = [command.name for command in COMMANDS]
    if name in names:
        return COMMANDS[names.index(name)]
    meant = _OTHER_NAMES.get(name.lower())
    hint = f"; write molequi {meant}" if meant in names else did_you_mean(name, names)
    raise ConfigError(f"{name}: molequi has no such command{hint}")


def _advice_of_train(name: str, value: str) -> str:
    """The setting of a run that a flag stands for."""
    from molequi.config.names import Names
    from molequi.config.overrides import Known, option_of_a_run

    return option_of_a_run(name, value, Known(Names().readers, Names().backbones))


def _overview() -> str:
    """What ``molequi --help`` prints."""
    rows = [(command.name, command.text.partition(". ")[0].rstrip(".")) for command in COMMANDS]
    lines = text_table(("", ""), rows, left=(0, 1))[1:]
    return "\n".join(
        [
            "usage: molequi COMMAND ...",
            "",
            _ABOUT,
            "",
            "commands:",
            *(f"  {line}" for line in lines),
            "",
            "molequi COMMAND --help describes one of them; molequi --version is the version.",
        ]
    )


def _show_warning(
    how: Typing,
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning without its place in the code, which means nothing to users."""
    if is_first_process() or not issubclass(category, DataWarning):  # all processes have the same data
        print(f"molequi: warning: {as_typed(str(message), how)}", file=sys.stderr)
