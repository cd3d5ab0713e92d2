"""SIGKILL at any moment: while saving, and many times in one run, which comes to the same bits as if never killed."""

import os
import random
import signal
import time

import torch
from conftest import ROOT
from runs import RUN, UPDATE, Watched, children, digest, leftovers, ranks_of, torchrun, warm

import main
from tools.checkpoint import store


def save_for_ever(source, folder):
    """Saves checkpoints of growing steps and says each when it is done."""
    content = store.read(source)
    _, newest, _ = store.newest(folder)
    step = newest.get("step", 0)
    while True:
        step += 1
        weights = content["model"] | {"filler": torch.full((2**19,), float(step))}
        store.save(folder / "last.pth", content | {"step": step, "model": weights}, folder / "previous.pth")
        print(step, flush=True)


def test_killed_while_saving(trained, tmp_path, times):
    folder, kills, halves, saved = tmp_path / "run", times(3, 200), 0, 0
    folder.mkdir()
    random.seed(0)
    for _ in range(kills):
        saver = warm(tmp_path, save_for_ever, trained / "last.pth", folder)
        assert saver.wait_for(r"\d+"), saver.errors
        time.sleep(random.uniform(0, 0.1))  # the moment of the kill, anywhere in a save
        assert saver.kill() == -signal.SIGKILL
        last_said = int(saver.said[-1])
        path, content, faults = store.newest(folder)
        assert faults == {}, "last.pth or previous.pth is broken"
        assert path.name == "last.pth"
        assert last_said <= content["step"] <= last_said + 1
        assert (content["model"]["filler"] == content["step"]).all()
        halves += bool(leftovers(folder))
        store.sweep(folder)
        assert not leftovers(folder)
        saved = content["step"]
    print(f"{kills} kills in {saved} saves, {halves} of them inside one: 0 broken, 0 older than the last one reported")
    assert halves


def killed(start, kills, moments):
    """Starts a run again and again, kills it at `moments`, then at random ones; returns the lines it was killed at."""
    hit = []
    while len(hit) < kills:
        run = start()
        at = moments[len(hit)] if len(hit) < len(moments) else ""
        seen = run.wait_for(at) if at else run.wait_for(UPDATE, times=2)
        assert seen, (run.said[-3:], run.errors)
        if not at:
            time.sleep(random.uniform(0, 0.05))
        hit.append(seen[0])
        workers = Watched(children(run.pid))
        assert len(workers)
        assert run.kill() == -signal.SIGKILL
        assert workers.gone(), "a loader process has outlived the run"
    return hit


def test_one_run_killed_many_times(recipe, undisturbed, tmp_path, times):
    """Three times inside the first epoch, once at its boundary, then anywhere."""
    random.seed(1)
    moments = [rf"Train: \[1/\d+\]\[{k}/5\]" for k in (1, 2, 4)] + ["EPOCH 1 training takes"]
    hit = killed(lambda: warm(tmp_path, main.main, recipe), times(4, 20), moments)
    assert warm(tmp_path, main.main, recipe).wait() == 0
    assert digest(tmp_path / RUN) == undisturbed
    assert not leftovers(tmp_path)
    print(f"{len(hit)} kills, at {', '.join(hit)}: as if never killed")


def test_two_ranks_killed_many_times_go_on_by_themselves(of_two, tmp_path, times):
    """torchrun --max-restarts: a rank dies, all are started again at the first try, and the last bit is the same."""
    argv, expected = of_two
    random.seed(2)
    kills = times(0, 7)
    run = torchrun(tmp_path, ROOT / "main.py", *argv, restarts=kills)
    for number in range(kills):
        if number:
            assert run.wait_for("resuming .* at step"), run.errors[-9:]
        assert run.wait_for(UPDATE, times=2), run.errors[-9:]
        os.kill(ranks_of(run)[random.randrange(2)], signal.SIGKILL)
    assert run.wait() == 0, run.errors[-9:]
    assert digest(tmp_path / RUN) == expected
    print(f"{kills} kills of a rank of two: as if never killed")


def test_torchrun_killed_leaves_no_rank_and_the_same_command_goes_on(of_two, tmp_path, times):
    argv, expected = of_two
    for _ in range(times(0, 3)):
        run = torchrun(tmp_path, ROOT / "main.py", *argv)
        assert run.wait_for(UPDATE, times=2), run.errors[-9:]
        ranks = Watched(list(ranks_of(run).values()))
        assert len(ranks) == 2
        assert run.kill() == -signal.SIGKILL
        assert ranks.gone()
    assert torchrun(tmp_path, ROOT / "main.py", *argv).wait() == 0
    assert digest(tmp_path / RUN) == expected
