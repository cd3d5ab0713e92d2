"""The frame of every command: errors without a traceback, streams that take everything, flags and their hints."""

import contextlib
import errno
import logging
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

import main
from tools import __version__
from tools.__main__ import main as tools_main
from tools.base import cli
from tools.base.errors import ResourceError
from tools.base.log import create_logger
from tools.commands import summaries
from tools.train.history import FIELDS, read_history


def raising(error):
    @cli.command
    def main(_argv):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (MemoryError(), 5, "out of memory: MemoryError; lower --batch-size"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), 5, "out of memory: CUDA"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 5, "out of memory"),
        (OSError(errno.EROFS, "Read-only file system", "/a/b"), 5, "/a/b: the system refused: Read-only"),
        (OSError(errno.ENOSPC, "No space left on device"), 5, "No space left"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "a" * 300), 2, "shorter one"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "f/x"), 5, "f/x"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), 5, "pid 7"),
        (torch.distributed.DistNetworkError("timed out"), 8, "another rank is gone"),
        (
            torch.distributed.DistBackendError("NCCL error in: x.cpp, unhandled cuda error"),
            5,
            "cannot exchange gradients",
        ),
        (
            torch.distributed.DistBackendError("unhandled cuda error\nCuda failure 2 'out of memory'"),
            5,
            "out of memory",
        ),
        (ValueError("Expected more than 1 value per channel when training"), 2, "raise --batch-size"),
        (ModuleNotFoundError("No module named 'yacs'", name="yacs"), 5, "yacs is not installed in "),
        (ModuleNotFoundError("No module named 'tools.x'", name="tools.x"), 1, "this is a bug of PlantSwin"),
        (KeyError("x"), 1, "this is a bug of PlantSwin: KeyError at test_cli.py:"),
        (RuntimeError("two\nlines"), 1, "two; run it again with --debug"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=str,
)
def test_every_error_is_one_line_and_an_exit_code(refused, error, code, words):
    refused(raising(error), [], code, words)


def test_a_signal_ends_a_command_whose_library_suppresses_exceptions(refused):
    """As libraries do around an import that may fail."""

    @cli.command
    def main(_argv):
        with contextlib.suppress(Exception):
            os.kill(os.getpid(), signal.SIGTERM)
        return 0

    refused(main, [], 143, "ended by SIGTERM")


def test_debug_shows_the_traceback(capsys):
    assert raising(KeyError("x"))(["--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_memory_that_torch_cannot_get(refused):
    @cli.command
    def main(_argv):
        torch.empty(2**50)

    refused(main, [], 5, "out of memory")


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--epochs", "'--epochs'; write --opts TRAIN.EPOCHS VALUE"),
        ("--lr=1", "'--lr=1'; write --opts TRAIN.BASE_LR VALUE"),
        ("--num-workers", "write --opts DATA.NUM_WORKERS VALUE"),
        ("--overwite", "did you mean --overwrite?"),
        ("--verbose", "unrecognized argument '--verbose'\n"),
    ],
)
def test_an_unknown_flag_is_answered_with_what_helps(capsys, flag, words):
    assert main.main(["--cfg", "x", flag, "3"]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", [*summaries(), ""])
def test_every_command_tells_its_version(capsys, name):
    assert tools_main([*filter(None, [name]), "--version"]) == 0
    assert capsys.readouterr().out == f"plantswin {__version__}\n"


PROGRAM = """
import sys
from tools.base import cli
from tools.base.log import create_logger
@cli.command
def main(argv):
    if argv:
        create_logger().info("a line")
    print("\\u00e9 \\udcfe")
    return 0
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("redirection", "code", "words"),
    [
        ("", 0, ""),
        (">/dev/full", 5, "error: the system refused: No space left on device"),
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        (">/dev/full 2>/dev/full", 5, ""),
    ],
)
@pytest.mark.parametrize("logs", ["", "log"])
def test_output_to_a_closed_stream_or_a_full_disk(redirection, code, words, logs):
    command = f'"{sys.executable}" -c "$PROGRAM" {logs} {redirection}'
    env = {**os.environ, "PROGRAM": PROGRAM, "PYTHONIOENCODING": "ascii:strict"}
    result = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=60, env=env)
    assert result.returncode == code, result.stderr
    assert result.stderr.startswith(words)
    assert len(result.stderr.splitlines()) == bool(words)


def test_the_console_has_short_lines_and_the_file_says_where_each_comes_from(tmp_path, capsys):
    logger = create_logger(tmp_path / "log.txt")
    logger.info("Max accuracy: %.2f%%", 14.285)
    logger.warning("memory ran out")
    logging.getLogger("plantswin").handlers.clear()
    console, file = capsys.readouterr().out.splitlines(), (tmp_path / "log.txt").read_text().splitlines()
    for line, pattern in zip(console, (r"Max accuracy: 14\.29%", "WARNING memory ran out"), strict=True):
        assert re.fullmatch(rf"\d\d:\d\d:\d\d {pattern}", line)
    prefix = r"\[\d{4}-\d\d-\d\d [\d:]{8} plantswin\] \(test_cli\.py \d+\): "
    for line, pattern in zip(file, (r"INFO Max accuracy: 14\.29%", "WARNING memory ran out"), strict=True):
        assert re.fullmatch(prefix + pattern, line)


def test_a_log_file_without_room_ends_the_run(tmp_path, capsys):
    (tmp_path / "log.txt").symlink_to("/dev/full")
    logger = create_logger(tmp_path / "log.txt")
    with pytest.raises(ResourceError, match=r"log\.txt cannot be written: .*No space left"):
        logger.info("x")
    assert not capsys.readouterr().err
    logging.getLogger("plantswin").handlers.clear()


@pytest.mark.parametrize(
    "text", [b"", b"epoch;step\n0;1\n", b"\xff\0", b"epoch,step,x\n-1,1,2\n", ",".join(FIELDS).encode() + b"\nx\n"]
)
def test_a_history_that_is_not_ours_is_refused(tmp_path, text):
    (tmp_path / "metrics.csv").write_bytes(text)
    with pytest.raises(ResourceError, match=r"metrics\.csv .*--overwrite"):
        read_history(tmp_path / "metrics.csv")


def test_the_line_of_an_error_is_short_whatever_the_user_typed(capsys):
    """A table whose separator is wrong has one field of all its labels."""
    assert raising(ResourceError(f"label {'x' * 100_000!r} is too long; rename it"))([]) == 5
    line = capsys.readouterr().err
    assert len(line) < 3000
    assert line.startswith("error: label 'xxx")
    assert line.endswith("xxx' is too long; rename it\n")
