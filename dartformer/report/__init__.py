"""What a person reads of a run: the report, comparisons, figures, trackers."""
