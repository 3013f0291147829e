"""init-wg status --watch: a text on a terminal of any size, and somewhere that is none."""

from __future__ import annotations

import pytest

from init_wg import watch

TEXT = "tunnel:      up\n\ndrift:       none"


def test_a_screen_is_written_over_the_one_before() -> None:
    assert watch.screen(TEXT, 80, 24) == "\x1b[Htunnel:      up\x1b[K\n\x1b[K\ndrift:       none\x1b[K\n\x1b[J"


def test_nothing_wraps_or_rolls() -> None:
    """Or the next one would not begin where this one began."""
    assert watch.screen(TEXT, 7, 3) == "\x1b[Htunnel:\x1b[K\n\x1b[K\n\x1b[J"


def test_a_size_that_is_not_known_cuts_nothing() -> None:
    assert watch.screen(TEXT, 0, 0) == watch.screen(TEXT, 80, 24)


def test_without_a_terminal_texts_follow_each_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    looks = iter(["a\nb", "c"])

    def look() -> str:
        for text in looks:
            return text
        raise BrokenPipeError  # as print() does when the reader has gone

    watch.run(look)
    assert capsys.readouterr().out == "a\nb\n\nc\n"
    assert pauses == [watch.EVERY, watch.EVERY]
