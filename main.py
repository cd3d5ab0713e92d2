"""Trains a model on prepared leaf photos, or scores (--eval) or times (--throughput) one on the validation photos."""

import sys
from functools import partial

from tools.commands import run

main = partial(run, "train")

if __name__ == "__main__":
    sys.exit(main())
