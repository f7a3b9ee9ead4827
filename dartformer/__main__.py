"""`python -m dartformer`: the command line."""

import sys

from dartformer.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
