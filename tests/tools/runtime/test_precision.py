"""Precision: the choice, fp16's scaling and skipping, and apex on a stand-in (apex needs a GPU build)."""

import pytest
import torch
from apex_stand_in import install

from tools.base.errors import CheckpointError, NumericsError, UsageError
from tools.runtime.precision import ApexPrecision, NativePrecision, choose_precision
from tools.train.draws import Draws
from tools.train.loop import MAX_SKIPS, Progress, train_one_epoch
from tools.train.step import StepContext

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_the_choice_on_a_cpu():
    precision, notice = choose_precision("auto", "native", "auto", CPU)
    assert (str(precision), "on a CPU" in notice) == ("fp32", True)
    assert [str(choose_precision(level, "native", "auto", CPU)[0]) for level in ("O0", "O1", "O2")] == [
        "fp32",
        "bf16 autocast",
        "bf16 autocast",
    ]
    assert str(choose_precision("O1", "native", "fp16", CPU)[0]) == "fp16 autocast with GradScaler"


def test_the_choice_on_a_gpu(monkeypatch):
    for has_bf16, expected in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has_bf16, **_: has)
        assert str(choose_precision("auto", "native", "auto", GPU)[0]).startswith(expected)


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


def epoch_of(precision, criterion, batches=3, accumulation_steps=1):
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    before = model.weight.detach().clone()
    optimizer = torch.optim.SGD([{"params": list(model.parameters()), "lr_scale": 1.0}], lr=0.1)
    model, optimizer = precision.prepare(model, optimizer)
    progress = Progress(micro_batch=2)
    draws = Draws(lambda images, targets: (images, targets), None, 0)
    context = StepContext(model, criterion, optimizer, precision, CPU, lambda _s, _n: draws, lambda _step: 0.1, 2)
    loaded = [(torch.ones(2, 2), torch.ones(2, 1))] * batches
    updates = train_one_epoch(context, loaded, progress, batches, accumulation_steps)
    return model, before, progress, updates


def small_loss(logits, targets):
    """Whose gradients fit into fp16 at the first loss scale, 65536."""
    return torch.nn.functional.mse_loss(logits, targets) / 10


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


def test_fp32_on_a_gpu_uses_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # torch's default
    assert torch.get_float32_matmul_precision() == "highest"
    choose_precision("O0", "native", "auto", CPU)
    assert torch.get_float32_matmul_precision() == "highest"
    try:
        precision, note = choose_precision("O0", "native", "auto", GPU)
        assert (str(precision), "TF32" in note) == ("fp32", True)
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")


def test_apex_is_refused_where_it_cannot_work(monkeypatch):
    with pytest.raises(UsageError, match="amp not installed"):
        ApexPrecision("O1")
    install(monkeypatch)
    with pytest.raises(UsageError, match="GPU only"):
        choose_precision("O1", "apex", "auto", CPU)
    with pytest.raises(UsageError, match="one GPU only"):
        choose_precision("O1", "apex", "auto", GPU, world_size=2)
    assert str(choose_precision("auto", "apex", "auto", GPU)[0]) == "apex O1"


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("level", ["O1", "O2"])
def test_an_overflow_in_apex_is_skipped_counted_and_halves_the_scale(monkeypatch, level, fused):
    """In the first of two batches: apex skips the step, whatever the gradients look like afterwards."""
    install(monkeypatch, fused=fused)
    factors = iter([1e34, 1.0, 1.0, 1.0])
    precision = ApexPrecision(level)

    def criterion(logits, _targets):
        return (logits.float() * next(factors)).sum()

    model, before, progress, updates = epoch_of(precision, criterion, 4, accumulation_steps=2)
    next(updates)
    assert (progress.step, progress.skipped) == (1, 1)
    assert torch.equal(model.weight, before.to(model.weight.dtype))
    assert precision.state_dict()["loss_scaler0"] == {"loss_scale": 2.0**15, "unskipped": 1}
    next(updates)
    assert (progress.step, progress.skipped) == (2, 1)
    assert not torch.equal(model.weight, before.to(model.weight.dtype))


@pytest.mark.parametrize("level", ["O1", "O2"])
def test_an_attempt_that_runs_out_of_memory_in_apex_is_repeated(monkeypatch, level):
    """In the forward pass of the second of two batches, after apex has used the weights of the first layer."""
    install(monkeypatch)

    def weight_after(fails_at):
        calls = []

        def run_out(*_):
            calls.append(0)
            if len(calls) == fails_at:
                raise torch.OutOfMemoryError("CUDA out of memory")

        model, before, progress, updates = epoch_of(ApexPrecision(level), small_loss, 4, accumulation_steps=2)
        model.register_forward_hook(run_out)
        list(updates)
        assert (progress.micro_batch, progress.skipped) == (1 if fails_at else 2, 0)
        assert (model.weight - before).norm() > 0.01
        return model.weight.detach()

    torch.testing.assert_close(weight_after(2), weight_after(None), atol=1e-3, rtol=0)


def test_apex_refuses_the_state_of_another_precision(monkeypatch):
    install(monkeypatch)
    precision = ApexPrecision("O2")
    epoch_of(precision, small_loss)
    good = precision.state_dict()
    for state in ({}, NativePrecision("cpu", torch.float16).state_dict(), good | {"masters": good["masters"][:1]}):
        with pytest.raises(CheckpointError, match="no state of apex O2"):
            precision.load_state_dict(state)
    precision.load_state_dict(good)
    with pytest.raises(CheckpointError, match="AMP"):
        NativePrecision("cpu", None).load_state_dict(good)
