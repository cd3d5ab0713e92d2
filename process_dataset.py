"""Audits raw photos and label CSVs, and turns them into the folders that main.py, test.py and visual.py read."""

import sys
from functools import partial

from tools.commands import run

main = partial(run, "prepare")

if __name__ == "__main__":
    sys.exit(main())
