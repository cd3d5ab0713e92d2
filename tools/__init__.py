"""The program: one library per folder, each with one subject, and the commands in `tools.commands`."""

import sys

__version__ = "0.1.0"

if sys.argv[0] == "-m":  # during `python -m tools.predict`, the way to run commands in the first release
    _, _, name = sys.orig_argv[sys.orig_argv.index("-m") + 1].partition("tools.")
    if name.isidentifier() and name != "__main__":
        print(f"error: python -m tools.{name}: commands are now run by python -m tools {name}", file=sys.stderr)
        sys.exit(2)
