"""Parameter groups and the optimizer."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import nn

from tools.base.errors import CheckpointError, UsageError, nearest
from tools.runtime.precision import trainable


def freeze(model: nn.Module, prefixes: Iterable[str]) -> None:
    """Freezes the modules and parameters named in `prefixes`.

    `set_train_mode` keeps frozen modules in eval mode, so batch norm statistics and dropout do not change either.

    Raises:
        UsageError: for a name that the model does not have.
    """
    for prefix in prefixes:
        hits = [p for name, p in model.named_parameters() if name == prefix or name.startswith(prefix + ".")]
        if not hits:
            modules = [name for name, _ in model.named_modules() if name]
            raise UsageError(f"TRAIN.FREEZE {prefix!r}: the model has no such part{nearest(prefix, modules)}")
        for parameter in hits:
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise UsageError("TRAIN.FREEZE leaves nothing to train")


def set_train_mode(model: nn.Module) -> None:
    """`model.train()`, but modules whose parameters are all frozen stay in eval mode."""
    model.train()
    for module in model.modules():
        own = list(module.parameters())
        if own and not any(p.requires_grad for p in own):
            module.eval()


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    no_decay: Iterable[str] = (),
    heads: Sequence[str] = ("head",),
    head_scale: float = 1.0,
    layer_decay: float = 1.0,
    layer_index: Callable[[str], int] | None = None,
) -> list[dict]:
    """Groups of trainable parameters that share `weight_decay` and `lr_scale` (a factor on the scheduled rate).

    No decay for 1-D parameters, biases and names that end in one of `no_decay`.

    Args:
        heads: names of the layers that give the logits; their rate is multiplied by `head_scale`.
        layer_decay: a parameter d layers below the head gets this to the power of d.
        layer_index: name -> layer, 0 the first; needed when `layer_decay` is not 1.
    """
    depth = max(layer_index(name) for name, _ in model.named_parameters()) if layer_index else 0
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim <= 1 or name.endswith((".bias", *no_decay))
        scale = layer_decay ** (depth - layer_index(name)) if layer_index else 1.0
        scale *= head_scale if name.startswith(tuple(f"{head}." for head in heads)) else 1.0
        key = (0.0 if plain else weight_decay, scale)
        group = groups.setdefault(key, {"params": [], "names": [], "weight_decay": key[0], "lr_scale": scale})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def build_optimizer(
    groups: list[dict], name: str, *, lr: float, eps: float, betas: tuple[float, float], momentum: float
) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum. `lr` is replaced at every step.

    Uses torch's fused kernel where the device has one, CPUs included, and torch's default elsewhere.
    """
    make: Callable[..., torch.optim.Optimizer]
    if name == "adamw":
        make = partial(torch.optim.AdamW, groups, lr=lr, eps=eps, betas=(betas[0], betas[1]))
    else:
        make = partial(torch.optim.SGD, groups, lr=lr, momentum=momentum, nesterov=momentum > 0)
    try:
        return make(fused=True)
    except RuntimeError:  # the device has no fused kernel
        return make()


def restore_state(optimizer: torch.optim.Optimizer, stored: dict, where: str, *, moved: bool) -> None:
    """Loads the state of an optimizer's `state_dict` by parameter name.

    Learning rates, decay and betas stay those of `optimizer`: the config may have been changed on purpose.

    Args:
        moved: whether steps were made; the state must then not be empty.

    Raises:
        CheckpointError: for the state of other parameters or of another kind of optimizer.
    """
    names = [name for group in optimizer.param_groups for name in group["names"]]
    numbers = {n: i for group in stored["param_groups"] for n, i in zip(group["names"], group["params"], strict=False)}
    if set(names) != set(numbers):
        raise CheckpointError(f"{where}: the optimizer state belongs to other parameters; was TRAIN.FREEZE changed?")
    wanted = _state_names(optimizer)
    state = {}
    for place, (name, parameter) in enumerate(zip(names, trainable(optimizer), strict=True)):
        part = stored["state"].get(numbers[name])
        if part is None:  # it never had a gradient
            continue
        shapes = {key: () if key == "step" else parameter.shape for key in wanted}
        if {key: tuple(value.shape) for key, value in part.items()} != shapes:
            raise CheckpointError(f"{where}: the optimizer state of {name} does not fit this optimizer")
        state[place] = part
    if moved and wanted and not state:
        raise CheckpointError(f"{where}: the optimizer state is empty after updates were made")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _state_names(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """Names of the state that the optimizer keeps per parameter."""
    if isinstance(optimizer, torch.optim.AdamW):
        return "step", "exp_avg", "exp_avg_sq"
    return ("momentum_buffer",) if optimizer.defaults["momentum"] else ()


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate of every group to `lr` times its `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
