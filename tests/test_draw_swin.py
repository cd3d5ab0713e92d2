"""The pictures and shapes of docs/swin.md come from the present model."""

from conftest import ROOT

from docs.swin import draw


def test_the_page_has_the_shapes_of_the_model_and_small_pictures(tmp_path, capsys):
    assert draw.main(["--to", str(tmp_path)]) == 0
    page = (ROOT / "docs" / "swin.md").read_text()
    for line in capsys.readouterr().out.splitlines():
        assert line in page
    for path in tmp_path.iterdir():
        assert f"(swin/{path.name})" in page
        assert path.stat().st_size < 60_000
        assert (ROOT / "docs" / "swin" / path.name).stat().st_size < 60_000
