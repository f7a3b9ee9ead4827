"""Programs for accelerators that are not here: the devices, their compilers, what these say."""
