"""Keys that must not show. Its own module: what only reads the kernel need not import the parser."""


class Secret(str):
    """A key that never shows itself: its repr, and so every traceback and log of a structure, is masked."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "Secret(hidden)"
