"""JSON text, as `json.dumps(value, indent=2)` writes it: that module brings `re` along, 0.5 MiB that would stay."""

from __future__ import annotations

_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}
_WORDS = {None: "null", True: "true", False: "false"}


def text(value: object, indent: str = "") -> str:
    """`value`: None, bool, int, finite float, str, or a list, tuple or dict (with str as its keys) of these."""
    if value is None or isinstance(value, bool):
        return _WORDS[value]
    if isinstance(value, str):
        plain = value.isascii() and value.isprintable() and not set(value).intersection('"\\')
        return f'"{value}"' if plain else f'"{"".join(map(_character, value))}"'
    if isinstance(value, (int, float)):
        return repr(value)
    inner = f"{indent}  "
    if isinstance(value, dict):
        return _block("{}", [f"{text(key)}: {text(each, inner)}" for key, each in value.items()], indent)
    if isinstance(value, (list, tuple)):
        return _block("[]", [text(each, inner) for each in value], indent)
    raise TypeError(f"{type(value).__name__} has no JSON text")


def _block(brackets: str, items: list[str], indent: str) -> str:
    if not items:
        return brackets
    lines = f",\n{indent}  ".join(items)
    return f"{brackets[0]}\n{indent}  {lines}\n{indent}{brackets[1]}"


def _character(one: str) -> str:
    if " " <= one <= "~":
        return _ESCAPES.get(one, one)
    units = one.encode("utf-16-be", "surrogatepass").hex()
    return _ESCAPES.get(one) or "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
