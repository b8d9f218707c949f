"""What was meant by a value that is no number as it stands: ``300K``, or 95 for a probability."""

import re
from collections.abc import Sequence

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
# The letter of an exponent begins no unit, and an x begins one only where no number comes after it.
_WITH_UNIT = re.compile(rf"({_NUMBER})\s*((?![eE][-+]?\d)(?:[^\d\s.,;x×*+-]|x(?!\s*\d)).*)")
_COMMA = re.compile(r"[-+]?\d*,\d+(?:[eE][-+]?\d+)?")
_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2}(?:,\d{3})")
_SEVERAL = re.compile(rf"[\[(]?\s*({_NUMBER}(?:\s*[,;x×*]\s*{_NUMBER})+)\s*[\])]?")
# The unit of each option, and factors of other units to it.
_MINUTES = {
    "s": 1 / 60,
    "sec": 1 / 60,
    **dict.fromkeys(("m", "min", "mins", "minutes"), 1.0),
    **dict.fromkeys(("h", "hr", "hours"), 60.0),
}
_UNITS: dict[str, tuple[str, dict[str, float]]] = {
    "temperature": ("K", {"K": 1.0}),
    "timestep": ("fs", {"fs": 1.0, "ps": 1e3, "as": 1e-3}),
    "time": ("ps", {"fs": 1e-3, "ps": 1.0, "ns": 1e3, "us": 1e6}),
    "spacing": ("fs", {"fs": 1.0, "ps": 1e3}),
    "pressure": ("bar", {"bar": 1.0, "kbar": 1e3, "Pa": 1e-5, "MPa": 10.0, "GPa": 1e4, "atm": 1.01325}),
    "max_minutes": ("minutes", _MINUTES),
    "cutoff": ("Å", {"Å": 1.0, "A": 1.0, "Ang": 1.0, "nm": 10.0, "pm": 0.01}),
    "fmax": ("eV/Å", {"eV/Å": 1.0, "eV/A": 1.0, "meV/Å": 1e-3, "meV/A": 1e-3}),
}
_UNITS["barostat_time"] = _UNITS["thermostat_time"] = _UNITS["timestep"]


def meant_by(option: str, value: object, kinds: Sequence[str] = ("several",)) -> str:
    """The end of a message about a value that is no number: what to write.

    Parameters
    ----------
    option : str
        Name of the option, perhaps with what stands before it: "md.temperature".
    value : object
        What was found.
    kinds : sequence of str
        What the option takes: "several" numbers, one "int" or one "float".

    Returns
    -------
    str
        Empty if nothing is known.

    Examples
    --------
    >>> meant_by("md.temperature", "300K"), meant_by("md.temperature", "300,600")
    ('; write 300 (in K)', '; write 300 600')
    >>> meant_by("md.pressure", "1GPa"), meant_by("phonons.supercell", "2x2x2")
    ('; write 10000 (in bar)', '; write 2 2 2')
    >>> meant_by("train.lr", "0,001", ["float"]), meant_by("md.steps", "1,000", ["int"])
    ('; write 0.001', '; write 1000')
    """
    if isinstance(value, (list, tuple)):
        return next(filter(None, (meant_by(option, one) for one in value)), "")
    if not isinstance(value, str):
        return ""
    text = value.strip()
    several = _SEVERAL.fullmatch(text)
    if "several" not in kinds and _COMMA.fullmatch(text):
        if "float" in kinds and not _THOUSANDS.fullmatch(text):  # 300,600 may be two temperatures
            return f"; write {text.replace(',', '.')}"
        if "float" not in kinds and _THOUSANDS.fullmatch(text):
            return f"; write {text.replace(',', '')}"
    if several:
        return f"; write {' '.join(re.findall(_NUMBER, several[1]))}"
    found = _WITH_UNIT.fullmatch(text)
    if not found:
        return ""
    parts = option.split(".")
    unit, factors = _UNITS.get("_".join(parts[-2:]), _UNITS.get(parts[-1], ("", {})))
    lowered = {name.lower(): number for name, number in factors.items()}
    number = factors.get(found[2], lowered.get(found[2].lower()))
    if number is None:
        return f"; write the number alone{f', in {unit}' if unit else f': {found[1]}'}"
    return f"; write {float(found[1]) * number:.10g} (in {unit})"


def share_meant_by(value: object, most: object) -> str:
    """The end of a message about a percentage in place of a fraction.

    Parameters
    ----------
    value : object
        What was found.
    most : object
        The largest value that the option takes, if there is one.

    Examples
    --------
    >>> share_meant_by(95, 1.0), share_meant_by(95, 10)
    ('; did you mean 0.95?', '')
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return f"; did you mean {value / 100:g}?" if number and most == 1 and 1 < value < 100 else ""  # type: ignore[operator]
