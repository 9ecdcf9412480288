"""`sparta`, with the fake service in place of the real one: `python -m tests.launcher.drive VERB ...`."""

import sys

from sparta.launcher.cli import main

if __name__ == "__main__":
    sys.exit(main(service="tests.launcher.fake_service"))
