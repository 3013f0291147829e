"""The status page for a browser. Its script asks /status for everything but the words of `/`."""

from __future__ import annotations

import os

from .reply import Reply

_HTML = "text/html; charset=utf-8"
_TEMPLATE = os.path.join(os.path.dirname(__file__), "page.html")
#: Nothing from elsewhere, and nothing that an attacker may have written into the page, is loaded or run.
_POLICY = (
    "Content-Security-Policy: default-src 'none'; style-src 'nonce-{0}'; script-src 'nonce-{0}'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n"
    "X-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n"
)


def for_browser(plain: Reply) -> Reply:
    """The same answer for people. Raises OSError where the template cannot be read."""
    nonce = os.urandom(16).hex()
    with open(_TEMPLATE, encoding="utf-8") as file:
        text = fill(file.read(), plain.status == 200, plain.body, nonce)
    return Reply(plain.status, text, _HTML, _POLICY.format(nonce))


def fill(template: str, up: bool, words: str, nonce: str) -> str:
    """nonce: by it the page's own style and script are told from what somebody else wrote into it."""
    for mark, text in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        words = words.replace(mark, text)
    state = "good" if up else "bad"
    return template.replace("{nonce}", nonce).replace("{state}", state).replace("{words}", words)
