"""Rows from files, tokens from texts, prepared sets on disk, splits and batches of them."""
