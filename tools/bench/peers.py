"""The Swins that are compared: ours, timm's and torchvision's, of one size, and what a training step of each is."""

import contextlib
from collections.abc import Callable

KINDS = ("timm", "torchvision", "ours")
# Swin-T, and one that takes milliseconds, for trying the rulers.
SIZES = {
    "swin_t": {"img_size": 224, "embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24), "window_size": 7},
    "toy": {"img_size": 64, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4},
}
DTYPES = ("fp32", "bf16", "fp16")
NUM_CLASSES = 6


def add_size_flag(parser) -> None:
    """`--size`: which of `SIZES`."""
    parser.add_argument("--size", choices=SIZES, default="swin_t", help="of the model (default swin_t)")


def build(kind: str, size: str, drop_path_rate: float = 0.2, **options):
    """A Swin of one of `KINDS` and `SIZES`, with fresh weights; `options` are our own model's."""
    shape = SIZES[size]
    if kind == "ours":
        from models.swin_transformer import SwinTransformer

        return SwinTransformer(num_classes=NUM_CLASSES, drop_path_rate=drop_path_rate, **shape, **options)
    if kind == "timm":
        from timm.models.swin_transformer import SwinTransformer

        return SwinTransformer(num_classes=NUM_CLASSES, drop_path_rate=drop_path_rate, **shape)
    from torchvision.models import SwinTransformer

    shape = {key: list(value) if isinstance(value, tuple) else value for key, value in shape.items()}
    shape["window_size"] = [shape["window_size"]] * 2
    del shape["img_size"]
    return SwinTransformer(patch_size=[4, 4], num_classes=NUM_CLASSES, stochastic_depth_prob=drop_path_rate, **shape)


def device():
    """The GPU where there is one."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(dtype: str):
    """The context of a forward pass in one of `DTYPES`."""
    import torch

    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device().type, kinds[dtype]) if dtype in kinds else contextlib.nullcontext()


def random_batch(size: str, batch: int):
    """(images, targets) on the device."""
    import torch

    side = SIZES[size]["img_size"]
    return torch.randn(batch, 3, side, side, device=device()), torch.rand(batch, NUM_CLASSES, device=device())


def adamw(model):
    """The program's AdamW over all parameters."""
    from tools.train.optim import build_optimizer

    groups = [{"params": list(model.parameters()), "lr_scale": 1.0, "names": []}]
    return build_optimizer(groups, "adamw", lr=1e-5, eps=1e-8, betas=(0.9, 0.999), momentum=0.9)


def training_step(model, batch: int, size: str, dtype: str = "fp32") -> Callable[[], None]:
    """Forward, backward and AdamW's step on one batch. Our stochastic depth is drawn beforehand, as in training."""
    import torch

    optimizer = adamw(model)
    images, targets = random_batch(size, batch)
    draw = getattr(model, "draw_drop_path", None)
    model.train()

    def step() -> None:
        with autocast(dtype):
            logits = model(images, draw(batch)) if draw else model(images)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def evaluation(model, batch: int, size: str, dtype: str = "fp32") -> Callable[[], None]:
    """A forward pass in eval mode without gradients."""
    import torch

    images, _ = random_batch(size, batch)
    model.eval()

    def forward() -> None:
        with torch.no_grad(), autocast(dtype):
            model(images)

    return forward
