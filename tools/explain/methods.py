"""The heat map methods. This file does not import torch, so that `--help` is fast."""

from typing import NamedTuple


class CamMethod(NamedTuple):
    """A class of pytorch-grad-cam by its name, and what its formula needs.

    Attributes:
        needs_gradients: it needs a backward pass.
        one_image_at_a_time: a batch would not fit into memory, e.g. because every channel masks the image once.
    """

    library_class: str
    needs_gradients: bool
    one_image_at_a_time: bool = False


METHODS = {
    "gradcam": CamMethod("GradCAM", True),  # Selvaraju et al., arXiv 1610.02391
    "gradcam++": CamMethod("GradCAMPlusPlus", True),  # Chattopadhay et al., arXiv 1710.11063
    "layercam": CamMethod("LayerCAM", True),  # Jiang et al., IEEE TIP 2021, doi 10.1109/TIP.2021.3089943
    "eigencam": CamMethod("EigenCAM", False),  # Muhammad and Yeasin, arXiv 2008.00299: the same map for every class
    # Wang et al., arXiv 1910.01279: one forward pass per channel
    "scorecam": CamMethod("ScoreCAM", False, one_image_at_a_time=True),
}
