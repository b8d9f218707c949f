"""Structures that were prepared once and are on disk as plain arrays."""
