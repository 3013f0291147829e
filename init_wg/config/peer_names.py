"""PEERS and PEERS_FILE -> the peers' names. Pure."""

from __future__ import annotations

from init_wg.config.values import DIGITS, LETTERS

LONGEST = 31
#: A typing mistake must not make a million keys.
MOST = 10_000
_FIRST = frozenset(LETTERS + DIGITS)
_REST = _FIRST | frozenset("_.-")


class BadNameError(ValueError):
    """The mistake in a list of names, as the rest of a sentence that begins with where it stands."""


def parse(text: str) -> tuple[str, ...]:
    """A number N (peer1 ... peerN), or names with commas, blanks or line ends between. Raises BadNameError."""
    words = text.replace(",", " ").split()
    if len(words) == 1 and words[0].isdecimal():
        return _numbered(words[0])
    seen: dict[str, str] = {}
    for word in words:
        _check(word)
        first = seen.setdefault(word.lower(), word)
        if first != word:
            raise BadNameError(f"has both {first} and {word}, which differ in capitals only: rename one of them")
    if len(seen) != len(words):
        twice = next(word for word in words if words.count(word) > 1)
        raise BadNameError(f"has {twice} twice: keep one of them")
    if len(words) > MOST:
        raise BadNameError(f"has {len(words)} names, and at most {MOST} are allowed: delete some")
    return tuple(words)


def in_lines(text: str) -> tuple[str, ...]:
    """The same of a file with one name for each line; "#" begins a comment."""
    return parse("\n".join(line.partition("#")[0] for line in text.splitlines()))


def _numbered(text: str) -> tuple[str, ...]:
    if not text.isascii() or len(text) > len(str(MOST)) or int(text) > MOST:
        raise BadNameError(f"asks for more than {MOST} peers: write a smaller number, or names")
    return tuple(f"peer{number}" for number in range(1, int(text) + 1))


def is_name(word: str) -> bool:
    """Names become names of files, of keys in a Secret and of labels in metrics."""
    return 0 < len(word) <= LONGEST and word[0] in _FIRST and _REST.issuperset(word)


def _check(word: str) -> None:
    if is_name(word):
        return
    # Longer ones may be a key in the wrong place.
    shown = f"{word!a}" if len(word) <= LONGEST else f"a word of {len(word)} characters"
    raise BadNameError(
        f"has {shown}, which is no name: write 1 to {LONGEST} letters, digits, _ . or -, and begin with a letter or a "
        "digit"
    )
