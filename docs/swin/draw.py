"""Draws the pictures of docs/swin.md with the functions of the model, and prints the table of its shapes."""

import sys

from tools.base import cli

EPILOG = """
Writes patches.png, windows.png, mask.png and merging.png. The leaf is drawn by data/sample/leaves.py.
"""


INK = "#33413a"


@cli.command
def main(argv: list[str]) -> int:
    """Parses `argv`, draws and prints."""
    parser = cli.Parser(prog="python -m docs.swin.draw", description=__doc__, epilog=EPILOG)
    parser.add_argument("--to", default="docs/swin", metavar="FOLDER", help="where pictures go (default docs/swin)")
    args = parser.parse_args(argv)

    from pathlib import Path

    from tools.base.files import write_bytes

    for name, draw in (("patches", patches), ("windows", windows), ("mask", mask), ("merging", merging)):
        write_bytes(Path(args.to) / f"{name}.png", draw())
    print("\n".join(f"| {what} | {shape} |" for what, shape in live_shapes()))
    return 0


def live_shapes() -> list[tuple[str, str]]:
    """(description, shape) of the tensors in a Swin-T for one photo, as forward hooks see them."""
    import torch

    from models.swin_transformer import SwinTransformer

    model = SwinTransformer(num_classes=6).eval()
    seen: dict[str, str] = {"photo": "1x3x224x224"}
    watched = {
        "patch_embed.proj": "`patch_embed.proj`: patches",
        "patch_embed": "`patch_embed`: tokens",
        "layers.0.blocks.0.attn.qkv": "`layers[0].blocks[0].attn.qkv`: q, k, v of 64 windows",
        "layers.0.blocks.0": "`layers[0].blocks[0]`, W-MSA",
        "layers.0.blocks.1": "`layers[0].blocks[1]`, SW-MSA",
        "layers.0.downsample.norm": "`layers[0].downsample.norm`: 2x2 tokens joined",
        "layers.0": "`layers[0]`, merged",
        "layers.1": "`layers[1]`, merged",
        "layers.2": "`layers[2]`, merged",
        "layers.3": "`layers[3]`",
        "head": "`head`: logits of the tokens' mean",
    }

    def watch(name: str):
        return lambda _module, _inputs, output: seen.update({watched[name]: "x".join(map(str, output.shape))})

    for name in watched:
        model.get_submodule(name).register_forward_hook(watch(name))
    with torch.no_grad():
        model(torch.zeros(1, 3, 224, 224))
    return list(seen.items())


def patches() -> bytes:
    """A leaf, its patches, and the mean colour of each patch: the first grid of tokens."""
    import cv2

    from data.sample.leaves import draw_leaf

    leaf = cv2.resize(draw_leaf(("rust",), (0, 3)).pixels, (224, 224), interpolation=cv2.INTER_AREA)
    figure, (whole, close, tokens) = canvas(3)
    whole.imshow(leaf)
    whole.set_title("photo, 224x224 pixels")
    whole.add_patch(rectangle(104, 28, 56, "white"))
    close.imshow(leaf[28:84, 104:160], interpolation="nearest")
    close.set_title("the square: patches of 4x4 pixels")
    grid(close, 56, 4, "white", 0.5)
    tokens.imshow(cv2.resize(leaf, (56, 56), interpolation=cv2.INTER_AREA), interpolation="nearest")
    tokens.set_title("56x56 tokens, each 4x4 pixels")
    return png(figure)


def windows(side: int = 14, window: int = 7) -> bytes:
    """The groups of tokens that attend to each other: in plain windows, in rolled ones, and under the mask."""
    import torch

    from models.swin_transformer import shifted_window_mask, window_order

    shift, count = window // 2, (side // window) ** 2
    window_of = torch.arange(count).view(-1, 1).expand(-1, window * window)  # [nW, N]
    first = (shifted_window_mask(side, side, window, shift) == 0).int().argmax(dim=2)  # the first token each may meet
    _, part_of = torch.unique(window_of * window * window + first, return_inverse=True)

    def places(owner, roll: int = 0):
        return owner.flatten()[window_order(side, window, roll).argsort()].view(side, side).numpy()

    figure, axes = canvas(3)
    for one, title, owner in zip(
        axes,
        ("W-MSA: one colour per window", f"SW-MSA: rolled by {shift}", "with the mask"),
        (places(window_of), places(window_of, shift), places(part_of, shift)),
        strict=True,
    ):
        one.imshow(owner, cmap="Set3", vmin=0, vmax=11)
        one.set_title(title)
        grid(one, side, 1, "white", 0.5)
    return png(figure)


def mask(side: int = 14, window: int = 7) -> bytes:
    """The mask of stage 3 of a Swin-T: the pairs of 49 tokens that may attend, for each of its four windows."""
    from models.swin_transformer import shifted_window_mask

    figure, axes = canvas(4)
    names = ("top left: all meet", "top right: two sides", "bottom left: two sides", "bottom right: four corners")
    for one, pairs, name in zip(axes, shifted_window_mask(side, side, window, window // 2), names, strict=True):
        one.imshow(pairs.numpy() == 0, cmap="Greens", vmin=-0.2, vmax=1.4)
        one.set_title(name)
    return png(figure)


def merging(side: int = 4) -> bytes:
    """The four tokens that patch merging joins, and their order, as the module itself joins them."""
    import torch

    from models.swin_transformer import PatchMerging

    module = PatchMerging(1, side)
    module.norm = module.reduction = torch.nn.Identity()  # type: ignore[assignment]
    joined = module(torch.arange(side * side, dtype=torch.float32).view(1, -1, 1))[0].int()  # [L/4, 4]
    figure, (before, after) = canvas(2)
    half = side // 2
    group = {int(token): row for row, tokens in enumerate(joined) for token in tokens}
    before.imshow([[group[y * side + x] for x in range(side)] for y in range(side)], cmap="Set3", vmin=0, vmax=11)
    after.imshow([[y * half + x for x in range(half)] for y in range(half)], cmap="Set3", vmin=0, vmax=11)
    for token in range(side * side):
        before.text(token % side, token // side, token, ha="center", va="center", color=INK)
    for row, tokens in enumerate(joined.tolist()):
        after.text(row % half, row // half, tokens, ha="center", va="center", color=INK)
    before.set_title(f"{side}x{side} tokens of C channels")
    after.set_title("2x2 tokens of 4C, then 2C")
    return png(figure)


def canvas(columns: int):
    """A figure and its axes side by side, without ticks and frames."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(2.9 * columns, 3.2), layout=ConstrainedLayoutEngine(h_pad=0.08))
    axes = figure.subplots(1, columns)
    for one in axes:
        one.set(xticks=[], yticks=[])
        one.title.set(fontsize=9, color=INK)
        one.spines[:].set_visible(False)
    return figure, axes


def grid(axes, side: int, step: int, colour: str, width: float) -> None:
    """Draws lines between the cells of a square grid, one per `step` cells."""
    for place in range(0, side + 1, step):
        axes.axhline(place - 0.5, color=colour, linewidth=width)
        axes.axvline(place - 0.5, color=colour, linewidth=width)


def rectangle(x: float, y: float, side: float, colour: str):
    """The outline of a square."""
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), side, side, fill=False, edgecolor=colour, linewidth=1.5)


def png(figure) -> bytes:
    """The figure as a PNG of few colours, so that the repository stays small."""
    import io

    from PIL import Image

    from tools.render.figures import to_png

    small = Image.open(io.BytesIO(to_png(figure))).convert("RGB").quantize(128)
    buffer = io.BytesIO()
    small.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(main())
