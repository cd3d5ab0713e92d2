"""Mixed precision behind one interface: fp32, native bf16 or fp16, or NVIDIA apex.

with precision.autocast():
    loss = ...
precision.backward(loss, optimizer)
norm = precision.norm(optimizer)
precision.clip(optimizer, clip_grad, norm)
precision.step(optimizer)
"""

import contextlib
import importlib

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tools.base.errors import CheckpointError, UsageError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class NativePrecision:
    """torch.amp: fp32 for `dtype` None, else autocast, with a GradScaler for fp16."""

    def __init__(self, device_type: str, dtype: torch.dtype | None):
        self.device_type, self.dtype = device_type, dtype
        self.scaler = torch.amp.GradScaler(device_type, enabled=dtype is torch.float16)

    def __str__(self) -> str:
        names = {None: "fp32", torch.bfloat16: "bf16 autocast", torch.float16: "fp16 autocast with GradScaler"}
        return names[self.dtype]

    @property
    def may_skip(self) -> bool:
        """Whether a non-finite gradient may be an overflow, which the scaler answers by skipping the update."""
        return self.scaler.is_enabled()

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
        """Model and optimizer as they are: autocast does not change them."""
        return model, optimizer

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context of the forward pass."""
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.dtype is not None)

    def backward(self, loss: Tensor, _optimizer: Optimizer) -> None:
        """Adds the (scaled) gradients of `loss`."""
        self.scaler.scale(loss).backward()

    def norm(self, optimizer: Optimizer) -> Tensor:
        """The L2 norm of all gradients together, a scalar on their device; unscales them first."""
        self.scaler.unscale_(optimizer)
        return nn.utils.get_total_norm([p.grad for p in trainable(optimizer) if p.grad is not None])

    def clip(self, optimizer: Optimizer, clip_grad: float, norm: Tensor) -> None:
        """Scales gradients, whose norm is `norm`, down to the norm `clip_grad`."""
        nn.utils.clip_grads_with_norm_(trainable(optimizer), clip_grad, norm)

    def step(self, optimizer: Optimizer) -> None:
        """Updates the weights; the scaler skips that after an overflow."""
        self.scaler.step(optimizer)
        self.scaler.update()

    def state_dict(self) -> dict:
        """The state of the scaler; empty without one."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Restores `state_dict`. Raises CheckpointError when only the saved or only the present run scales its loss."""
        if bool(state) != self.may_skip:
            raise CheckpointError("the checkpoint was made with another AMP setting; resume with the same AMP.DTYPE")
        if state:
            same_keys = state.keys() == self.scaler.state_dict().keys()
            if not same_keys or not all(isinstance(value, int | float) for value in state.values()):
                raise CheckpointError("the loss scaler in the checkpoint is not torch's GradScaler")
            self.scaler.load_state_dict(state)


class ApexPrecision(NativePrecision):
    """The amp of NVIDIA apex (tag 25.05), opt levels O1 and O2, on one GPU; torch's autocast and GradScaler are off.

    Apex patches the optimizer, whose step it skips after an overflow, and torch's functions (O1) or the model (O2). The
    model of O2 has fp16 weights. The optimizer updates fp32 copies of them, the master weights.
    """

    may_skip = True

    def __init__(self, opt_level: str):
        super().__init__("cuda", None)
        try:
            self.amp = importlib.import_module("apex.amp")
        except ImportError:
            raise UsageError(
                "amp not installed: AMP.BACKEND apex needs NVIDIA apex (build its tag 25.05; `apex` on the package "
                "index is another program); install it, or leave AMP.BACKEND native"
            ) from None
        self.opt_level, self._overflow = opt_level, False
        self._masters: list[Tensor] = []

    def __str__(self) -> str:
        return f"apex {self.opt_level}"

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
        model, optimizer = self.amp.initialize(model, optimizer, opt_level=self.opt_level, verbosity=0)
        optimizer.zero_grad()  # makes the master weights: a restored optimizer state takes the type of its parameters
        vars(optimizer).pop("zero_grad", None)  # apex's has no set_to_none; torch's is right for master weights too
        if self.opt_level == "O2":
            self._masters = trainable(optimizer)
        else:  # its cache of fp16 weights fails when an attempt is repeated or checkpointing recomputes a layer
            self.amp._amp_state.handle._enable_caching = False
        return model, optimizer

    def backward(self, loss: Tensor, optimizer: Optimizer) -> None:
        scale = self._scale()
        with self.amp.scale_loss(loss, optimizer) as scaled:
            scaled.backward()
        self._overflow |= self._scale() < scale

    def norm(self, optimizer: Optimizer) -> Tensor:
        norm = super().norm(optimizer)  # without apex's CUDA kernels, it may be finite after an overflow
        return norm.fill_(torch.inf) if self._overflow else norm

    def step(self, optimizer: Optimizer) -> None:
        super().step(optimizer)
        self._overflow = False

    def state_dict(self) -> dict:
        """The state of the loss scaler, and the master weights of O2."""
        return {**self.amp.state_dict(), "masters": [weight.detach() for weight in self._masters]}

    def load_state_dict(self, state: dict) -> None:
        scaler, masters = state.get("loss_scaler0"), state.get("masters", [])
        if not scaler or [weight.shape for weight in masters] != [weight.shape for weight in self._masters]:
            raise CheckpointError(f"the checkpoint has no state of {self}; resume with the AMP settings of its run")
        self.amp.load_state_dict({"loss_scaler0": scaler})
        for weight, stored in zip(self._masters, masters, strict=True):
            weight.data.copy_(stored)

    def _scale(self) -> float:
        return self.amp.state_dict()["loss_scaler0"]["loss_scale"]


Precision = NativePrecision | ApexPrecision


def choose_precision(
    opt_level: str, backend: str, dtype: str, device: torch.device, world_size: int = 1
) -> tuple[Precision, str]:
    """The precision for the AMP settings on this device, and a note for the user (or an empty string).

    `auto` means mixed precision on a GPU and fp32 on a CPU. For O0 on a GPU, sets torch's flag for matrix products in
    TF32 (10 bits of fraction); convolutions use TF32 by torch's default. Equal inputs still give equal bits.

    Raises:
        UsageError: when the settings want apex and it cannot be used.
    """
    if opt_level == "auto" and device.type == "cpu":
        note = "on a CPU: training in fp32 (--amp-opt-level O1 turns mixed precision on)"
        return NativePrecision("cpu", None), note
    if opt_level == "O0":
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")
            return NativePrecision(device.type, None), "fp32 on a GPU: products are in TF32 where the GPU has it"
        return NativePrecision(device.type, None), ""
    if backend == "apex":
        precision = ApexPrecision("O1" if opt_level == "auto" else opt_level)
        if device.type != "cuda":
            raise UsageError("AMP.BACKEND apex works on a GPU only; leave AMP.BACKEND native")
        if world_size > 1:  # each rank would look for overflows in its own gradients, and skip the update alone
            raise UsageError("AMP.BACKEND apex trains on one GPU only; start one process, or leave AMP.BACKEND native")
        return precision, ""
    if dtype == "auto":
        dtype = "bf16" if device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return NativePrecision(device.type, DTYPES[dtype]), ""


def trainable(optimizer: Optimizer) -> list[Tensor]:
    """All parameters that the optimizer updates."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
