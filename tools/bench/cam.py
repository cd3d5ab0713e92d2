"""Benchmark: heat maps of equal inputs, Grad-CAM's at the last block and visual.py's default ones of earlier layers."""

from collections.abc import Callable

import numpy as np
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor

from tools.bench import peers
from tools.bench.rounds import Row, compare, interleave
from tools.explain.cam import CamRecipe, compute_heat_maps
from tools.explain.layers import choose_classic_layer, choose_default_layer, find_layer, find_map_layout

NUM_MAPS = 8


def measure(args) -> list[Row]:
    """Rows of pytorch-grad-cam one by one, of ours one by one and in a batch, and of our default method."""
    model = peers.build_model("ours", args.size).eval()
    images, _ = peers.random_batch(args.size, NUM_MAPS)
    classes = [index % peers.NUM_CLASSES for index in range(NUM_MAPS)]
    classic = choose_classic_layer(model)

    def in_parts(make: Callable, size: int) -> Callable[[], np.ndarray]:
        starts = range(0, NUM_MAPS, size)
        return lambda: np.concatenate([make(images[i : i + size], classes[i : i + size]) for i in starts])

    def compute_peer(part: Tensor, wanted: list[int]) -> np.ndarray:
        def to_grid(output: Tensor) -> Tensor:
            return find_map_layout(model, output, len(part))(output)

        with GradCAM(model, [find_layer(model, classic)], to_grid) as cam:
            return cam(part, [ClassifierOutputTarget(index) for index in wanted])

    def compute_ours(method: str, layer: str) -> Callable:
        return lambda part, wanted: compute_heat_maps(model, part, [CamRecipe(method, layer)], wanted).maps[0]

    gradcam = compute_ours("gradcam", classic)
    layercam = compute_ours("layercam", choose_default_layer(model, "layercam", images.shape[-1]))
    kinds = {
        "pytorch-grad-cam, one at a time": in_parts(compute_peer, 1),
        "ours, one at a time": in_parts(gradcam, 1),
        "ours, in a batch": in_parts(gradcam, NUM_MAPS),
        "ours, in a batch, default layers": in_parts(layercam, NUM_MAPS),
    }
    kinds = {f"{NUM_MAPS} maps, {args.size}: {kind}": make for kind, make in kinds.items()}
    peer, *same = list(kinds)[:3]
    wanted = kinds[peer]()
    difference = max(np.abs(kinds[name]() - wanted).max() for name in same)
    return compare(interleave(kinds, args.rounds), dict.fromkeys(same, f"the same maps within {difference:.0e}"))
