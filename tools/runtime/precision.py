"""Mixed precision behind one small interface: fp32, native bf16 or fp16, or NVIDIA apex.

with precision.autocast():
    loss = ...
precision.backward(loss, optimizer)
norm = precision.norm(optimizer)
precision.clip(optimizer, clip_grad, norm)
precision.step(optimizer)
"""

import contextlib
import importlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tools.base.errors import CheckpointError, UsageError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class NativePrecision:
    """torch.amp. `dtype` None is plain fp32; fp16 gets a GradScaler, the others do not need one."""

    def __init__(self, device_type: str, dtype: torch.dtype | None):
        self.device_type, self.dtype = device_type, dtype
        self.scaler = torch.amp.GradScaler(device_type, enabled=dtype is torch.float16)

    def __str__(self) -> str:
        return {None: "fp32", torch.bfloat16: "bf16 autocast", torch.float16: "fp16 autocast with GradScaler"}[
            self.dtype
        ]

    @property
    def may_skip(self) -> bool:
        """Whether a non-finite gradient is an overflow that the scaler answers by skipping, not a fault."""
        return self.scaler.is_enabled()

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Nothing to do: autocast leaves model and optimizer as they are."""
        return model, optimizer

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context of the forward pass."""
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.dtype is not None)

    def backward(self, loss: Tensor, _optimizer: torch.optim.Optimizer) -> None:
        """Adds the (scaled) gradients of `loss`."""
        self.scaler.scale(loss).backward()

    def norm(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """Unscales the gradients; their norm."""
        self.scaler.unscale_(optimizer)
        return norm_of(trainable(optimizer))

    def clip(self, optimizer: torch.optim.Optimizer, clip_grad: float, norm: Tensor) -> None:
        """Scales gradients of the norm `norm` down to `clip_grad`."""
        nn.utils.clip_grads_with_norm_(trainable(optimizer), clip_grad, norm)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Applies the gradients; a scaler skips them when they overflowed."""
        self.scaler.step(optimizer)
        self.scaler.update()

    def state_dict(self) -> dict:
        """The scaler's state; empty without one."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Restores `state_dict`. Raises CheckpointError when one run scaled its loss and the other does not."""
        if bool(state) != self.may_skip:
            raise CheckpointError("the checkpoint was made with another AMP setting; resume with the same AMP.DTYPE")
        if state:
            if state.keys() != self.scaler.state_dict().keys() or not all(
                isinstance(v, int | float) for v in state.values()
            ):
                raise CheckpointError("the state of the checkpoint's loss scaler is not that of torch's GradScaler")
            self.scaler.load_state_dict(state)


class ApexPrecision:
    """NVIDIA apex's amp, opt levels O1 and O2."""

    may_skip = True

    def __init__(self, opt_level: str):
        try:
            self.amp = importlib.import_module("apex.amp")
        except ImportError:
            raise UsageError(
                "amp not installed: AMP.BACKEND apex needs NVIDIA apex (build its tag 25.05; the apex on "
                "the package index is something else), or leave AMP.BACKEND native"
            ) from None
        self.opt_level = opt_level

    def __str__(self) -> str:
        return f"apex {self.opt_level}"

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Lets apex patch both."""
        return self.amp.initialize(model, optimizer, opt_level=self.opt_level)

    def autocast(self) -> contextlib.AbstractContextManager:
        """apex has patched the functions themselves."""
        return contextlib.nullcontext()

    def backward(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Adds the scaled gradients of `loss`."""
        with self.amp.scale_loss(loss, optimizer) as scaled:
            scaled.backward()

    def norm(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """The norm of apex's master gradients, which are not scaled."""
        return norm_of(self.amp.master_params(optimizer))

    def clip(self, optimizer: torch.optim.Optimizer, clip_grad: float, norm: Tensor) -> None:
        """Scales master gradients of the norm `norm` down to `clip_grad`."""
        nn.utils.clip_grads_with_norm_(list(self.amp.master_params(optimizer)), clip_grad, norm)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Applies the gradients; apex itself skips after an overflow."""
        optimizer.step()

    def state_dict(self) -> dict:
        """apex's loss scalers."""
        return self.amp.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Restores `state_dict`."""
        self.amp.load_state_dict(state)


def norm_of(parameters: Iterable[Tensor]) -> Tensor:
    """The norm of all gradients together, a scalar on their device."""
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def choose_precision(opt_level: str, backend: str, dtype: str, device: torch.device):
    """The precision of the AMP settings on this device, and a note for the user (or an empty string).

    Not asked for (`auto`), mixed precision is used on a GPU and left out on a CPU.

    Raises:
        UsageError: when apex is asked for and cannot be used.
    """
    if opt_level == "auto" and device.type == "cpu":
        return NativePrecision(
            "cpu", None
        ), "no GPU: training in fp32 (ask for mixed precision with --amp-opt-level O1)"
    if opt_level == "O0":
        return NativePrecision(device.type, None), ""
    if backend == "apex":
        precision = ApexPrecision("O1" if opt_level == "auto" else opt_level)
        if device.type != "cuda":
            raise UsageError("AMP.BACKEND apex works on a GPU only; leave AMP.BACKEND native")
        return precision, ""
    if dtype == "auto":
        dtype = "bf16" if device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return NativePrecision(device.type, DTYPES[dtype]), ""


def trainable(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All parameters the optimizer moves."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
