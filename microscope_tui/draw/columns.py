"""Tables of text: columns, those of them that fit, and their cells as a line."""

from collections.abc import Mapping, Sequence

import msgspec
from msgspec.structs import replace

from microscope_tui.draw.spans import Line, Span, dim, pad


class Column(msgspec.Struct, frozen=True):
    name: str
    """Key of the cells in ``Table.line``."""
    width: int
    """Cells; the last column may be wider than what is left for it."""
    align: str = "left"
    priority: int = 0
    """Left out for lack of room from 1 on; 0 is always shown."""
    gap: int = 2
    """Blanks in front of it."""
    head: str | None = None
    """If that is not its name."""


class Table(msgspec.Struct, frozen=True):
    columns: Sequence[Column]
    width: int = 0
    """Of a line; as many as the columns have by default."""
    left_out: Sequence[str] = ()
    """Names of the columns that had no room."""

    @classmethod
    def fitting(cls, columns: Sequence[Column], width: int) -> "Table":
        """The columns that fit in ``width`` cells: of those left out, priority 1 goes first."""
        kept = list(columns)
        for column in sorted(columns, key=lambda column: column.priority):
            if column.priority and sum(c.gap + c.width for c in kept) > width:
                kept.remove(column)
        return cls(kept, width, [column.name for column in columns if column not in kept])

    def used(self, *without: str) -> int:
        """Cells of all columns with their gaps, without those named."""
        return sum(c.gap + c.width for c in self.columns if c.name not in without)

    def width_of(self, name: str) -> int:
        """Cells of a column; 0 for one that is left out."""
        return next((column.width for column in self.columns if column.name == name), 0)

    def resized(self, **widths: int) -> "Table":
        """The same with other widths by column name; names of columns that were left out are
        ignored.
        """
        return replace(
            self, columns=[replace(c, width=widths.get(c.name, c.width)) for c in self.columns]
        )

    def no_room(self, between: str) -> str:
        """Which columns were left out, in words; empty if none."""
        return f"no room for {between.join(self.left_out)}" if self.left_out else ""

    def heads(self) -> Line:
        """The line above the table."""
        cells = {}
        for column in self.columns:
            head = column.name if column.head is None else column.head
            cells[column.name] = [dim(head)]
        return self.line(cells)

    def line(self, cells: Mapping[str, Sequence[Span]]) -> Line:
        """Cells of columns that are left out are ignored."""
        line: Line = []
        width = left = self.width or self.used()
        for column in self.columns:
            line.append(Span(" " * column.gap, ""))
            left -= column.gap + column.width
            room = max(0, column.width + min(0, left))
            line += pad(cells.get(column.name, ()), room, column.align)
        return pad(line, width)
