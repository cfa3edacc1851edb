"""What there is to tell of the documents of an input."""

from __future__ import annotations

from dataclasses import dataclass, field

_PLACES = 10


@dataclass
class Met:
    """How often something was met, and where first."""

    count: int = 0
    first: str = ""

    def add(self, count: int, first: str) -> None:
        """Count what was met in a later place."""
        if count and not self.count:
            self.first = first
        self.count += count


@dataclass
class Findings:
    """Documents counted, and what was wrong with them."""

    documents: dict[str, int] = field(default_factory=dict)
    """By the format of their files."""
    empty: int = 0
    """Documents without text."""
    bad: int = 0
    """Documents that cannot be read or encoded, and files that break off."""
    places: list[str] = field(default_factory=list)
    """The first of these, and what is wrong with each."""
    dropped: Met = field(default_factory=Met)
    """Characters that the tokenizer drops."""
    unknown: Met = field(default_factory=Met)
    """Unknown tokens."""

    @property
    def total(self) -> int:
        """All documents, good and bad."""
        return sum(self.documents.values())

    def add_document(self, kind: str, number: int = 1) -> None:
        """Count documents in files of a format."""
        self.documents[kind] = self.documents.get(kind, 0) + number

    def add_bad(self, message: str) -> None:
        """Count something bad."""
        self.bad += 1
        self.places = [*self.places, message][:_PLACES]

    def add(self, later: Findings) -> None:
        """Count what was found further on in the input."""
        for kind, number in later.documents.items():
            self.add_document(kind, number)
        self.empty += later.empty
        self.bad += later.bad
        self.places = [*self.places, *later.places][:_PLACES]
        self.dropped.add(later.dropped.count, later.dropped.first)
        self.unknown.add(later.unknown.count, later.unknown.first)
