"""Sweeps: many runs of one config, with a table of their results."""
