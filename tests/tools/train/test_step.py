"""One update: in micro-batches, repeated or refused, it is the same update or none."""

import dataclasses
import functools
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from torch import nn
from yacs.config import CfgNode

from tools.base.errors import DataError, NumericsError, ResourceError
from tools.runtime.precision import NativePrecision
from tools.train.draws import Draws
from tools.train.loop import Progress, train_one_epoch
from tools.train.optim import parameter_groups
from tools.train.parts import compile_forward
from tools.train.step import StepContext, train_step

CPU = torch.device("cpu")
BATCHES = [(torch.randn(8, 5, generator=torch.Generator().manual_seed(i)), torch.ones(8, 2)) for i in range(4)]
PLAIN = Draws(lambda images, targets: (images, targets), None, 0)


class Hungry(nn.Sequential):
    """A stand-in for a GPU that has room for `room` images: a CPU's memory ends somewhere else every time."""

    def __init__(self, room):
        torch.manual_seed(0)
        super().__init__(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        self.room, self.tried = room, []

    def forward(self, images):
        self.tried.append(len(images))
        out = super().forward(images) if len(images) > 1 else None  # batch norm's statistics move, then memory is out
        if len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return out


def context(model, criterion=nn.functional.mse_loss, **more):
    groups = parameter_groups(model, weight_decay=0.1, no_decay=(), heads=["head"], head_scale=1.0)
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    more = {"schedule": lambda _step: 0.01, "batch_size": 8, **more}
    return StepContext(model, criterion, optimizer, NativePrecision("cpu", None), CPU, lambda _s, _n: PLAIN, **more)


def train(model, micro_batch, batch_size=8):
    """An epoch of two updates with at most `batch_size` images at once."""
    progress = Progress(micro_batch=micro_batch)
    updates = train_one_epoch(context(model, batch_size=batch_size), BATCHES, progress, 4, 2)
    return list(updates), progress, {k: v.clone() for k, v in model.state_dict().items()}


@pytest.mark.parametrize(("room", "pieces"), [(7, 4), (4, 4), (3, 2), (2, 2)])
def test_out_of_memory_halves_the_pieces_and_is_the_run_that_had_them_from_the_start(room, pieces):
    updates, progress, found = train(Hungry(room), 8)
    assert progress.micro_batch == pieces
    assert [update.images for update in updates] == [16, 16]
    *_, wanted = train(Hungry(8), pieces, pieces)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    *_, again = train(Hungry(8), 8)
    assert not torch.equal(found["0.weight"], again["0.weight"]), "batch norm sees the pieces"


def test_pieces_change_nothing_but_the_order_of_sums_without_batch_norm():
    results = []
    for micro_batch in (8, 3, 1):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
        updates, _, weights = train(model, micro_batch, micro_batch)
        results.append((updates[-1].loss, weights))
    for loss, weights in results[1:]:
        assert loss == pytest.approx(results[0][0], abs=1e-6)
        torch.testing.assert_close(weights, results[0][1], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("clip_grad", [0.0, 1e-3, 1e3])
def test_clipped_updates_are_those_of_a_loop_with_torchs_own_clipping(clip_grad):
    ours, theirs = (nn.Linear(5, 2) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    sgd = [torch.optim.SGD([{"params": list(m.parameters()), "lr_scale": 1.0}], lr=0.5) for m in (ours, theirs)]
    told = context(ours, clip_grad=clip_grad, schedule=lambda _step: 0.5)
    told = dataclasses.replace(told, optimizer=sgd[0])
    progress = Progress(micro_batch=8)
    updates = list(train_one_epoch(told, BATCHES, progress, 4, 1))
    for (images, targets), update in zip(BATCHES, updates, strict=True):
        nn.functional.mse_loss(theirs(images), targets).backward()
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), clip_grad or float("inf"))
        sgd[1].step(), sgd[1].zero_grad()
        assert update.grad_norm == pytest.approx(norm.item())
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_when_not_even_one_image_fits_it_is_said_and_nothing_has_changed():
    model = Hungry(0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ResourceError, match="step 0 with one image at a time"):
        train_step(context(model), iter(BATCHES), 2, 0, 8)
    assert model.tried == [8, 4, 2, 1]
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in before)
    assert all(p.grad is None for p in model.parameters())


