"""Fixtures of small structures whose energy is a Morse potential."""

from ..morse_kit import data, make, model, parts, quick  # noqa: F401
