"""Whole updates on fake CUDA tensors: no operation mixes devices, and the host waits for the GPU once per update."""

import pytest
import torch
from fake_cuda import CUDA, backward, fake_gpu, to_gpu
from torch import nn

from data.loading.batches import Batch, Normalize
from data.loading.mixup import Mixer
from models.swin_transformer import SwinTransformer
from tools.runtime.precision import NativePrecision
from tools.train.draws import batch_draws
from tools.train.ema import ModelEma
from tools.train.losses import build_criterion, class_weights
from tools.train.optim import build_optimizer, parameter_groups, set_train_mode
from tools.train.step import StepContext, train_step

SIDE, BATCH, STEPS = 56, 4, 2
MODES = {"plain": {}, "selective": {"selective_checkpoint": True}, "checkpoint": {"use_checkpoint": True}}


class Net(nn.Module):
    """A convolution and batch norm before a small Swin, so that both kinds of models are in one."""

    def __init__(self, **mode):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3))
        sizes = {"depths": (2, 1), "num_heads": (3, 6), "embed_dim": 24, "window_size": 7, "drop_path_rate": 0.3}
        self.swin = SwinTransformer(num_classes=6, img_size=SIDE, drop_rate=0.1, **sizes, **mode)

    def forward(self, images, keep=None):
        return self.swin(self.stem(images), keep)


def host_batch():
    """What a loader gives: bytes, targets, one patch of random erasing."""
    boxes, noise = torch.tensor([[1, 3, 4, 5, 6]]), torch.randn(3 * 5 * 6)
    return Batch(torch.zeros(BATCH, 3, SIDE, SIDE, dtype=torch.uint8), torch.ones(BATCH, 6), boxes, noise)


def run_updates(waits, mode, dtype, accumulation_steps=2, micro_batch=BATCH):
    """Two updates with everything on; the waits of each."""
    model = Net(**MODES[mode])
    sizes = {"batch_size": BATCH, "accumulation_steps": accumulation_steps, "rank": 0, "world_size": 1, "seed": 0}
    draw = batch_draws(Mixer(mixup=0.8, cutmix=1.0), model.swin, img_size=SIDE, **sizes)
    model = to_gpu(model)
    set_train_mode(model)
    groups = parameter_groups(model, weight_decay=0.05)
    optimizer = build_optimizer(groups, "adamw", lr=1e-3, eps=1e-8, betas=(0.9, 0.999), momentum=0.9)
    assert optimizer.defaults["fused"]
    criterion = build_criterion("asymmetric", "multi", smoothing=0.1, weights=class_weights([1] * 6).to(CUDA))
    to_device, precision = Normalize((0.5, 0.5, 0.5), (0.2, 0.2, 0.2)), NativePrecision("cuda", dtype)
    more = {"batch_size": BATCH, "clip_grad": 0.5, "to_device": to_device}
    context = StepContext(model, criterion, optimizer, precision, CUDA, draw, lambda _step: 1e-3, **more)
    ema, counts = ModelEma(model, 0.99), []
    for step in range(STEPS):
        waits.clear()
        batches = iter([host_batch() for _ in range(accumulation_steps)])
        result = train_step(context, batches, accumulation_steps, step, micro_batch)
        ema.update(step + 1)
        counts.append(list(waits))
        assert result.images == BATCH * accumulation_steps
    assert all(p.grad is None for p in model.parameters()), "applied"
    assert all(state["exp_avg"].device == CUDA for state in optimizer.state.values())
    return counts


@pytest.mark.parametrize(
    ("mode", "dtype"), [*((mode, torch.bfloat16) for mode in MODES), ("plain", None), ("selective", torch.float16)]
)
def test_an_update_waits_for_the_gpu_once(monkeypatch, mode, dtype):
    with fake_gpu(monkeypatch) as waits:
        first, *others = run_updates(waits, mode, dtype)
    assert others == [["tolist"]] * (STEPS - 1), "loss and norm together"
    assert first[-1] == "tolist"


def test_the_walk_over_the_graph_gives_the_gradients_of_the_engine():
    torch.manual_seed(0)
    model, images = Net(selective_checkpoint=True).train(), torch.randn(2, 3, SIDE, SIDE)
    grads = []
    for run in (torch.Tensor.backward, backward):
        torch.manual_seed(1)
        model.zero_grad()
        run((model(images) ** 2).sum())
        grads.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(grads[1], grads[0])


def test_a_tensor_on_the_wrong_device_is_found(monkeypatch):
    """The test of the stand-in itself."""
    with fake_gpu(monkeypatch) as waits:
        on_gpu = torch.zeros(3, device=CUDA)
        with pytest.raises(RuntimeError, match="device"):
            on_gpu + torch.ones(3)
        assert waits == []
        assert on_gpu.sum().item() == 1
        on_gpu.copy_(torch.ones(3))
        on_gpu.copy_(torch.ones(3), non_blocking=True)
        torch.tensor([1.0, 2.0], device=CUDA)
        assert len(waits) == 3
