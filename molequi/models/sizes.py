"""Types of the sizes of backbones, whose bounds are checked before anything is built."""

from typing import Annotated

from annotated_types import Gt, Le

# A slip such as 1000000 would fill the memory for minutes before it ends in an error.
Layers = Annotated[int, Gt(0), Le(1000)]
"""Number of layers."""
