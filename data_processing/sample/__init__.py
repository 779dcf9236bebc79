"""The embedded sample, and how it is made."""
