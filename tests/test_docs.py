"""What the documentation names is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])
_LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
_PATH = re.compile(r"(?<![\w/.-])(?:examples|tools|docs|tests|megatron_grow)/[\w./-]*\w")
_OF_THE_PAST = {"CHANGELOG.md", "log.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths(page: Path) -> None:
    text = page.read_text()
    missing = [link for link in _LINK.findall(text) if not (page.parent / link).exists()]
    if page.name not in _OF_THE_PAST:
        missing += [path for path in _PATH.findall(text) if not (ROOT / path).exists()]
    assert not missing
