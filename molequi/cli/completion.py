"""``molequi completion``: the Tab key completes commands, options, choices, recipes and files."""

import argparse
from typing import Any

from molequi.cli.command import Command
from molequi.cli.parser import Parser
from molequi.errors import ConfigError

SHELLS = ("bash", "zsh", "fish")
_FILES = ("model", "structures", "data", "out", "against", "file", "files")
_INSTALL = {
    "bash": 'eval "$(molequi completion bash)"     # in ~/.bashrc',
    "zsh": "molequi completion zsh > ~/.zsh/_molequi     # with fpath=(~/.zsh $fpath); compinit in ~/.zshrc",
    "fish": "molequi completion fish > ~/.config/fish/completions/molequi.fish",
}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    lines = "; ".join(f"{shell}: {line}" for shell, line in _INSTALL.items())
    parser.add_argument("shell", choices=SHELLS, help=f"{', '.join(SHELLS)}. To switch it on: {lines}")


def _complete(given: argparse.Namespace) -> None:
    import shtab

    if given.shell not in SHELLS:
        raise ConfigError(f"completion {given.shell}: wanted one of {', '.join(SHELLS)}")
    print(shtab.complete(whole_parser(given.commands), given.shell))


def whole_parser(commands: tuple[Command, ...]) -> argparse.ArgumentParser:
    """A parser of the whole program, with what each argument is completed by.

    Parameters
    ----------
    commands : tuple of Command
        All commands.
    """
    parser = argparse.ArgumentParser(prog="molequi", allow_abbrev=False)
    parser.add_argument("--version", action="store_true", help="print the version")
    subparsers = parser.add_subparsers(metavar="command", parser_class=Parser)
    for command in commands:
        sub = subparsers.add_parser(command.name, help=command.text, add_help=True)
        command.add_arguments(sub)
        for action in sub._actions:
            _completed(action, sub)
    return parser


def _completed(action: Any, parser: Parser) -> None:
    """Give an argument the choices or files that complete it, as shtab reads them."""
    import shtab

    flag = parser.flags.get(action.dest)
    if flag is not None and flag.choices and len(flag.choices) < 20:
        action.choices = flag.choices
    elif action.dest == "config":
        action.complete = _words_and_files("recipes", _recipes())
    elif action.dest == "name" and not action.option_strings:
        action.choices = _names()
    elif action.dest in _FILES or (flag is not None and "path" in flag.kind):
        action.complete = shtab.FILE


def _recipes() -> list[str]:
    from molequi.config.sections import recipes

    return recipes()


def _names() -> list[str]:
    from molequi.heads import HEADS
    from molequi.models import BACKBONES
    from molequi.readers import READERS

    return ["fit", *BACKBONES, *READERS, *HEADS]


def _words_and_files(name: str, words: list[str]) -> dict[str, Any]:
    """Completion by words and by files, for each shell."""
    listed = " ".join(words)
    return {
        "bash": f"_molequi_{name}",
        "zsh": f"{{compadd {listed}; _files}}",
        "fish": f"({'; '.join(f'echo {word}' for word in words)}; __fish_complete_path (commandline -ct))",
        "preamble": {
            "bash": f'_molequi_{name}() {{ compgen -W "{listed}" -- $1; compgen -f -- $1; }}\n',
            "zsh": "",
            "fish": "",
        },
    }


COMMANDS = (
    Command(
        "completion",
        "Print a script that completes the words of molequi in a shell.",
        _add_arguments,
        _complete,
    ),
)
