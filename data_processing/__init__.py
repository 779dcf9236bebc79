"""Data preparation scripts of RecGPT; each is importable and has --help."""
