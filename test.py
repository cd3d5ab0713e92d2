"""Scores a trained model on the test photos: the course's accuracy over label copies, and more."""

import sys
from functools import partial

from tools.commands import run

main = partial(run, "test")

if __name__ == "__main__":
    sys.exit(main())
