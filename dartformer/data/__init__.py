"""Rows from files, tokens from texts, prepared arrays on disk."""
