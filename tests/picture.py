"""make demo-picture: plays `make demo` on a terminal of its own, and writes what it shows as an SVG.

The picture holds each line at the second at which it appeared, so it plays like a recording. Pauses longer than
LONGEST_PAUSE are cut down to it. A viewer without animations, or one who wants less motion, sees the last screen.
"""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "pictures" / "demo.svg"

ROWS = 34
#: Pixels. A character of a monospaced font of 14 pixels is 8.4 wide, and stands on a line 14 below its upper edge.
CHARACTER, LINE, BASELINE, MARGIN = 8.43, 19, 14, 18
LONGEST_PAUSE = 2.0
COLOURS = {"1": "title", "31": "bad", "32": "good"}
PAINT = re.compile(r"\x1b\[(\d*)m")
#: Both colours of a pair are readable: at least 4.5 to 1.
STYLE = """
.paper{fill:#ffffff;stroke:#d0d7de}text{fill:#1f2328;font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,\
"DejaVu Sans Mono","Liberation Mono",monospace;white-space:pre}
.title{font-weight:bold}.good{fill:#116329}.bad{fill:#b3131e}
@media(prefers-color-scheme:dark){
.paper{fill:#0d1117;stroke:#30363d}text{fill:#e6edf3}.good{fill:#56d364}.bad{fill:#ff7b72}}
@keyframes come{from{opacity:0}}
.line{animation:come 1ms both}
"""
STILL = "@media(prefers-reduced-motion:reduce){.line,.roll{animation:none}}"


class Line(NamedTuple):
    """A line of the terminal, colours included, and the second at which it was complete."""

    second: float
    text: str


class Piece(NamedTuple):
    """Characters of one colour."""

    style: str
    text: str


def record(argv: list[str]) -> tuple[list[Line], int]:
    """Run a program on a terminal. Returns its lines and its exit status."""
    terminal, its_end = pty.openpty()
    started = time.monotonic()
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=its_end, cwd=ROOT)
    os.close(its_end)
    lines: list[Line] = []
    rest = b""
    while True:
        try:
            came = os.read(terminal, 65536)
        except OSError:  # the last writer has closed it
            break
        *complete, rest = (rest + came).split(b"\n")
        lines += [Line(time.monotonic() - started, shown(line.decode())) for line in complete]
    os.close(terminal)
    return lines, process.wait()


def shown(line: str) -> str:
    """A line as it stands in the end: the demo writes over what goes on at the moment."""
    return line.rstrip("\r").rpartition("\r")[2].replace("\x1b[K", "").rstrip()


def pieces(text: str) -> list[Piece]:
    """A line's parts, by colour."""
    found, style = [], ""
    for number, part in enumerate(PAINT.split(text)):
        if number % 2:
            style = COLOURS.get(part, "")
        elif part:
            found.append(Piece(style, part))
    return found


def played(lines: list[Line]) -> list[Line]:
    """The same lines, with no pause longer than LONGEST_PAUSE. Seconds count from the first one's."""
    at, last, result = 0.0, lines[0].second, []
    for line in lines:
        at += min(line.second - last, LONGEST_PAUSE)
        last = line.second
        result.append(Line(round(at, 2), line.text))
    return result


def drawn(lines: list[Line]) -> str:
    """The SVG, as wide as the longest line and ROWS high; more lines than that roll up. `lines` is not empty."""
    lines = played(lines)
    columns = max(len(PAINT.sub("", line.text)) for line in lines)
    width, inside = round(columns * CHARACTER) + 2 * MARGIN, ROWS * LINE
    height = inside + 2 * MARGIN
    head = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-labelledby="title"'
    window = f'x="0" y="{MARGIN}" width="{width}" height="{inside}" viewBox="0 {MARGIN} {width} {inside}"'
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" {head}>
<title id="title">make demo, recorded: sealing, the tunnel, faults, and the packets that leaked</title>
<style>{STYLE.strip()}
{rolled(lines)}
{STILL}</style>
<rect class="paper" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8"/>
<svg {window}>
<g class="roll">
{"".join(row(number, line) for number, line in enumerate(lines) if line.text)}</g>
</svg>
</svg>
"""


def row(number: int, line: Line) -> str:
    """One line of text, which appears at its second."""
    spans = "".join(
        f'<tspan class="{piece.style}">{escape(piece.text)}</tspan>' if piece.style else escape(piece.text)
        for piece in pieces(line.text)
    )
    at = f'x="{MARGIN}" y="{MARGIN + LINE * number + BASELINE}" style="animation-delay:{line.second:.2f}s"'
    return f'<text class="line" {at} xml:space="preserve">{spans}</text>\n'


def rolled(lines: list[Line]) -> str:
    """The rule that moves the lines up, so that the newest one is the lowest of ROWS."""
    total = lines[-1].second or 1.0
    moves = {f"{line.second / total * 100:.2f}": -LINE * (at - ROWS + 1) for at, line in enumerate(lines) if at >= ROWS}
    steps = "".join(f"{percent}%{{transform:translateY({up}px)}}" for percent, up in moves.items())
    last = -LINE * max(0, len(lines) - ROWS)
    return (
        f"@keyframes roll{{from{{transform:none}}{steps}}}"
        f".roll{{transform:translateY({last}px);animation:roll {total:.2f}s step-end both}}"
    )


def main() -> int:
    lines, status = record([sys.executable, "-m", "tests.demo"])
    for line in lines:
        print(line.text)
    if status:
        print(f"the demo ended with exit status {status}: {PICTURE.relative_to(ROOT)} is as it was", file=sys.stderr)
        return status
    PICTURE.write_text(drawn([Line(0.0, "\x1b[1m$ make demo\x1b[0m"), *lines]))
    print(f"\n{PICTURE.relative_to(ROOT)}: {PICTURE.stat().st_size / 1024:.0f} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
