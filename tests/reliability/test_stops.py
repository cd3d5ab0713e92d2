"""Signals: every one that ends a run costs at most the update under way, and leaves nothing running."""

import contextlib
import os
import random
import re
import shlex
import signal
import time

from runs import RUN, UPDATE, Watched, children, digest, leftovers, warm

import main
from tools.checkpoint import store

ENDINGS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Some seconds an update, three updates an epoch.
SLOW = ("MODEL.SWIN.EMBED_DIM", "96", "DATA.IMG_SIZE", "64", "TRAIN.ACCUMULATION_STEPS", "2")


def command_of(run):
    """argv of the command that the last line of a stopped run tells."""
    words = shlex.split(re.search("resume with: (.*)", run.errors[-1])[1])
    assert words[:2] == ["python", "main.py"]
    return words[2:]


def step_of(folder):
    return store.newest(folder / RUN)[1]["step"]


def test_signals_at_random_moments_and_the_printed_command(recipe, undisturbed, tmp_path, times):
    random.seed(3)
    argv = [*recipe, "TRAIN.SAVE_EVERY_STEPS", "0"]
    for number in ENDINGS * times(1, 5):
        run = warm(tmp_path, main.main, argv)
        assert run.wait_for(UPDATE), run.errors
        time.sleep(random.uniform(0, 0.05))
        workers = Watched(children(run.pid))
        run.signal(number)
        assert run.wait() == 128 + number, run.errors
        assert workers.gone()
        assert len(run.errors) == 1
        assert run.errors[0].startswith(f"error: stopped by {number.name} at step {step_of(tmp_path)} of ")
        argv = command_of(run)
    assert warm(tmp_path, main.main, argv).wait() == 0
    assert digest(tmp_path / RUN) == undisturbed
    assert not leftovers(tmp_path)


def test_a_signal_to_the_whole_group_ends_no_loader_before_its_time(recipe, tmp_path):
    """What Ctrl-C, systemd and batch systems do."""
    run = warm(tmp_path, main.main, [*recipe, "DATA.NUM_WORKERS", "2"])
    assert run.wait_for(UPDATE, times=2)
    group = [*children(run.pid), run.pid]
    for pid in group:
        os.kill(pid, signal.SIGTERM)
    assert run.wait() == 128 + signal.SIGTERM, run.errors
    assert len(run.errors) == 1


def test_a_second_ctrl_c_leaves_at_once(recipe, tmp_path):
    """Tried again where the first was answered before the second came."""
    for _ in range(6):
        run = warm(tmp_path, main.main, [*recipe, *SLOW])
        assert run.wait_for(UPDATE)
        for _ in range(2):
            time.sleep(0.03)
            run.signal(signal.SIGINT)
        assert run.wait() == 130
        assert store.newest(tmp_path / RUN)[2] == {}
        assert not leftovers(tmp_path)
        if run.errors == ["error: interrupted"]:
            break
    assert run.errors == ["error: interrupted"]


def test_sigusr1_saves_and_the_run_goes_on(recipe, undisturbed, tmp_path):
    run = warm(tmp_path, main.main, [*recipe, "TRAIN.SAVE_EVERY_STEPS", "0"])
    assert run.wait_for(UPDATE, times=2)
    assert not (tmp_path / RUN / "last.pth").exists()
    run.signal(signal.SIGUSR1)
    assert run.wait_for(UPDATE, times=2)
    assert 2 <= step_of(tmp_path) <= 4
    assert run.wait() == 0, run.errors
    assert digest(tmp_path / RUN) == undisturbed


def asked_to_save_by_the_last_step_of_an_epoch(argv):
    """Receives SIGUSR1 after the fifth step, the last of the first epoch."""
    from tools.train import run

    train_one_epoch = run.train_one_epoch

    def results(context, batches, progress, *sizes):
        for result in train_one_epoch(context, batches, progress, *sizes):
            if progress.step == 5:
                os.kill(os.getpid(), signal.SIGUSR1)
            yield result

    run.train_one_epoch = results
    return main.main(argv)


def test_sigusr1_saves_at_the_end_of_an_epoch_that_is_not_saved_otherwise(recipe, tmp_path):
    """The last save makes the one before it previous.pth."""
    argv = [*recipe, "TRAIN.SAVE_EVERY_STEPS", "0", "SAVE_FREQ", "1000"]
    assert warm(tmp_path, asked_to_save_by_the_last_step_of_an_epoch, argv).wait() == 0
    assert store.read(tmp_path / RUN / "previous.pth")["step"] == 5


def ended_in_validation(argv):
    """Receives SIGTERM after the first batch of the first validation."""
    from tools.train import run

    batches_of = run.batches_of

    def batches(loader, device):
        first, *rest = batches_of(loader, device)
        yield first
        os.kill(os.getpid(), signal.SIGTERM)
        yield from rest

    run.batches_of = batches
    return main.main(argv)


def test_a_signal_ends_a_validation_and_the_resumed_run_repeats_it(recipe, undisturbed, tmp_path):
    run = warm(tmp_path, ended_in_validation, recipe)
    assert run.wait() == 143, run.errors
    stored = store.newest(tmp_path / RUN)[1]
    assert (stored["step"], stored["validated"]) == (5, 0)
    assert warm(tmp_path, main.main, command_of(run)).wait() == 0
    assert digest(tmp_path / RUN) == undisturbed


def test_a_loader_that_hangs_does_not_keep_the_run_from_ending(recipe, tmp_path):
    """A second Ctrl-C leaves at once."""
    run = warm(tmp_path, main.main, recipe)
    assert run.wait_for(UPDATE, times=2)
    workers = children(run.pid)
    ends = Watched(workers)
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    run.patience = 60
    try:
        for _ in range(2):
            with contextlib.suppress(ProcessLookupError):  # the first was enough: the batch was already loaded
                run.signal(signal.SIGINT)
            time.sleep(0.2)  # two signals at once are one
        assert run.wait() == 130, run.errors
    finally:
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert ends.gone()


def ignoring_hangups(argv):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what nohup does before it starts a command
    return main.main(argv)


def test_nohup_keeps_its_meaning(recipe, undisturbed, tmp_path):
    run = warm(tmp_path, ignoring_hangups, recipe)
    assert run.wait_for(UPDATE, times=2)
    run.signal(signal.SIGHUP)
    assert run.wait() == 0, run.errors
    assert digest(tmp_path / RUN) == undisturbed
