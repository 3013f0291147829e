"""Sets of ports, as text that people and nft write alike: "51413", "50000-50100". Pure."""

from __future__ import annotations

MOST = 65535


def parse(text: str) -> tuple[str, ...]:
    """Ports and ranges, with commas or blanks between; sorted, and what overlaps or touches is one.

    Raises ValueError.
    """
    return merge(text.replace(",", " ").split())


def merge(words: list[str]) -> tuple[str, ...]:
    """The same for single words."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(map(_range, words)):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(str(first) if first == last else f"{first}-{last}" for first, last in merged)


def _range(word: str) -> tuple[int, int]:
    first, dash, last = word.partition("-")
    low = _port(first)
    high = _port(last) if dash else low
    if low > high:
        raise ValueError
    return low, high


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) <= MOST):
        raise ValueError
    return int(text)
