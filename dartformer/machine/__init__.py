"""What touches the machine and knows nothing of attention: memory, caches, flags, files, progress."""
