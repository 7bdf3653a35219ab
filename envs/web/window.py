"""The lines of a page that an agent sees at once."""

from __future__ import annotations

from dataclasses import dataclass

from turnwise.envs.web.page import Element, Page


@dataclass(slots=True)
class Window:
    """A view of `size` lines of a page; its title always stands above them."""

    size: int
    top: int = 0
    """Lines above it, the title not counted."""

    def text(self, page: Page) -> str:
        """Return the title and the lines in view, and which of how many they are."""
        lines, first = page.lines, self.top + 1
        shown = lines[first : first + self.size]
        if len(shown) == len(lines) - 1:
            return "\n".join(lines)
        place = f"(lines {first} to {first + len(shown) - 1} of {len(lines) - 1})"
        return "\n".join([lines[0], *shown, place])

    def holds(self, element: Element) -> bool:
        """Whether an element is in view."""
        return self.top < element.line <= self.top + self.size

    def towards(self, element: Element) -> str:
        """Return the direction in which to scroll for an element; empty where it is in view."""
        if self.holds(element):
            return ""
        return "down" if element.line > self.top else "up"

    def scroll(self, direction: str, page: Page) -> bool:
        """Move by its size; return False where nothing lies in that direction."""
        to = self.top + (self.size if direction == "down" else -self.size)
        if not 0 <= to < len(page.lines) - 1:
            return False
        self.top = to
        return True

    def first(self, page: Page) -> int | None:
        """Return the first element from its top on, from 0; None at the top of the page."""
        below = (e.id - 1 for e in page.elements if e.line > self.top)
        return next(below, None) if self.top else None

    def between(self, page: Page) -> tuple[int | None, int | None]:
        """Return the elements next above and next below what is in view, from 0; None for none."""
        above = [e.id - 1 for e in page.elements if e.line <= self.top]
        below = [e.id - 1 for e in page.elements if e.line > self.top + self.size]
        return above[-1] if above else None, below[0] if below else None

    def fit(self, page: Page) -> None:
        """Stay within a page that has become shorter."""
        self.top = min(self.top, max(len(page.lines) - 2, 0))
