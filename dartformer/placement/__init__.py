"""Placement in a checkpoint as a run: score its places, choose within a budget, evaluate."""
