"""The demo's picture: what the recorder makes of a terminal's lines, and that the one in docs is of today's demo."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from tests import demo, picture
from tests.picture import LONGEST_PAUSE, ROWS, Line, Piece

SVG = "{http://www.w3.org/2000/svg}"


def shown(svg: str) -> list[str]:
    """The lines of text, from top to bottom."""
    return ["".join(text.itertext()) for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("plain\r", "plain"),
        ("\r\x1b[K   waiting ...\r\r\x1b[K   \x1b[32mdone\x1b[0m\r", "   \x1b[32mdone\x1b[0m"),
    ],
)
def test_a_line_that_was_rewritten_shows_its_end(line: str, what: str) -> None:
    assert picture.shown(line) == what


def test_colours() -> None:
    assert picture.pieces("a \x1b[31m7\x1b[0m b \x1b[2mdim\x1b[0m") == [
        Piece("", "a "),
        Piece("bad", "7"),
        Piece("", " b "),
        Piece("", "dim"),
    ]


def test_pauses_are_cut() -> None:
    told = picture.played([Line(5.0, "a"), Line(5.5, "b"), Line(60.0, "c")])
    assert told == [Line(0.0, "a"), Line(0.5, "b"), Line(0.5 + LONGEST_PAUSE, "c")]


def test_words_of_a_program_are_only_text() -> None:
    hostile = '</text><script>alert(1)</script>&amp;"'
    svg = picture.drawn([Line(0.0, hostile)])
    assert shown(svg) == [hostile]
    assert not list(ElementTree.fromstring(svg).iter(f"{SVG}script"))


def test_the_newest_line_is_in_the_window() -> None:
    """At the end, and in each step of the rule that rolls the lines up."""
    few, many = ([Line(float(n), f"line {n}") for n in range(count)] for count in (ROWS, ROWS + 3))
    assert "100.00%" not in picture.drawn(few)
    moved = re.findall(r"([\d.]+)%{transform:translateY\(-(\d+)px\)}", picture.drawn(many))
    assert [int(up) for _, up in moved] == [picture.LINE * n for n in (1, 2, 3)]
    assert moved[-1][0] == "100.00"
    assert f".roll{{transform:translateY(-{picture.LINE * 3}px)" in picture.drawn(many)


def test_it_is_as_wide_as_its_longest_line() -> None:
    width = round(200 * picture.CHARACTER) + 2 * picture.MARGIN
    assert f'width="{width}"' in picture.drawn([Line(0.0, "\x1b[31m" + "x" * 200 + "\x1b[0m"), Line(1.0, "y")])


def test_a_program_is_recorded_on_a_terminal() -> None:
    program = "import sys; print(sys.stdout.isatty()); print('\\x1b[32mgood\\x1b[0m'); sys.exit(3)"
    lines, status = picture.record([sys.executable, "-c", program])
    assert [line.text for line in lines] == ["True", "\x1b[32mgood\x1b[0m"]
    assert status == 3
    assert lines[0].second <= lines[1].second


def test_the_picture_in_the_documents_is_of_this_demo() -> None:
    """`make demo-picture` makes it anew."""
    svg = picture.PICTURE.read_text()
    lines = shown(svg)
    assert lines[0] == "$ make demo"
    for words in (*demo.SHOWN.values(), "nothing is broken"):
        rows = [line for line in lines if line.strip().startswith(words)]
        assert rows, words
        assert all(re.search(r"(?<![\d,])0(?![\d,])", row) for row in rows), "init-wg leaked"
    assert any(re.fullmatch(r" +leaked from the pod with init-wg: 0", line) for line in lines)
    assert any(re.fullmatch(r" +leaked from the pod with wg-quick: [\d,]{3,}", line) for line in lines)
    assert max(map(len, lines)) <= 98, "a longer line makes the picture's letters too small beside the README's text"
