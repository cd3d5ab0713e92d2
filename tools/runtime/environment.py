"""Checks of packages and NVIDIA GPUs, on plain values. Imports nothing heavy."""

import os
import platform
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from tools.base.errors import ResourceError

PACKAGES = ("torch", "torchvision", "timm")
OPENCVS = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
ROOT = Path("/")  # under which the NVIDIA driver has its files
STAY_ON_CPU = "stay on the CPU with --device cpu or CUDA_VISIBLE_DEVICES= (empty)"


def check_packages() -> str:
    """The versions of Python and the packages: `Python 3.11.9, torch 2.14.1, ...`.

    Raises:
        ResourceError: when a package is missing, or when several OpenCV packages share the folder `cv2`.
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


def processor() -> str:
    """The name of the processor."""
    path = ROOT / "proc/cpuinfo"
    named = re.search(r"model name\s*: (.*)", path.read_text() if path.exists() else "")
    return named[1] if named else platform.processor()  # Python's own name is less exact


def driver_version() -> str:
    """The version of the loaded NVIDIA driver, such as 535.183.01; `unknown` without one."""
    try:
        text = (ROOT / "proc/driver/nvidia/version").read_text()
    except OSError:
        return "unknown"
    match = re.search(r"Module.*?\s(\d+\.[\d.]+)", text)
    return match[1] if match else "unknown"


def check_visible(wheel: str, cuda: str | None, reason: str, environ: Mapping[str, str] = os.environ) -> None:
    """Raises ResourceError for a GPU that torch does not see, unless CUDA_VISIBLE_DEVICES hides it.

    Call it where `torch.cuda.is_available()` is False. There is a GPU when the NVIDIA driver has files for one, or when
    torch has a `reason`. CUDA_VISIBLE_DEVICES hides it when it begins with neither an index nor an identifier.

    Args:
        wheel: the name and version of torch.
        cuda: `torch.version.cuda`, None for a torch without CUDA.
        reason: why torch cannot use the GPU; empty when it does not say.
    """
    if not re.match(r"\s*(\d|GPU-|MIG-)", environ.get("CUDA_VISIBLE_DEVICES", "0")):
        return
    described = [path.read_text() for path in sorted(ROOT.glob("proc/driver/nvidia/gpus/*/information"))]
    cards = [match[1] for text in described if (match := re.search(r"Model:\s*(\S.*)", text))]
    cards = list(dict.fromkeys(cards)) or [f"/dev/{path.name}" for path in sorted(ROOT.glob("dev/nvidia[0-9]"))]
    if not (cards or reason):
        return
    why, remedy = reason, "update the driver, install a torch for an older CUDA"
    if not reason:
        why, remedy = "torch does not say why", "see whether nvidia-smi can (a container needs --gpus all)"
    if cuda is None:
        why, remedy = "it was built without CUDA", "install a torch with CUDA, see https://pytorch.org/get-started"
    card = f"{', '.join(cards) or 'the GPU'} (driver {driver_version()})"
    raise ResourceError(f"{wheel} cannot use {card}: {why}; {remedy}, or {STAY_ON_CPU}")


def check_architecture(card: str, capability: tuple[int, int], wheel: str, built_for: Sequence[str]) -> None:
    """Raises ResourceError when torch was built without code that the GPU `card` can run.

    Machine code (sm_86) runs on GPUs of the same major and an equal or higher minor version. PTX (compute_90) is
    compiled for any later GPU. Code whose name ends in a letter (sm_90a) runs on that GPU only: CUDA C++ programming
    guide, "Binary Compatibility" and "PTX Compatibility".

    Args:
        capability: compute capability, (8, 6) for 8.6.
        wheel: the name and version of torch.
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
        f"{wheel} cannot use {card} (driver {driver_version()}): it was built for {', '.join(built_for) or 'no GPU'}, "
        f"and the GPU has compute capability {capability[0]}.{capability[1]}; "
        f"install a torch that lists sm_{capability[0]}{capability[1]}, or {STAY_ON_CPU}"
    )


def _version(name: str) -> str:
    """The installed version of a distribution; the empty string when there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
