"""The names that a YAML file may use: those of the package, and objects that the caller hands over."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from molequi.approximate import TERMS
from molequi.errors import ConfigError
from molequi.generative import FlowMatching, read_paths
from molequi.heads import HEADS, Head
from molequi.heads.velocity import FLOW_VELOCITY
from molequi.hooks import Hook
from molequi.losses import KINDS, LossFunction
from molequi.models import BACKBONES, Backbone
from molequi.quantities import KNOWN, Quantity
from molequi.readers import READERS

BASES: dict[str, type] = {"backbones": Backbone, "heads": Head}


@dataclass(frozen=True)
class Names:
    """What each name of a file stands for.

    Parameters
    ----------
    backbones : Mapping
        Classes of backbones.
    heads : Mapping
        Classes of heads.
    readers : Mapping
        Functions that read a Dataset.
    losses : Mapping
        Functions ``(predictions, graph) -> Tensor`` that the loss may have as terms.
    quantities : Mapping
        Quantities beside the known ones.
    hooks : Mapping
        Terms of a training: classes or objects.
    """

    backbones: Mapping[str, Any] = field(default_factory=lambda: dict(BACKBONES))
    heads: Mapping[str, Any] = field(default_factory=lambda: dict(HEADS))
    readers: Mapping[str, Any] = field(default_factory=lambda: {**READERS, "paths": read_paths})
    losses: Mapping[str, LossFunction] = field(default_factory=dict)
    quantities: Mapping[str, Quantity] = field(default_factory=lambda: {FLOW_VELOCITY.name: FLOW_VELOCITY})
    hooks: Mapping[str, type[Hook] | Hook] = field(
        default_factory=lambda: {**TERMS, "FlowMatching": FlowMatching}
    )

    @classmethod
    def of(cls, **more: Mapping[str, Any] | None) -> "Names":
        """Return the names of the package together with those of the user.

        Parameters
        ----------
        **more : Mapping, optional
            For each field of this class: the user's own objects by name.

        Raises
        ------
        ConfigError
            For a name that the package has already, and for an object of the wrong kind.
        """
        package: dict[str, Mapping[str, Any]] = {"losses": dict.fromkeys(KINDS), "quantities": KNOWN}
        whole = cls()
        found: dict[str, dict[str, Any]] = {}
        for table, own in more.items():
            here = getattr(whole, table)
            if own is not None and not isinstance(own, Mapping):
                raise ConfigError(
                    f"{table}={own!r}: found {type(own).__name__}; wanted objects by the names that the file "
                    f'uses, {table}={{"my_name": …}}'
                )
            for name, value in (own or {}).items():
                if name in here or name in package.get(table, {}):
                    raise ConfigError(f"{table}: molequi has {name!r} already; choose another name")
                _check(table, name, value)
            found[table] = {**here, **(own or {})}
        return cls(**found)


def _check(table: str, name: str, value: Any) -> None:
    """Raise ConfigError for an object that is not what its table holds."""
    if table == "quantities":
        good, wanted = isinstance(value, Quantity), "a Quantity"
    elif table == "hooks":
        good = isinstance(value, Hook) or (isinstance(value, type) and issubclass(value, Hook))
        wanted = "a subclass of Hook or an object of one"
    elif table in BASES:
        base = BASES[table]
        good = isinstance(value, type) and issubclass(value, base)
        wanted = f"the class, a subclass of {base.__name__}" + (
            f", {type(value).__name__} and not an object of it" if isinstance(value, base) else ""
        )
    else:
        good, wanted = callable(value), "a function"
    if not good:
        raise ConfigError(f"{table}[{name!r}]: found {value!r} ({type(value).__name__}); wanted {wanted}")
