"""The command-line flags that set config keys, made from the rows of `configs.keys`."""

import argparse
from collections.abc import Iterable

from configs.keys import KEYS

KEY_OF_FLAG = {key.flag: name for name, key in KEYS.items() if key.flag}


def add_config_flags(parser: argparse.ArgumentParser, flags: Iterable[str] = tuple(KEY_OF_FLAG)) -> None:
    """Adds flags of `KEY_OF_FLAG` to `parser`, and both spellings of local_rank, which launchers pass.

    A flag that is not given changes nothing; the flag of a bool key takes no value and sets it to true.
    """
    for flag in flags:
        name = KEY_OF_FLAG[flag]
        key = KEYS[name]
        kind = type(key.default)
        how = {"action": "store_true"} if kind is bool else {"type": kind, "metavar": "N" if kind is int else "VALUE"}
        parser.add_argument(flag, default=None, dest=name, help=f"{key.doc} ({name})", **how)
    parser.add_argument("--local_rank", "--local-rank", metavar="N", help="ignored: torchrun sets it")


def overrides(args: argparse.Namespace) -> list[tuple[str, object, str]]:
    """(key, value, flag) of every config flag that was given, in the form `configs.load.load` takes."""
    given = [(name, getattr(args, name, None), flag) for flag, name in KEY_OF_FLAG.items()]
    return [(name, value, flag) for name, value, flag in given if value is not None]
