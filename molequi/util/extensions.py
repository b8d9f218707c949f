"""Classes that a user hands over, beside those of the package.

Model files and YAML files name classes, and reading them never imports anything.
"""

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from molequi.errors import ModelError, did_you_mean

Class = TypeVar("Class")


def with_own(
    known: Mapping[str, type[Class]],
    own: Mapping[str, type[Class]] | None,
    *,
    base: type[Class],
    argument: str,
) -> dict[str, type[Class]]:
    """Return the classes of the package and those of the user, by name.

    Parameters
    ----------
    known : mapping of str to type
        Classes of the package.
    own : mapping of str to type, optional
        Classes that the user hands over.
    base : type
        What all of them are subclasses of.
    argument : str
        Name of the argument in messages, such as "backbones".

    Raises
    ------
    ModelError
        If `own` is no mapping, if a value is no subclass of `base`, or if a class of the package has the same
        name.
    """
    if own is not None and not isinstance(own, Mapping):
        raise ModelError(
            f"{argument}={own!r}: found {type(own).__name__}; wanted classes by the names that the file has "
            f'for them, {argument}={{"MyClass": MyClass}}'
        )
    for name, kind in (own or {}).items():
        where = f"{argument}={{{name!r}: …}}"
        if not (isinstance(kind, type) and issubclass(kind, base)):
            raise ModelError(f"{where}: found {kind!r}; wanted a subclass of {base.__name__}")
        if known.get(name, kind) is not kind:
            raise ModelError(
                f"{where}: molequi has a {base.__name__} of this name; give your class another name"
            )
    return {**known, **(own or {})}


def find(name: str, table: Mapping[str, type[Class]], *, what: str, argument: str) -> type[Class]:
    """Return the class of a name.

    Parameters
    ----------
    name : str
        The name in a file.
    table : mapping of str to type
        What `with_own` returned.
    what : str
        What the class is, for messages, such as "backbone".
    argument : str
        Name of the argument that takes classes of the user, such as "backbones".

    Raises
    ------
    ModelError
        If there is none; the message says how to hand it over.
    """
    if name not in table:
        guess = did_you_mean(str(name), table)
        raise ModelError(
            f"{what} {name!r} is not known{guess}{'' if guess.endswith('?') else '.'} "
            f"Hand over a class of your own, as in mq.load(path, {argument}={{{str(name)!r}: {name}}})"
        )
    return table[name]


def own_name(kind: type, known: Mapping[str, type]) -> str:
    """Return the name of a class in files.

    Parameters
    ----------
    kind : type
        The class.
    known : mapping of str to type
        Classes of the package.

    Raises
    ------
    ModelError
        If the package has another class of this name.
    """
    if known.get(kind.__name__, kind) is not kind:
        raise ModelError(
            f"{kind.__name__} ({kind.__module__}): molequi has a class of this name, which a file would "
            "build in its place; give your class another name"
        )
    return kind.__name__


def check_plain(options: Mapping[str, Any], where: str) -> None:
    """Check that a file can hold the options of an object, so that the object can be built again.

    Parameters
    ----------
    options : mapping
        Options by name.
    where : str
        What the message puts before the name of an option.

    Raises
    ------
    ModelError
        For an option that JSON cannot hold.
    """
    for name, value in options.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ModelError(
                f"{where}.{name}: found {type(value).__name__} {str(value)[:40]!r}; a model file holds "
                "numbers, text, lists and mappings only, so build it inside of the constructor from such "
                "options"
            ) from error
