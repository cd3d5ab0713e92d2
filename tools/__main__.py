"""`python -m tools COMMAND ...`, once installed also `plantswin COMMAND ...`; without a command it lists them."""

import sys

from tools.base import cli
from tools.base.errors import UsageError, nearest
from tools.commands import run, summaries


@cli.command
def main(argv: list[str]) -> int:
    """Runs the command that `argv` begins with."""
    if argv[:1] == ["--version"]:
        print(cli.VERSION)
        return 0
    known = summaries()
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: python -m tools COMMAND ...   (COMMAND --help explains one)\n")
        print("\n".join(f"  {name:<10} {text}" for name, text in known.items()))
        return 0
    name, *rest = argv
    if name not in known:
        raise UsageError(f"unknown command {name!r}{nearest(name, known)}; python -m tools lists the commands")
    return run(name, rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
