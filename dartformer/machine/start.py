"""What a process sets of the allocator and of XLA before it imports JAX."""

import os

from dartformer.machine.allocator import keep_freed_memory
from dartformer.machine.xla_flags import protect, split_temporaries


def prepare_process() -> None:
    """Set what trainings want of this process; what the user has set stays."""
    keep_freed_memory()
    protect(may_probe=True)
    split_temporaries()
    # XLA warns of every array that is larger than a block of temporaries, and reports a compilation
    # of two minutes as an error with advice on how to file a bug. Its real errors reach Python as
    # exceptions.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
