"""Precision: the choice, fp16's scaling and skipping, and the calls of apex on a stand-in (apex needs a GPU build)."""

import sys
import types
from contextlib import contextmanager

import pytest
import torch

from tools.base.errors import CheckpointError, NumericsError, UsageError
from tools.runtime.precision import ApexPrecision, NativePrecision, choose_precision
from tools.train.draws import Draws
from tools.train.loop import MAX_SKIPS, Progress, train_one_epoch
from tools.train.step import StepContext

CPU = torch.device("cpu")


def test_the_choice_on_a_cpu():
    precision, notice = choose_precision("auto", "native", "auto", CPU)
    assert (str(precision), "no GPU" in notice) == ("fp32", True)
    assert [str(choose_precision(level, "native", "auto", CPU)[0]) for level in ("O0", "O1", "O2")] == [
        "fp32",
        "bf16 autocast",
        "bf16 autocast",
    ]
    assert str(choose_precision("O1", "native", "fp16", CPU)[0]) == "fp16 autocast with GradScaler"


def test_the_choice_on_a_gpu(monkeypatch):
    for has_bf16, expected in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has_bf16, **_: has)
        assert str(choose_precision("auto", "native", "auto", torch.device("cuda"))[0]).startswith(expected)


def test_clipping_acts_on_the_update_and_reports_the_norm_before_it():
    for dtype in (None, torch.float16):
        weight = torch.nn.Parameter(torch.zeros(2))
        optimizer = torch.optim.SGD([weight], lr=1.0)
        precision = NativePrecision("cpu", dtype)
        precision.backward((weight * torch.tensor([3.0, 4.0])).sum(), optimizer)
        norm = precision.norm(optimizer)
        precision.clip(optimizer, 1.0, norm)
        precision.step(optimizer)
        assert float(norm) == pytest.approx(5.0)
        torch.testing.assert_close(weight.data, torch.tensor([-0.6, -0.8]))


def epoch_of(precision, criterion, steps=3):
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD([{"params": list(model.parameters()), "lr_scale": 1.0}], lr=0.1)
    batches = [(torch.ones(2, 2), torch.ones(2, 1))] * steps
    progress = Progress(micro_batch=2)
    draws = Draws(lambda images, targets: (images, targets), None, 0)
    before = model.weight.detach().clone()
    context = StepContext(model, criterion, optimizer, precision, CPU, lambda _s, _n: draws, lambda _step: 0.1, 2)
    updates = train_one_epoch(context, batches, progress, steps, 1)
    return model, before, progress, updates


def test_an_overflow_is_skipped_counted_and_halves_the_scale():
    """fp16 gradients overflow at scale 65536 when the loss is large: the step is skipped and the scale halved."""
    precision = NativePrecision("cpu", torch.float16)
    model, before, progress, updates = epoch_of(precision, lambda logits, _t: (logits.float() * 1e34).sum())
    next(updates)
    assert (progress.step, progress.skipped) == (1, 1)
    assert torch.equal(model.weight, before)
    assert precision.scaler.get_scale() == 32768


def test_endless_overflow_is_an_error():
    *_, updates = epoch_of(
        NativePrecision("cpu", torch.float16), lambda logits, _t: (logits.float() * 1e38).sum(), MAX_SKIPS + 5
    )
    with pytest.raises(NumericsError, match="in a row"):
        list(updates)


@pytest.mark.parametrize(
    ("criterion", "what"),
    [
        (lambda logits, _t: logits.sum() * float("nan"), "loss of step 0"),
        (lambda logits, _t: (logits - logits.detach()).abs().sqrt().sum(), "gradient of step 0"),
    ],
)
def test_a_non_finite_value_never_reaches_the_weights(criterion, what):
    model, before, _, updates = epoch_of(NativePrecision("cpu", None), criterion)
    with pytest.raises(NumericsError, match=what):
        list(updates)
    assert torch.equal(model.weight, before)


def test_a_scaler_state_needs_a_scaler():
    scaled, plain = NativePrecision("cpu", torch.float16), NativePrecision("cpu", None)
    scaled.scaler.scale(torch.zeros(1))
    with pytest.raises(CheckpointError, match="AMP"):
        plain.load_state_dict(scaled.state_dict())
    scaled.load_state_dict({**scaled.state_dict(), "scale": 1024.0})
    assert scaled.scaler.get_scale() == 1024


def test_apex_missing_or_on_a_cpu():
    with pytest.raises(UsageError, match="amp not installed"):
        ApexPrecision("O1")


def test_apex_is_called_in_its_documented_order(monkeypatch):
    calls = []

    @contextmanager
    def scale_loss(loss, optimizer):
        calls.append("scale_loss")
        yield loss * 8
        for p in master_params(optimizer):
            p.grad /= 8

    def initialize(model, optimizer, opt_level):
        calls.append(opt_level)
        return model, optimizer

    def master_params(optimizer):
        for group in optimizer.param_groups:
            yield from group["params"]

    amp = types.SimpleNamespace(
        initialize=initialize,
        scale_loss=scale_loss,
        master_params=master_params,
        state_dict=lambda: {"loss_scaler0": {"loss_scale": 8.0}},
        load_state_dict=calls.append,
    )
    monkeypatch.setitem(sys.modules, "apex", types.ModuleType("apex"))
    monkeypatch.setitem(sys.modules, "apex.amp", amp)
    with pytest.raises(UsageError, match="GPU only"):
        choose_precision("O1", "apex", "auto", CPU)
    precision, _ = choose_precision("O2", "apex", "auto", torch.device("cuda"))
    weight = torch.nn.Parameter(torch.zeros(2))
    model, optimizer = precision.prepare(torch.nn.Identity(), torch.optim.SGD([weight], lr=1.0))
    with precision.autocast():
        loss = (weight * torch.tensor([3.0, 4.0])).sum()
    precision.backward(loss, optimizer)
    norm = precision.norm(optimizer)
    precision.clip(optimizer, 1.0, norm)
    precision.step(optimizer)
    assert float(norm) == pytest.approx(5.0)
    torch.testing.assert_close(weight.data, torch.tensor([-0.6, -0.8]))
    precision.load_state_dict(precision.state_dict())
    assert calls == ["O2", "scale_loss", {"loss_scaler0": {"loss_scale": 8.0}}]
    assert isinstance(model, torch.nn.Identity)