REAL = """
import resource, sys, torch
import main
soft, hard = resource.getrlimit(resource.RLIMIT_AS)
torch.set_num_threads(1)
import numpy, timm, cv2, matplotlib.pyplot, tools.train.setup, tools.render.figures
used = 1024 * int(next(l for l in open("/proc/self/status") if l.startswith("VmSize")).split()[1])
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]) * 2**20, hard))
sys.exit(main.main(sys.argv[2:]))
"""


def test_memory_that_really_runs_out_is_answered_with_smaller_pieces(dataset, tiny, tmp_path):
    """An address space with room for 500 MB more; a step with 40 images at once takes about twice that."""
    wide = ["MODEL.SWIN.MLP_RATIO", "64", "DATA.IMG_SIZE", "96", "DATA.BATCH_SIZE", "40", "TRAIN.EPOCHS", "1"]
    wide += ["TRAIN.WARMUP_EPOCHS", "0"]
    command = ["--cfg", tiny, "--data-path", dataset, "--output", tmp_path, "--opts", *wide, "DATA.TARGETS", "multi"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", REAL, "500", *map(str, command)], capture_output=True, text=True, timeout=300, env=env
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "out of memory at step 0: micro-batch halved to 20 images" in result.stdout
    from tools.checkpoint.store import read

    stored = read(tmp_path / "tiny" / "default" / "last.pth")
    assert stored["micro_batch"] < 40
    assert stored["images_per_update"] == 40


def test_a_loss_that_is_not_finite_names_its_photos_and_no_others():
    def criterion(logits, targets):
        return nn.functional.mse_loss(logits, targets) / (targets.min() + 1).clamp(max=1)  # 0/0 for a target of -1

    targets = torch.ones(8, 2)
    targets[5] = -1
    batches = [BATCHES[0], (BATCHES[1][0], targets)]
    model = nn.Linear(5, 2)
    before = model.weight.detach().clone()
    told = context(model, criterion, photos=lambda step: [f"{step}/{i}.jpg" for i in range(16)])
    with pytest.raises(NumericsError, match=r"loss of step 7 .* photos 7/12\.jpg, 7/13\.jpg; the weights were not"):
        train_step(told, iter(batches), 2, 7, 2)
    assert torch.equal(model.weight, before)


def test_an_error_of_the_loader_is_the_error_of_the_update():
    def broken():
        yield BATCHES[0]
        raise DataError("image x.jpg cannot be decoded")

    with pytest.raises(DataError, match=r"x\.jpg"):
        train_step(context(nn.Linear(5, 2)), broken(), 2, 0, 8)


def test_a_dead_loader_process_is_said_with_the_photos_it_was_reading():
    def dead():
        raise RuntimeError("DataLoader worker (pid(s) 17) exited unexpectedly")
        yield

    told = context(nn.Linear(5, 2), photos=lambda _step: ["a.jpg", "b.jpg"])
    with pytest.raises(ResourceError, match=r"pid\(s\) 17.*reading a\.jpg, b\.jpg or a later photo"):
        train_step(told, dead(), 1, 0, 8)


def test_the_micro_batch_grows_again_at_the_start_of_an_epoch_only():
    model, progress = Hungry(8), Progress(micro_batch=2)
    told = context(model)
    for _ in train_one_epoch(told, BATCHES, progress, 4, 2):
        assert progress.micro_batch == 4
    list(train_one_epoch(told, BATCHES, progress, 4, 2))
    assert progress.micro_batch == 8
    model.room = 4
    list(train_one_epoch(told, BATCHES, progress, 4, 2))
    assert progress.micro_batch == 4
    progress.step += 1  # as after a resume inside an epoch
    list(train_one_epoch(told, BATCHES[2:], progress, 4, 2))
    assert progress.micro_batch == 4


def test_a_trial_of_compiling_that_does_not_fit_takes_fewer_images(monkeypatch):
    """Not "torch.compile does not work here". The trial has as many images as a micro-batch, and then half of them."""
    tried = []

    def narrow(graph, _inputs):
        def run(*arguments):
            images = next(argument for argument in arguments if argument.ndim == 4)
            tried.append(len(images))
            if len(images) > 3:
                raise RuntimeError("CUDA error: out of memory")
            return graph(*arguments)

        return run

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=narrow, dynamic=False))
    config = CfgNode({"TRAIN": {"COMPILE": True}, "DATA": {"IMG_SIZE": 8}})
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    found = compile_forward(config, context(model), micro_batch=6)
    torch.compiler.reset()
    assert tried == [6, 3]
    assert found.model is not model
