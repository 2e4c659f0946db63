"""What came of a line that the service is held to."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Verdict", "format_verdicts"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one line.

    Attributes:
        line: What the service is held to.
        measured: What was measured, None where it could not be.
        bar: What it must reach; None: there is only an aim.
        aim: What it should reach.
        is_most: Whether the bar is the most that it may be, and not the least.
    """

    line: str
    measured: float | None
    bar: float | None
    aim: float | None
    is_most: bool = False

    @property
    def holds(self) -> bool | None:
        """Whether the bar is reached; None where there is none, or nothing was measured."""
        if self.measured is None or self.bar is None:
            return None
        return self.measured <= self.bar if self.is_most else self.measured >= self.bar


def format_verdicts(verdicts: list[Verdict]) -> list[tuple[str, ...]]:
    """Return the rows of a table, the headings first."""

    def show(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}".rstrip("0").rstrip(".")

    words = {True: "yes", False: "NO", None: "-"}
    table: list[tuple[str, ...]] = [("line", "measured", "bar", "aim", "holds")]
    table += [(one.line, show(one.measured), show(one.bar), show(one.aim), words[one.holds]) for one in verdicts]
    return table
