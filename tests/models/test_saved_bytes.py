"""Bytes that Swin-T keeps for its backward pass on a GPU, per image of 224 pixels, counted on fake CUDA tensors.

`python -m tools bench memory` counts them on a CPU. `pytest --soak -rP tests/models/test_saved_bytes.py` prints these.
"""

import timm
import torch
from fake_cuda import CUDA, fake_gpu, to_gpu

from models.swin_transformer import SwinTransformer
from tools.bench.memory import MODES, kept_per_image


def kept(monkeypatch, model, dtype):
    """MiB that one more image keeps."""
    with fake_gpu(monkeypatch):
        model = to_gpu(model).train()

        def forward(num_images):
            with torch.autocast("cuda", dtype or torch.bfloat16, enabled=dtype is not None):
                return model(torch.empty(num_images, 3, 224, 224, device=CUDA)).float().sum()

        return kept_per_image(model, forward) / 2**20


def test_the_modes_keep_what_performance_md_says(monkeypatch, times):
    times(0, 1)
    for dtype in (torch.bfloat16, None):
        timms = [timm.create_model("swin_tiny_patch4_window7_224", num_classes=6) for _ in range(2)]
        timms[1].set_grad_checkpointing(True)
        theirs, theirs_again = (kept(monkeypatch, model, dtype) for model in timms)
        models = {
            mode: SwinTransformer(num_classes=6, drop_path_rate=0.0, **dict.fromkeys(options, True))
            for mode, options in MODES.items()
        }
        ours = {mode: kept(monkeypatch, model, dtype) for mode, model in models.items()}
        print(f"{dtype}: timm {theirs:.1f} MiB, its checkpointing {theirs_again:.1f};", ours)
        assert ours["plain"] < theirs
        assert ours["selective"] < 0.8 * ours["plain"]
        assert ours["checkpoint"] < 1.01 * theirs_again
