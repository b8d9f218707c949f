"""Where a converted model comes from."""

from dataclasses import dataclass

from molequi.model import Model


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where the weights of a model come from; part of its metadata.

    Parameters
    ----------
    family : str
        Name of the architecture.
    package : str
        Package and version that wrote the file.
    citation : str
        What to cite.
    name, licence, training : str, optional
        Of published weights that are known: their name, their licence, and what they were trained on.
    level : str, optional
        The level of theory that was chosen of a file with several.
    other_levels : tuple of str
        Other levels that the file has.
    file, sha256 : str
        Name and digest of the file.
    """

    family: str
    package: str
    citation: str
    name: str | None = None
    licence: str | None = None
    training: str | None = None
    level: str | None = None
    other_levels: tuple[str, ...] = ()
    file: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class Converted:
    """A model and its origin.

    Parameters
    ----------
    model : Model
        The model.
    origin : Origin
        Where it comes from.
    """

    model: Model
    origin: Origin
