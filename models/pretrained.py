"""Where the pretrained weights of a model are found: a file, the weights folder, or timm's hub."""

import os
from pathlib import Path

import timm
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError

from tools.base.errors import CheckpointError

HUB_SECONDS = 2  # timeout per address of the hub, unless the user has set HF_HUB_ETAG_TIMEOUT


def download_weights(name: str) -> dict:
    """The weights in timm's layout, from the cache or from its hub. Raises CheckpointError when that fails."""
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # the clients of the hub raise many types
        raise CheckpointError(
            f"--pretrained auto: {name} could not be downloaded: {error}; give --pretrained FILE or none"
        ) from None


def find_pretrained(choice: str, name: str) -> Path | str | None:
    """What `--pretrained` names: a file, as a Path; weights on timm's hub, by their name; or None for `none`.

    `auto` looks for <name>.safetensors and <name>.pth in the current folder and in weights/, then on the hub.

    Raises:
        CheckpointError: when there is no such file and the hub cannot be reached or has no weights of that name.
    """
    if choice in ("none", ""):
        return None
    if choice != "auto":
        if choice.startswith(("http://", "https://")):
            raise CheckpointError(f"--pretrained {choice}: is not a file; download it yourself and give its path")
        return Path(choice)
    for folder in (Path(), Path("weights")):
        for suffix in (".safetensors", ".pth"):
            if (folder / (name + suffix)).is_file():
                return folder / (name + suffix)
    _check_hub(name)
    return name


def _check_hub(name: str) -> None:
    """Raises CheckpointError within seconds when the weights are neither in the cache nor on a hub that answers.

    `hf_hub_download` would notice too, but without a network it tries for half a minute, and behind a firewall for
    six minutes. The one request here is not repeated.
    """
    remedy = f"give --pretrained FILE (e.g. {name}.pth from the model's authors), or --pretrained none"
    entry = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if entry is None or not entry.has_weights:
        raise CheckpointError(f"--pretrained auto: timm has no weights for {name}; {remedy}")
    file = entry.hf_hub_filename or "model.safetensors"
    if not entry.hf_hub_id or isinstance(try_to_load_from_cache(entry.hf_hub_id, file), str):
        return
    seconds = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or HUB_SECONDS)
    try:
        url = hf_hub_url(entry.hf_hub_id, file, endpoint=os.environ.get("HF_ENDPOINT"))
        get_hf_file_metadata(url, timeout=seconds)
    except HfHubHTTPError:
        pass  # the hub answered; if it refused, the download reports why
    except Exception as error:  # of httpx or requests, depending on the version of huggingface_hub
        raise CheckpointError(
            f"--pretrained auto: {name} is not in ., weights/ or the cache, and there is no connection to the hub: "
            f"{str(error) or type(error).__name__}; {remedy}"
        ) from None
