"""The stages of a run, in order: search, derive, retrain, evaluate, profile, export, report."""
