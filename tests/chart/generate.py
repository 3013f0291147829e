"""Values that the chart's schema accepts, for hypothesis."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import strategies as st

#: More would be no better, and slow.
AT_MOST = 2
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=12)


def accepted(schema: Any, definitions: Any) -> st.SearchStrategy[Any]:
    """What a JSON schema accepts; of draft 7 the words that values.schema.json uses."""
    # Deferred: each is made when it is drawn, and prints as a word.
    return st.deferred(lambda: _accepted(schema, definitions))


def _accepted(schema: Any, definitions: Any) -> st.SearchStrategy[Any]:
    if "$ref" in schema:
        return accepted(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    for word in ("oneOf", "anyOf"):
        if word in schema:
            return st.one_of(*(accepted(each, definitions) for each in schema[word]))
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kind = schema["type"]
    if isinstance(kind, list):
        return st.one_of(*(accepted({**schema, "type": each}, definitions) for each in kind))
    found: st.SearchStrategy[Any] = _BY_TYPE[kind](schema, definitions)
    return found


def _string(schema: Any, _: Any) -> st.SearchStrategy[str]:
    printable = st.characters(min_codepoint=32, max_codepoint=126)
    pattern = schema.get("pattern", "").replace("$", r"\Z")
    found = st.from_regex(pattern, alphabet=printable) if pattern else TEXT
    lengths = range(schema.get("minLength", 0), schema.get("maxLength", 300) + 1)
    return found.filter(lambda text: len(text) in lengths and not _denied(schema, text))


def _denied(schema: Any, text: str) -> bool:
    denied = schema.get("not", {})
    return text == denied.get("const") or ("pattern" in denied and bool(re.search(denied["pattern"], text)))


def _array(schema: Any, definitions: Any) -> st.SearchStrategy[list[Any]]:
    least = schema.get("minItems", 0)
    most = schema.get("maxItems", max(AT_MOST, least))
    items = accepted(schema["items"], definitions)
    return st.lists(items, min_size=least, max_size=most, unique_by=str if schema.get("uniqueItems") else None)


def _object(schema: Any, definitions: Any) -> st.SearchStrategy[dict[str, Any]]:
    properties = {name: accepted(each, definitions) for name, each in schema.get("properties", {}).items()}
    required = schema.get("required", [])
    if properties:
        return st.fixed_dictionaries(
            {name: each for name, each in properties.items() if name in required},
            optional={name: each for name, each in properties.items() if name not in required},
        )
    if "additionalProperties" not in schema:
        return st.just({})
    names = accepted({"type": "string", **schema["propertyNames"]}, definitions)
    return st.dictionaries(names, accepted(schema["additionalProperties"], definitions), max_size=AT_MOST)


def _number(schema: Any, _: Any) -> st.SearchStrategy[float]:
    return st.floats(schema.get("minimum", -(10**6)), schema.get("maximum", 10**6))


_BY_TYPE: dict[str, Any] = {
    "string": _string,
    "array": _array,
    "object": _object,
    "boolean": lambda *_: st.booleans(),
    "number": _number,
    "integer": lambda schema, _: st.integers(schema.get("minimum", -(10**6)), schema.get("maximum", 10**6)),
}
