"""Shows where on the leaf a trained model looked: heat maps over photos, side by side, or scored against boxes."""

import sys
from functools import partial

from tools.commands import run

main = partial(run, "visual")

if __name__ == "__main__":
    sys.exit(main())
