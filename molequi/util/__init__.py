"""Helpers that all packages use: files, locks, signals, tables, progress bars, and checks of options.

Modules of this package import nothing from molequi except `molequi.errors` and each other.
"""
