"""Shared parts of RecGPT; see README.md, "Locating the code"."""
