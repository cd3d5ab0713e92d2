"""`apex.amp` of NVIDIA apex, tag 25.05, for CPU tensors: what our training loop can see of it.

Written from the tag's apex/amp/{_initialize,_process_optimizer,handle,scaler,wrap}.py; the comments name what is easily
got wrong. Real apex needs a GPU, and its CUDA kernels are optional (`fused`): without them, gradients after an overflow
are left as they are.
"""

import sys
from contextlib import contextmanager
from types import MethodType, ModuleType, SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F

HALF_FUNCTIONS, FLOAT_FUNCTIONS = ("linear", "conv2d"), ("layer_norm", "gelu", "softmax", "log_softmax")


def install(monkeypatch, *, fused: bool = True) -> "Amp":
    """Makes `import apex.amp` give a new stand-in until the test ends."""
    amp = Amp(monkeypatch, fused)
    monkeypatch.setitem(sys.modules, "apex", ModuleType("apex"))
    monkeypatch.setitem(sys.modules, "apex.amp", amp)
    return amp


class Amp:
    """The functions of the module `apex.amp`, with its global state."""

    def __init__(self, monkeypatch, fused: bool):
        self.monkeypatch, self.fused, self.cache = monkeypatch, fused, {}
        self._amp_state = SimpleNamespace()

    def initialize(self, model, optimizer, opt_level="O1", verbosity=1):  # noqa: ARG002  (it prints nothing)
        self.level, self.scale, self.unskipped, self.skips = opt_level, 2.0**16, 0, False
        if opt_level == "O1":
            self._amp_state.handle = SimpleNamespace(_enable_caching=True)
            self._patch_functions()
        else:
            _to_half(model)
            optimizer.load_state_dict(optimizer.state_dict())
        self.half, self.masters = [], []  # pairs of fp16 weights and their fp32 copies
        self.plain = None  # fp32 parameters of the model; None until the first zero_grad or backward
        if opt_level == "O2":
            self._patch_optimizer(optimizer)
        return model, optimizer

    @contextmanager
    def scale_loss(self, loss, optimizer):
        self._make_masters(optimizer)
        for weight in self.half:
            weight.grad = None
        earlier = [parameter.grad for parameter in self.plain]  # of the micro-batches before
        for parameter in self.plain:
            parameter.grad = None
        yield loss.float() * self.scale  # an exception in the block skips everything below
        sources = [*self.half, *self.plain]
        targets = [*self.masters, *self.plain]
        before = [*(master.grad for master in self.masters), *earlier]
        if self._unscale(sources, targets, before):
            self.scale, self.unskipped = self.scale / 2, 0
            if not self.skips:  # the next step only puts the real one back
                self.skips, step = True, optimizer.step
                optimizer.step = lambda: self._skip(optimizer, step)
        else:
            self.unskipped += 1
            if self.unskipped == 2000:
                self.scale, self.unskipped = min(2.0**24, self.scale * 2), 0
        self.cache.clear()

    def master_params(self, optimizer):
        for group in optimizer.param_groups:
            yield from group["params"]

    def state_dict(self):
        return {"loss_scaler0": {"loss_scale": self.scale, "unskipped": self.unskipped}}

    def load_state_dict(self, state):
        assert list(state) == ["loss_scaler0"]  # apex raises RuntimeError for other keys
        self.scale, self.unskipped = (state["loss_scaler0"][key] for key in ("loss_scale", "unskipped"))

    def _unscale(self, sources, targets, before) -> bool:
        """Adds unscaled gradients to those before; whether one overflowed."""
        overflow = False
        for source, target, old in zip(sources, targets, before, strict=True):
            if source.grad is None:
                target.grad = old
                continue
            if target is not source and old is None:
                target.grad = torch.full_like(target, 0.5)  # apex: uninitialised memory
            bad = not source.grad.float().isfinite().all()
            overflow |= bad
            if (bad or overflow) and not self.fused:
                continue  # gradients from the first overflow on stay as they are
            unscaled = source.grad.float() / self.scale
            target.grad = unscaled if old is None else unscaled + old
        return overflow

    def _skip(self, optimizer, step) -> None:
        for master in self.masters:
            master.grad = None
        optimizer.step, self.skips = step, False

    def _make_masters(self, optimizer) -> None:
        """At the first use, not in initialize: puts fp32 copies into the optimizer in place of fp16 parameters."""
        if self.plain is not None:
            return
        self.plain = []
        for group in optimizer.param_groups:
            for place, parameter in enumerate(group["params"]):
                if parameter.dtype is torch.float16:
                    master = parameter.detach().clone().float().requires_grad_()
                    group["params"][place] = master
                    if parameter in optimizer.state:
                        optimizer.state[master] = optimizer.state.pop(parameter)
                    self.half.append(parameter)
                    self.masters.append(master)
                else:
                    self.plain.append(parameter)
        optimizer.load_state_dict(optimizer.state_dict())  # a state in fp16 becomes fp32 again, rounded

    def _patch_optimizer(self, optimizer) -> None:
        old_step = optimizer.step

        def step(_optimizer):
            old_step()
            for weight, master in zip(self.half, self.masters, strict=True):
                weight.data.copy_(master.data)
                master.grad = None

        def zero_grad(optimizer):  # apex's takes no set_to_none
            self._make_masters(optimizer)
            for parameter in (*self.half, *self.plain):
                if parameter.grad is not None:
                    parameter.grad.detach_().zero_()
            for master in self.masters:
                master.grad = None

        optimizer.step, optimizer.zero_grad = MethodType(step, optimizer), MethodType(zero_grad, optimizer)

    def _patch_functions(self) -> None:
        for name in (*HALF_FUNCTIONS, *FLOAT_FUNCTIONS):
            cast = self._half if name in HALF_FUNCTIONS else _float
            self.monkeypatch.setattr(F, name, _casting(getattr(F, name), cast))

    def _half(self, value):
        """fp16, kept for parameters until the end of scale_loss; what evaluation kept is of no use to training."""
        if not (isinstance(value, nn.Parameter) and self._amp_state.handle._enable_caching):
            return value.half()
        kept = self.cache.get(value)
        if kept is not None and kept.requires_grad and value.requires_grad:
            raise IndexError("tuple index out of range")  # apex: grad_fn.next_functions[1], of which torch 2 has one
        if kept is None or (torch.is_grad_enabled() and kept.requires_grad != value.requires_grad):
            kept = self.cache[value] = value.half()
        return kept


def _float(value):
    return value.float()


def _casting(function, cast):
    def cast_one(value):
        return cast(value) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    def wrapper(*args, **kwargs):
        return function(*map(cast_one, args), **{key: cast_one(value) for key, value in kwargs.items()})

    return wrapper


def _to_half(model) -> None:
    """fp16 parameters and buffers but for batch norm's; inputs become fp16, outputs fp32, `state_dict` fp32 copies."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            continue
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.is_floating_point():
                tensor.data = tensor.data.half()
    old_forward = model.forward  # bound to this model: a deep copy of the model still calls it here
    half = _casting(old_forward, torch.Tensor.half)
    model.forward = lambda *args, **kwargs: half(*args, **kwargs).float()
    for module in model.modules():
        module._register_state_dict_hook(_floats)


def _floats(_module, state, _prefix, _metadata) -> None:
    for key, value in state.items():
        if value.dtype is torch.float16:
            state[key] = value.float()
