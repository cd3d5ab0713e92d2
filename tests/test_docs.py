"""The documents name what exists: links, files, dropped and renamed keys, the commands that a newcomer types."""

import re
import subprocess
from pathlib import Path

import pytest

from configs.keys import FORMER_KEYS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


def test_links_lead_somewhere():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_links_to_a_section_name_one_of_its_headings():
    for document in DOCUMENTS:
        for target, section in re.findall(r"\]\((?!https?://)([^)#]*)#([^)]+)\)", document.read_text()):
            page = (document.parent / target).read_text() if target else document.read_text()
            headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert section in anchors, f"{document.name}: {target}#{section}"


def test_every_page_is_reached_from_the_readme():
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in README, page.name


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


def test_every_dropped_and_renamed_key_is_listed_for_users_of_the_course_project():
    page = (ROOT / "docs" / "course-project.md").read_text()
    for key in FORMER_KEYS:
        assert f"`{key}`" in page, key


def test_every_config_that_the_documents_name_exists():
    for document in DOCUMENTS:
        for name in re.findall(r"configs/\w+\.yaml", document.read_text()):
            assert (ROOT / name).exists(), f"{document.name}: {name}"


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 120


def test_make_knows_the_two_commands_and_ci_calls_them():
    makefile, ci = (ROOT / "Makefile").read_text(), (ROOT / ".ci" / "run").read_text()
    for target in ("demo", "test"):
        assert f"make {target}" in README
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    assert "make test" in ci


def test_no_large_file_and_no_wheel_is_tracked():
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is not a git checkout")
    for path in map(ROOT.joinpath, filter(None, listed.split("\0"))):
        assert path.suffix != ".whl", path
        assert not path.is_file() or path.stat().st_size <= 300_000, path
