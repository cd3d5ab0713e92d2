"""Checks of what a machine needs for a training run, on plain values. Imports nothing heavy."""

import platform
import re
from collections.abc import Sequence
from importlib import metadata

from tools.base.errors import ResourceError

PACKAGES = ("torch", "torchvision", "timm")
OPENCVS = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")


def check_packages() -> str:
    """`Python 3.11.9, torch 2.14.1, ...`.

    Raises:
        ResourceError: when one is missing, or when several OpenCV packages share the folder `cv2`.
    """
    versions = {name: _version(name) for name in (*PACKAGES, *OPENCVS)}
    missing = [name for name in PACKAGES if not versions[name]]
    if missing:
        raise ResourceError(f"{', '.join(missing)} not installed; run pip install -r requirements.txt")
    opencvs = [name for name in OPENCVS if versions[name]]
    if len(opencvs) > 1:
        raise ResourceError(
            f"{' and '.join(opencvs)} are installed over each other in the folder cv2; "
            f"run pip uninstall {' '.join(opencvs)}, then pip install opencv-python-headless"
        )
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {versions[name]}" for name in PACKAGES)])


def check_architecture(name: str, capability: tuple[int, int], built_for: Sequence[str]) -> None:
    """Raises ResourceError when torch was built without code that the GPU `name` can run.

    Machine code (sm_86) runs on GPUs of the same major and an equal or higher minor version. PTX (compute_90) is
    compiled for any later GPU. Code whose name ends in a letter (sm_90a) runs on that GPU only: CUDA C++ programming
    guide, "Binary Compatibility" and "PTX Compatibility".

    Args:
        capability: compute capability, (8, 6) for 8.6.
        built_for: what `torch.cuda.get_arch_list()` gives.
    """
    for architecture in built_for:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", architecture)
        if match is None:  # a kind of code that this rule does not know
            continue
        kind, major, minor, letter = match.groups()
        built = int(major), int(minor)
        later = built <= capability and (kind == "compute" or built[0] == capability[0])
        if built == capability or (later and not letter):
            return
    raise ResourceError(
        f"{name} has compute capability {capability[0]}.{capability[1]}, and this torch was built for "
        f"{', '.join(built_for) or 'no GPU'}; install one that lists sm_{capability[0]}{capability[1]}, "
        "or hide the GPU with CUDA_VISIBLE_DEVICES="
    )


def _version(name: str) -> str:
    """The installed version of a distribution; the empty string when there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
