"""Runs as YAML files: the schema, the recipes of the package, and how one is carried out."""

from molequi.config.run import run
from molequi.config.schema import build_model, read_config, read_data, recipes

__all__ = ["build_model", "read_config", "read_data", "recipes", "run"]
