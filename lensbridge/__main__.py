"""`python -m lensbridge` is the command `lensbridge`."""

import sys

from lensbridge.cli import main

if __name__ == "__main__":
    sys.exit(main())
