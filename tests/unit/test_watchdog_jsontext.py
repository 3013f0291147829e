"""JSON text that is written by hand is what the standard library would write."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watchdog.web import jsontext

SIMPLE = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
#: Bytes of a file's name that are no UTF-8 are lone surrogates.
STRINGS = st.text(st.characters(codec=None))


@given(st.recursive(SIMPLE | STRINGS, lambda each: st.lists(each) | st.dictionaries(STRINGS, each) | st.tuples(each)))
def test_any_value(value: object) -> None:
    assert jsontext.text(value) == json.dumps(value, indent=2)


def test_what_has_no_json_text_is_an_error() -> None:
    with pytest.raises(TypeError, match="set has no JSON text"):
        jsontext.text({"a": {1}})
