"""Times heat maps of a Swin-T: pytorch-grad-cam's own pass against ours, one photo at a time and in batches."""

import sys

from tools import cli
from tools.errors import UsageError

EPILOG = """
All ways in turn, so that other work on the machine disturbs them alike: milliseconds a photo, the median over rounds
(lowest and highest). Four of them make the same maps, Grad-CAM's at the last block, and it is said how far these are
apart at most. The last one makes visual.py's default maps, whose layers lie earlier: its backward pass is longer.
"""


@cli.command
def main(argv: list[str]) -> int:
    """Parses `argv`, measures and prints."""
    parser = cli.Parser(prog="python -m tools.cam_speed", description=__doc__, epilog=EPILOG)
    parser.add_argument("--photos", type=int, default=8, metavar="N", help="in a round, and in a batch (default 8)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of all ways (default 5)")
    args = parser.parse_args(argv)
    if args.photos < 1 or args.rounds < 1:
        raise UsageError("--photos and --rounds must be 1 or more")

    import time

    import numpy as np
    import torch
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    from models.swin_transformer import VARIANTS, SwinTransformer
    from tools.cam import classic_recipe, default_recipe, explain

    torch.manual_seed(0)
    model = SwinTransformer(num_classes=6, **VARIANTS["tiny"]).eval()
    images, classes = torch.randn(args.photos, 3, 224, 224), [index % 6 for index in range(args.photos)]

    def library(part: slice) -> np.ndarray:
        cam = GradCAM(model, [model.layers[-1].blocks[-1].norm1], lambda x: x.unflatten(1, (7, 7)).permute(0, 3, 1, 2))
        maps = cam(images[part], [ClassifierOutputTarget(index) for index in classes[part]])
        cam.activations_and_grads.release()
        return maps

    def ours(part: slice) -> np.ndarray:
        return explain(model, images[part], [classic_recipe(model)], classes[part]).maps[0]

    def default(part: slice) -> np.ndarray:
        return explain(model, images[part], [default_recipe(model)], classes[part]).maps[0]

    singly, together = [slice(i, i + 1) for i in range(args.photos)], [slice(0, args.photos)]
    ways = {
        "pytorch-grad-cam, one at a time": (library, singly),
        "pytorch-grad-cam, in a batch": (library, together),
        "ours, one at a time": (ours, singly),
        "ours, in a batch": (ours, together),
        "ours, in a batch, default maps": (default, together),
    }
    seconds, maps = {name: [] for name in ways}, {}
    for _ in range(args.rounds):
        for name, (make, parts) in ways.items():
            started = time.perf_counter()
            maps[name] = np.concatenate([make(part) for part in parts])
            seconds[name].append((time.perf_counter() - started) / args.photos)
    medians = {name: float(np.median(taken)) for name, taken in seconds.items()}
    base = medians["pytorch-grad-cam, one at a time"]
    for name, taken in seconds.items():
        low, high = (1000 * v for v in (min(taken), max(taken)))
        print(f"{name:<34} {1000 * medians[name]:6.0f} ms ({low:.0f} to {high:.0f})   {base / medians[name]:.2f} times")
    stack = np.stack(list(maps.values())[:-1])
    print(f"maps differ by {(stack.max(axis=0) - stack.min(axis=0)).max():.1e} at most")
    return 0


if __name__ == "__main__":
    sys.exit(main())
