"""Everything that runs: libraries by subject in the folders, commands in `tools.commands`."""

import sys

if sys.argv[0] == "-m":  # Python is looking for the module of `python -m tools.predict`, as commands were once called
    _, _, name = sys.orig_argv[sys.orig_argv.index("-m") + 1].partition("tools.")
    if name.isidentifier() and name != "__main__":
        print(f"error: python -m tools.{name}: commands are now called python -m tools {name}", file=sys.stderr)
        sys.exit(2)
