"""A stand-in for a GPU: tensors on `cuda` without values, through the program's real code.

torch's FakeTensorMode knows shape, dtype and device of every result, and refuses operations that mix devices. Tensors
on the CPU stay real. torch's autograd engine needs a driver even for fake tensors, so `backward` here walks the graph
of autograd itself and calls each node; every formula of the backward pass runs.
"""

import contextlib
from collections import defaultdict

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

CUDA = torch.device("cuda", 0)


class _Watch(TorchDispatchMode):
    """Computes on the CPU for real, and records in `waits` the operations of the GPU for which the host waits."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        values, _ = tree_flatten((args, kwargs))
        devices = {v.device.type for v in values if isinstance(v, torch.Tensor)}
        devices |= {v.type for v in values if isinstance(v, torch.device)}
        if "cuda" not in devices:
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense":
            self.waits.append(name)
            return 1.0
        asynchronous = kwargs.get("non_blocking") or (name == "copy_" and True in args[2:])
        if name in ("copy_", "_to_copy") and {"cpu", "cuda"} <= devices and not asynchronous:
            self.waits.append(name)
        return func(*args, **kwargs)


@contextlib.contextmanager
def fake_gpu(monkeypatch):
    """Yields the list of the operations for which the host has waited so far."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    monkeypatch.setattr(torch._C, "_current_graph_task_id", lambda: 0)  # one recomputation per checkpoint
    monkeypatch.setattr(F, "scaled_dot_product_attention", _efficient_attention)
    watch = _Watch()
    monkeypatch.setattr(FakeTensor, "tolist", lambda values: watch.waits.append("tolist") or [1.0] * values.numel())
    with FakeTensorMode(allow_non_fake_inputs=True), watch:
        yield watch.waits


def _efficient_attention(q, k, v, attn_mask=None, dropout_p=0.0, scale=None):
    """torch's choice on a card, which it does not make without one: a bias padded to 8 columns, then the kernel."""
    if attn_mask is not None:
        columns = attn_mask.shape[-1]
        attn_mask = F.pad(attn_mask, (0, -columns % 8))[..., :columns].expand(*q.shape[:3], columns)
    attend = torch.ops.aten._scaled_dot_product_efficient_attention
    return attend(q, k, v, attn_mask, compute_log_sumexp=True, dropout_p=dropout_p, scale=scale)[0]


def to_gpu(module: nn.Module) -> nn.Module:
    """`module.to("cuda")`, with fake tensors in the place of parameters and buffers."""
    for part in module.modules():
        for name, tensor in part._parameters.items():
            if tensor is not None:
                part._parameters[name] = nn.Parameter(tensor.detach().to(CUDA), tensor.requires_grad)
        for name, tensor in part._buffers.items():
            if tensor is not None:
                part._buffers[name] = tensor.to(CUDA)
    return module


@torch.no_grad()
def backward(loss: torch.Tensor) -> None:
    """`loss.backward()` without the engine: calls every node once all gradients that flow into it are there."""
    waiting = defaultdict(int)  # node -> nodes after it that have still to be called
    stack, seen = [loss.grad_fn], {loss.grad_fn}
    while stack:
        for node, _ in stack.pop().next_functions:
            if node is not None:
                waiting[node] += 1
                if node not in seen:
                    seen.add(node)
                    stack.append(node)
    inputs = defaultdict(dict)
    inputs[loss.grad_fn][0] = torch.ones_like(loss)
    ready = [loss.grad_fn]
    while ready:
        node = ready.pop()
        given = inputs.pop(node, {})
        if hasattr(node, "variable"):
            if given:
                old = node.variable.grad
                node.variable.grad = given[0] if old is None else old + given[0]
            continue
        call = getattr(node, "apply", node)  # `apply` of a node that is written in Python
        places = range(max(given, default=0) + 1)
        results = call(*(given.get(place) for place in places)) if given else [None] * len(node.next_functions)
        results = results if isinstance(results, tuple | list) else (results,)
        for (after, place), grad in zip(node.next_functions, results, strict=False):
            if after is None:
                continue
            if grad is not None:
                wanted = after._input_metadata[place]
                assert grad.device == wanted.device
                grad = grad.sum_to_size(wanted.shape).to(wanted.dtype)  # as the engine does for broadcast operands
                inputs[after][place] = grad if place not in inputs[after] else inputs[after][place] + grad
            waiting[after] -= 1
            if not waiting[after]:
                ready.append(after)
