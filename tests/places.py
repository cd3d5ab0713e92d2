"""Whether a layer's map has its cells where the image has their pixels. Shared by the tests of heat maps."""

import torch

from tools.explain.layers import find_layer, find_map_layout

CELLS = 4  # patches per side that are changed, one at a time
DRAWS = 6  # of an image and its patches: with 3, the deepest stage of LeViT gave 0.75 for one seed of three


@torch.no_grad()
def grid_of_layer(model: torch.nn.Module, path: str, size: int) -> tuple[int, int]:
    """Height and width of a layer's map, after a look at where it changes when one patch of the image changes.

    Deep layers see far more than the patch, and some mix all places. So the place is the centre of mass of the change,
    each cell relative to its mean over all patches; over the patches, it must correlate with the patch's place.
    """
    torch.manual_seed(1)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0  # with the statistics of a fresh model, deep activations vanish
    outputs: list = []
    change = torch.zeros(())
    for _ in range(DRAWS):
        images = _change_patches(size)
        if norms:
            model.train()(images)
        handle = find_layer(model, path).register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        model.eval()(images)
        handle.remove()
        maps = find_map_layout(model, outputs[-1], len(images))(outputs[-1]).double()
        difference = (maps[1:] - maps[:1]).abs().sum(1)
        change = change + difference / difference.mean()
    change = change / change.mean(0).clamp_min(1e-30)
    change = change / change.sum((1, 2), keepdim=True)
    height, width = change.shape[1:]
    rows, columns = change.sum(2) @ torch.arange(height).double(), change.sum(1) @ torch.arange(width).double()
    places = torch.arange(CELLS**2)
    for centre, place in ((rows, places // CELLS), (columns, places % CELLS)):
        agreement = torch.corrcoef(torch.stack([centre, place.double()]))[0, 1].item()
        assert agreement > 0.8, f"{path}: {agreement:.2f}"
    return height, width


def _change_patches(size: int) -> torch.Tensor:
    """A random image, and one more for each patch, with that patch changed."""
    images, side = torch.randn(3, size, size).repeat(CELLS**2 + 1, 1, 1, 1), size // CELLS
    for patch in range(CELLS**2):
        top, left = patch // CELLS * side, patch % CELLS * side
        images[patch + 1, :, top : top + side, left : left + side] = torch.randn(3, side, side)
    return images
