"""Test-time views against numpy's turns and flips, the mean over them, and what leaves a (fake) GPU meanwhile."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from data.loading.batches import Batch, Normalize, _constant
from tools.evaluate.inference import VIEWS, measure_throughput, predict
from tools.runtime.precision import NativePrecision

IMAGE = torch.arange(9.0).view(1, 1, 3, 3)
SQUARE = IMAGE[0, 0].numpy()


def views(name):
    return {tuple(view(IMAGE).flatten().tolist()) for view in VIEWS[name]}


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("none", [SQUARE]),
        ("flips", [SQUARE, np.fliplr(SQUARE), np.flipud(SQUARE), np.flipud(np.fliplr(SQUARE))]),
        ("turns", [np.rot90(SQUARE, k) for k in range(4)]),
        ("all", [np.rot90(side, k) for k in range(4) for side in (SQUARE, SQUARE.T)]),
    ],
)
def test_the_views_are_the_symmetries_of_the_square(name, wanted):
    assert views(name) == {tuple(np.ravel(view).tolist()) for view in wanted}
    assert len(VIEWS[name]) == len(wanted)


def test_logits_are_the_mean_over_views():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 2))
    batches = [(IMAGE, torch.tensor([[1.0, 0]]))]
    logits, _ = predict(model, batches, torch.device("cpu"), NativePrecision("cpu", None), 2, VIEWS["all"])
    with torch.no_grad():
        one_by_one = [model(torch.tensor([view]))[0] for view in views("all")]
    assert logits[0] == pytest.approx(torch.stack(one_by_one).mean(0).numpy(), abs=1e-6)


class ToHost(TorchDispatchMode):
    """Lists the operations that make this process wait for a GPU: copies to main memory and reads of one value."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        copied = function is torch.ops.aten._to_copy.default and args[0].is_cuda and result.device.type == "cpu"
        if copied or function is torch.ops.aten._local_scalar_dense.default:
            self.operations.append(function)
        return result


class Arrays(TorchFunctionMode):
    """Gives zeros for the arrays of fake tensors, and refuses those on a GPU as torch does."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.numpy:
            assert args[0].device.type == "cpu"
            return np.zeros(args[0].shape, np.float32)
        return function(*args, **kwargs or {})


def test_results_leave_a_gpu_once_and_together():
    """Six batches as the loader gives them, in micro-batches; without a real GPU, the tensors have no values."""
    finish, device = Normalize((0.5,) * 3, (0.5,) * 3), torch.device("cuda")
    _constant.cache_clear()
    with FakeTensorMode(), ToHost() as waits, Arrays():
        with device:
            model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(27, 2))
        pixels, boxes = torch.zeros(5, 3, 3, 3, dtype=torch.uint8), torch.zeros(0, 5, dtype=torch.int64)
        batch = Batch(pixels, torch.zeros(5, 2), boxes, torch.zeros(0))
        batches = (finish(batch, device) for _ in range(6))
        logits, truth = predict(model, batches, device, NativePrecision("cuda", None), 2, VIEWS["all"], micro_batch=2)
    _constant.cache_clear()
    assert logits.shape == truth.shape == (30, 2)
    assert len(waits.operations) == 2  # all logits and all targets


def test_throughput_is_that_of_queued_passes_and_latency_that_of_single_ones(monkeypatch):
    """On a fake GPU: how many passes there are before each time the process waits for it."""
    passes = [0]
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: passes.append(0))

    def forward(images):
        passes[-1] += 1
        return images

    forward.eval = lambda: None
    with FakeTensorMode():
        speed = measure_throughput(forward, torch.zeros(2, 3, device="cuda"), NativePrecision("cuda", None))
    assert passes == [*[1] * 50, *[1] * 30, 30, 0]
    assert 0 < speed["p50_seconds"] <= speed["p95_seconds"]
    assert speed["images_per_second"] > 0
