"""What all parts use: files, locks, signals, tables, progress, checks of options against signatures."""
