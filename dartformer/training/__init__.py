"""One training: the loop, its optimizer, metric, checkpoints, log and devices."""
