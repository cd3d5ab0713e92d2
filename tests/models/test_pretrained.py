"""Where `--pretrained` looks."""

import pytest

from models.pretrained import find_pretrained
from tools.base.errors import CheckpointError


def test_auto_takes_a_file_at_hand_and_says_what_to_do_without_a_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"--pretrained FILE .* --pretrained none"):
        find_pretrained("auto", "swin_tiny_patch4_window7_224")
    with pytest.raises(CheckpointError, match="has no weights for sample"):
        find_pretrained("auto", "sample")
    with pytest.raises(CheckpointError, match="download it yourself"):
        find_pretrained("http://example.org/w.pth", "sample")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "sample.pth").touch()
    assert str(find_pretrained("auto", "sample")) == "weights/sample.pth"
    assert find_pretrained("none", "sample") is None
