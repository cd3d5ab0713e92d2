"""The hint that says how to resume: the program as it was called."""

import shlex
import sys

import pytest

from tools.runtime.distributed import Ranks
from tools.train.output import resume_command

ARGV = ["--cfg", "my run.yaml", "--overwrite"]


@pytest.mark.parametrize(
    ("called", "alone", "two_ranks"),
    [
        ("main.py", "python main.py", "torchrun --nproc_per_node=2 main.py"),
        ("/my code/main.py", "python '/my code/main.py'", "torchrun --nproc_per_node=2 '/my code/main.py'"),
        ("/env/bin/plantswin", "plantswin train", "torchrun --nproc_per_node=2 --no-python plantswin train"),
        ("/code/tools/__main__.py", "python -m tools train", "torchrun --nproc_per_node=2 -m tools train"),
        ("/env/pytest/__main__.py", "python main.py", "torchrun --nproc_per_node=2 main.py"),
    ],
)
def test_the_program_that_was_called_is_repeated_without_overwrite(monkeypatch, called, alone, two_ranks):
    monkeypatch.setattr(sys, "argv", [called])
    for world_size, program in ((1, alone), (2, two_ranks)):
        command = resume_command(ARGV, Ranks(0, world_size))
        assert command == f"{program} --cfg 'my run.yaml'"
        assert shlex.split(command)[-2:] == ARGV[:2]
