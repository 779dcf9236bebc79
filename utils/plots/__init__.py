"""Figures of data, codes, checkpoints and results, a command each: docs/figures.md."""
