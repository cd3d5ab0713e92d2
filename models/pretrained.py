"""Where pretrained weights of a name are found: a file, the weights folder, or timm's hub."""

import os
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import timm

from tools.base.errors import CheckpointError

HUB_SECONDS = 3


@dataclass(frozen=True)
class Hub:
    """Pretrained weights are on timm's hub; `state_dict()` fetches them."""

    name: str

    def state_dict(self) -> dict:
        """Downloads (or takes from the cache) and returns the weights in timm's layout."""
        try:
            return timm.create_model(self.name, pretrained=True).state_dict()
        except Exception as error:  # the hub's clients raise many kinds
            raise CheckpointError(
                f"--pretrained auto: {self.name} could not be fetched: {error}; give --pretrained FILE or none"
            ) from None


def find_pretrained(choice: str, name: str) -> Path | Hub | None:
    """Where the weights of `--pretrained` are: a file, timm's hub, or None for `none`.

    `auto` looks for <name>.pth and <name>.safetensors in the current folder and in weights/, then asks the hub.

    Raises:
        CheckpointError: when there is no such file, or no hub to ask.
    """
    if choice in ("none", ""):
        return None
    if choice != "auto":
        if choice.startswith(("http://", "https://")):
            raise CheckpointError(f"--pretrained {choice}: fetch the file yourself and give its path")
        return Path(choice)
    for folder in (Path(), Path("weights")):
        for suffix in (".safetensors", ".pth"):
            if (folder / (name + suffix)).is_file():
                return folder / (name + suffix)
    _check_hub(name)
    return Hub(name)


def _check_hub(name: str) -> None:
    """Raises CheckpointError within seconds when the weights are neither cached nor to be reached."""
    from huggingface_hub import constants, try_to_load_from_cache

    remedy = f"give --pretrained FILE (e.g. {name}.pth from the model's authors), or --pretrained none"
    entry = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if entry is None or not entry.has_weights:
        raise CheckpointError(f"--pretrained auto: timm has no weights for {name}; {remedy}")
    if entry.hf_hub_id and isinstance(try_to_load_from_cache(entry.hf_hub_id, "model.safetensors"), str):
        return
    if not _answers(os.environ.get("HF_ENDPOINT", constants.ENDPOINT)):
        raise CheckpointError(
            f"--pretrained auto: {name} is not in ., weights/ or the cache, and no connection to "
            f"the hub within {HUB_SECONDS} s; {remedy}"
        )


def _answers(address: str) -> bool:
    """Whether one small request is answered within HUB_SECONDS. The download that may follow has no limit."""
    answers = []

    def ask():
        try:
            request = urllib.request.Request(address, method="HEAD")
            urllib.request.urlopen(request, timeout=HUB_SECONDS).close()
        except urllib.error.HTTPError:
            pass  # it answered
        except (OSError, ValueError):
            return
        answers.append(True)

    asking = threading.Thread(target=ask, daemon=True)  # a name server that is silent ignores the timeout
    asking.start()
    asking.join(HUB_SECONDS)
    return bool(answers)
