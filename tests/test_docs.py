"""The documents name what is there: links, files, dropped keys, the commands a newcomer types."""

import re
from pathlib import Path

from configs.keys import FORMER_KEYS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_links_lead_somewhere():
    for document in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_the_map_of_the_house_is_complete():
    """Every folder and file of the program has its place in the map, and what the map names is there."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    for folder in ("configs", "models", "data", "tools"):
        for path in (ROOT / folder).rglob("*.py"):
            place = path.relative_to(ROOT)
            assert f"`{place.parent}/" in text or f"`{place}`" in text, place
            assert (
                path.name in ("__init__.py", "__main__.py") or place.parts[1] == "bench" or f"{path.name}`" in text
            ), place
    for named in re.findall(r"`((?:configs|models|data|tools)/[a-z_/]+(?:\.py)?)`", text):
        assert (ROOT / named).exists(), named


def test_the_readme_lists_every_dropped_key_and_every_config_it_names_exists():
    for key in FORMER_KEYS:
        assert f"`{key}`" in (ROOT / "docs" / "config.md").read_text()
    for name in re.findall(r"configs/\w+\.yaml", README):
        assert (ROOT / name).exists()


def test_make_knows_the_two_commands_and_ci_calls_them():
    makefile, ci = (ROOT / "Makefile").read_text(), (ROOT / ".ci" / "run").read_text()
    for target in ("demo", "test"):
        assert f"make {target}" in README
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    assert "make test" in ci
