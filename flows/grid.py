"""Tables of a few rows that a terminal, a run's page and a report show alike."""

from collections.abc import Sequence

from schemas.record import Record


class Grid(Record):
    """Titles and rows of equal length; the first column is words, the others are figures, empty where there is none."""

    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def text(self) -> str:
        """For a terminal: columns in line, two spaces apart."""
        lines = (self.titles, *self.rows)
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.titles))]
        return "\n".join(_line(line, widths) for line in lines)

    def markdown(self) -> str:
        """For a page in Markdown."""
        rule = ("---", *("---:" for _ in self.titles[1:]))
        return "\n".join(f"| {' | '.join(line)} |" for line in (self.titles, rule, *self.rows))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = (
        cell.rjust(width) if column else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join((first, *others)).rstrip()


def with_filled_columns(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Grid:
    """A grid without the columns in which no row has anything."""
    kept = [column for column in range(len(titles)) if not column or any(row[column] for row in rows)]
    return Grid(
        titles=tuple(titles[column] for column in kept),
        rows=tuple(tuple(row[column] for column in kept) for row in rows),
    )


def size(num_bytes: float) -> str:
    """Bytes as one reads them: `312 B`, `4.2 MB`, `1.3 TB`."""
    value, unit = float(num_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
