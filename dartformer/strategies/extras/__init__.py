"""What is laid over a strategy: decay, smoothing, dropping, early stopping."""
