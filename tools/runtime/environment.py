"""What a machine must have for a training run, as far as it can be said of plain values. Imports nothing heavy."""

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
        ResourceError: when one is missing, or when several OpenCVs have written into the one folder `cv2`.
    """
    versions = {name: _version(name) for name in (*PACKAGES, *OPENCVS)}
    missing = [name for name in PACKAGES if not versions[name]]
    if missing:
        raise ResourceError(f"{', '.join(missing)} not installed; pip install -r requirements.txt")
    opencvs = [name for name in OPENCVS if versions[name]]
    if len(opencvs) > 1:
        raise ResourceError(
            f"{' and '.join(opencvs)} are installed over each other, all in the folder cv2; "
            f"pip uninstall {' '.join(opencvs)}, then pip install opencv-python-headless"
        )
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {versions[name]}" for name in PACKAGES)])


def check_architecture(name: str, capability: tuple[int, int], built_for: Sequence[str]) -> None:
    """Raises ResourceError when a torch of these architectures has no code that the GPU `name` can run.

    Machine code (sm_86) runs on GPUs of its major number and an equal or higher minor one, PTX (compute_90) is
    compiled for any later GPU, and what ends in a letter (sm_90a) is for its own GPU alone: CUDA C++ programming guide,
    "Binary Compatibility" and "PTX Compatibility".

    Args:
        capability: compute capability, (8, 6) for 8.6.
        built_for: what `torch.cuda.get_arch_list()` gives.
    """
    for architecture in built_for:
        kind, major, minor, letter = re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", architecture).groups()
        built = int(major), int(minor)
        later = built <= capability and (kind == "compute" or built[0] == capability[0])
        if built == capability or (later and not letter):
            return
    raise ResourceError(
        f"{name} has compute capability {capability[0]}.{capability[1]}, and this torch was built for "
        f"{', '.join(built_for) or 'no GPU'}; install one that lists sm_{capability[0]}{capability[1]}, "
        "or hide the GPU with CUDA_VISIBLE_DEVICES="
    )


def check_shared_memory(workers: int, ahead: int, batch_bytes: int, free: int) -> None:
    """Raises ResourceError when the batches that loader processes hand over do not fit into `free` bytes of /dev/shm.

    Args:
        workers: loader processes on this machine.
        ahead: batches that each of them prepares.
    """
    need = workers * ahead * batch_bytes
    if need > free:
        raise ResourceError(
            f"no space at /dev/shm: {workers} loader processes hand over {need / 2**20:.0f} MB, and there are "
            f"{free / 2**20:.0f}; lower DATA.NUM_WORKERS or --batch-size, or give a container more with --shm-size"
        )


def _version(name: str) -> str:
    """The installed version of a distribution; the empty string when there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
