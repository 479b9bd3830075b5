"""How output looks: colours and aligned columns on a terminal, plain lines anywhere else."""

import os
import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

_COLOURS = {"bold": "1", "red": "31", "green": "32", "yellow": "33"}


class Terminal:
    """`is_terminal` is False for a dumb one; `has_colours` also where NO_COLOR is set
    (no-color.org)."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self.is_terminal = self._stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
        self.has_colours = self.is_terminal and not os.environ.get("NO_COLOR")

    def paint(self, text: str, colour: str) -> str:
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if self.has_colours else text

    def print(self, text: str = "") -> None:
        print(text, file=self._stream, flush=True)

    def clear(self) -> None:
        """Begin again at the top of the screen."""
        if self.is_terminal:
            self._stream.write("\x1b[H\x1b[2J")

    def progress(self, text: str) -> None:
        """What is being done, in place of what was said to be; "" when it is done."""
        if self.is_terminal:
            self._stream.write(f"\r\x1b[K{text}")
            self._stream.flush()

    def columns(self, rows: Sequence[Sequence[object]], indent: str = "") -> Iterable[str]:
        """The rows as lines: numbers to the right, the rest to the left; unaligned without a
        terminal."""
        cells = [[str(cell) for cell in row] for row in rows]
        if not self.is_terminal or not cells:
            return [indent + " ".join(row) for row in cells]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        right = [
            all(isinstance(row[i], int | float) for row in rows[1:]) for i in range(len(widths))
        ]
        return [
            indent
            + "  ".join(
                cell.rjust(width) if to_right else cell.ljust(width)
                for cell, width, to_right in zip(row, widths, right, strict=True)
            ).rstrip()
            for row in cells
        ]


def size(count: float) -> str:
    """Bytes as people write them: 512 B, 1.5 KiB, 12 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            break
        count /= 1024
    return f"{count:.1f} {unit}" if unit != "B" and count < 10 else f"{count:.0f} {unit}"


def duration(seconds: float) -> str:
    """In its two largest units: 12 s, 3 min 5 s, 2 d 4 h."""
    total = int(seconds)
    parts = [(total // 86400, "d"), (total // 3600 % 24, "h"), (total // 60 % 60, "min")]
    parts.append((total % 60, "s"))
    shown = [f"{number} {unit}" for number, unit in parts if number][:2]
    return " ".join(shown) or "0 s"
