"""Two ranks of which one is killed, hangs, fails or is told to stop: both end, and nothing is lost."""

import os
import shutil
import signal

import pytest
import torch
from conftest import ROOT
from runs import RUN, UPDATE, digest, ranks_of, torchrun, warm_ranks

import main


def ends(ranks):
    """Exit codes and last lines on stderr of both ranks."""
    codes = [rank.wait() for rank in ranks]
    return codes, [rank.errors[-1] if rank.errors else "" for rank in ranks]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_other_which_says_so(of_two, tmp_path, victim):
    argv, expected = of_two
    ranks = warm_ranks(tmp_path, argv, argv)
    assert ranks[0].wait_for(UPDATE, times=3)
    assert ranks[victim].kill() == -signal.SIGKILL
    other = ranks[1 - victim]
    assert other.wait() == 8
    assert other.errors[-1].startswith("error: another rank is gone")
    assert ends(warm_ranks(tmp_path, argv, argv))[0] == [0, 0]
    assert digest(tmp_path / RUN) == expected


def test_a_signal_to_one_rank_stops_both_with_everything_saved(of_two, tmp_path, times):
    argv, expected = of_two
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)[: times(1, 3)]:
        ranks = warm_ranks(tmp_path, argv, argv)
        assert ranks[0].wait_for(UPDATE, times=2)
        ranks[1].signal(number)
        codes, errors = ends(ranks)
        assert codes == [128 + number] * 2
        assert all("and saved; resume with: torchrun --nproc_per_node=2 main.py" in line for line in errors)
    assert ends(warm_ranks(tmp_path, argv, argv))[0] == [0, 0]
    assert digest(tmp_path / RUN) == expected


def test_a_silent_rank_is_given_up(of_two, tmp_path):
    argv = [*of_two[0], "--opts", "DIST.TIMEOUT_SECONDS", "5"]
    ranks = warm_ranks(tmp_path, argv, argv)
    assert ranks[0].wait_for(UPDATE, times=2)
    ranks[1].signal(signal.SIGSTOP)
    ranks[0].patience = 40
    assert ranks[0].wait() == 8, ranks[0].errors
    assert ranks[1].kill() == -signal.SIGKILL


def test_torchrun_gives_up_a_silent_rank(of_two, tmp_path, times):
    times(0, 1)
    run = torchrun(tmp_path, ROOT / "main.py", *of_two[0], "--opts", "DIST.TIMEOUT_SECONDS", "5")
    assert run.wait_for(UPDATE, times=2), run.errors[-9:]
    os.kill(ranks_of(run)[1], signal.SIGSTOP)
    run.patience = 60
    assert run.wait() == 1


def with_a_bad_photo(dataset, folder):
    """A copy of the data in which one training photo is cut short."""
    own = shutil.copytree(dataset, folder, ignore=shutil.ignore_patterns("*.json"))
    victim = next((own / "train" / "000001").iterdir())
    victim.write_bytes(victim.read_bytes()[:500])
    return own, victim


def test_a_bad_photo_on_one_rank_is_named_once_and_ends_both(of_two, dataset, tmp_path):
    own, victim = with_a_bad_photo(dataset, tmp_path / "own")
    argv = [*of_two[0], "--data-path", str(own)]
    codes, errors = ends(warm_ranks(tmp_path, argv, argv))
    assert codes == [3, 3]
    assert sorted(victim.name in line for line in errors) == [False, True]


def poisoned(argv):
    """main.py whose model gives NaN on the second rank from its seventh pass on."""
    passes = []

    def spoil(module, _inputs, output):
        if module.training and hasattr(module, "patch_embed"):
            passes.append(1)
            return output * float("nan") if len(passes) >= 7 and os.environ["RANK"] == "1" else output
        return output

    torch.nn.modules.module.register_module_forward_hook(spoil)
    return main.main(argv)


def test_a_nan_on_one_rank_ends_both_at_that_step(of_two, tmp_path):
    argv, _ = of_two
    codes, errors = ends(warm_ranks(tmp_path, argv, argv, body=poisoned))
    assert codes == [6, 6]
    assert "the loss of step 6 " in errors[1]
    assert "photos " in errors[1]
    assert "rank 1 failed" in errors[0]
    from tools.checkpoint.store import newest, non_finite

    _, content, faults = newest(tmp_path / RUN)
    assert (content["step"], non_finite(content), faults) == (6, "", {})


def test_a_run_folder_that_vanishes_ends_both(of_two, tmp_path):
    argv, _ = of_two
    ranks = warm_ranks(tmp_path, argv, argv)
    assert ranks[0].wait_for(UPDATE, times=2)
    (tmp_path / "output").rename(tmp_path / "gone")
    codes, errors = ends(ranks)
    assert codes == [5, 5]
    assert str(RUN) in errors[0]


def test_ranks_that_were_not_told_the_same_do_not_begin(of_two, dataset, tmp_path):
    argv, _ = of_two
    fewer = shutil.copytree(dataset, tmp_path / "fewer", ignore=shutil.ignore_patterns("*.json"))
    next((fewer / "train" / "000001").iterdir()).unlink()
    for other, word in ((["--opts", "SEED", "5"], "SEED"), (["--data-path", str(fewer)], "photos")):
        codes, errors = ends(warm_ranks(tmp_path, argv, [*argv, *other]))
        assert codes == [2, 2]
        assert all(word in line for line in errors)
        assert not (tmp_path / RUN).exists()


def test_a_rank_that_fails_ends_torchrun(of_two, tmp_path, times):
    """Two ranks, two configs, under the real launcher."""
    times(0, 1)
    words = " ".join(f"'{word}'" for word in of_two[0])
    script = f"exec {os.sys.executable} {ROOT / 'main.py'} {words} --opts SEED $RANK"
    run = torchrun(tmp_path, "--no-python", "bash", "-c", script)
    assert run.wait() == 1
    assert sum("differ in SEED" in line for line in run.errors) == 2
    assert not (tmp_path / RUN).exists()
