"""`python -m sparta.launcher` is `sparta`, where the script is not on the PATH."""

import sys

from sparta.launcher.cli import main

if __name__ == "__main__":
    sys.exit(main())
