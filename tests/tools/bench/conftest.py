"""Runs a benchmark as its command does."""

import json

import pytest

from tools.commands.bench import main


@pytest.fixture
def run_benchmark(tmp_path, capsys):
    """Runs a benchmark for one round and returns its rows, after checking what it prints."""

    def run(*words, code=0):
        path = tmp_path / "rows.json"
        assert main([*map(str, words), "--rounds", "1", "--json", str(path)]) == code, capsys.readouterr()
        found, (machine, _, _, _, *lines) = json.loads(path.read_text()), capsys.readouterr().out.splitlines()
        assert found["machine"]["processor"] in machine
        assert "subnormal cost" in machine
        assert [line.split(" | ")[0] for line in lines] == [f"| {row['name']}" for row in found["rows"]]
        return found["rows"]

    return run
