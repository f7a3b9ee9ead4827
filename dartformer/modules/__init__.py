"""Search, derivation and race in any NNX module that holds mixed layers of `dartformer.nn`."""
