"""HTTP/1.x requests: bytes in, what they ask for out. No I/O (RFC 9112).

A server that answers five short GETs needs no body, no chunks and no trailers. A client that sends one gets an answer,
and then the connection ends: where the next request would start is then nobody's guess.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

#: Longest request line and longest head (request line and headers), in bytes.
MAX_LINE, MAX_HEAD = 2048, 8192

_TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_CONTROLS = bytes([*range(9), *range(10, 32), 127])


class Request(NamedTuple):
    """The request of a client. status: 200, or why it cannot be understood (400, 414, 431, 501, 505)."""

    status: int
    method: bytes
    path: bytes
    keep_alive: bool
    #: HTTP/1.0: keeping the connection has to be said in the answer.
    old: bool
    #: The media ranges of Accept in lower case, b"" when it was not said.
    accept: bytes = b""

    def wants(self, kind: bytes) -> bool:
        """Is this media type asked for by its own name? Programs that take anything (`*/*`) do not say so."""
        for each in self.accept.split(b","):
            name, *parameters = (part.strip() for part in each.split(b";"))
            if name == kind and not any(part.startswith(b"q=") and not part[2:].strip(b"0.") for part in parameters):
                return True
        return False


def _bad(status: int) -> Request:
    return Request(status, b"", b"", keep_alive=False, old=False)


_BAD = _bad(400)
_LONG_LINE = _bad(414)
_LONG_HEAD = _bad(431)


def split(data: bytes) -> tuple[Request, int] | None:
    """The first request of `data` and how many bytes it took; None: not complete yet.

    Never raises, and never asks for more than MAX_HEAD bytes.
    """
    start = 0
    if data[:1] in (b"\r", b"\n"):  # RFC 9112, 2.2: empty lines before a request are ignored
        start = len(data) - len(data.lstrip(b"\r\n"))
        if start > MAX_LINE:
            return _BAD, len(data)
    end = data.find(b"\r\n\r\n", start)
    # A line may end with a bare LF, too: whoever types a request by hand sends that.
    bare = data.find(b"\n\n", start, end if end >= 0 else len(data))
    mixed = data.find(b"\n\r\n", start, end if end >= 0 else len(data))
    if bare >= 0 or mixed >= 0:
        end, length = (bare, 2) if mixed < 0 or 0 <= bare < mixed else (mixed, 3)
    else:
        length = 4
    if end < 0:
        return _unfinished(data, start)
    if end - start > MAX_HEAD:
        return _too_large(data, start), end + length
    return parse(data[start:end]), end + length


def _unfinished(data: bytes, start: int) -> tuple[Request, int] | None:
    """Refuse as early as possible what will never become a request."""
    method = data[start : start + 64].split(b" ", 1)[0]
    if not _TOKEN.issuperset(method) or len(method) > 32:
        return _BAD, len(data)  # a TLS greeting or other binary data
    size = len(data) - start
    if size > MAX_LINE and data.find(b"\n", start, start + MAX_LINE + 2) < 0:
        return _LONG_LINE, len(data)
    return (_LONG_HEAD, len(data)) if size > MAX_HEAD else None


def _too_large(data: bytes, start: int) -> Request:
    return _LONG_LINE if data.find(b"\n", start, start + MAX_LINE + 2) < 0 else _LONG_HEAD


def parse(head: bytes) -> Request:
    """A whole head, without the empty line that ends it.

    A client sends the same few bytes over and over; those of usual length are remembered.
    """
    return _remembered(head) if len(head) <= 512 else _parse(head)


def _parse(head: bytes) -> Request:
    line, *headers = head.replace(b"\r\n", b"\n").split(b"\n")
    if len(line) > MAX_LINE:
        return _LONG_LINE
    words = line.split(b" ")
    if len(words) != 3:
        return _BAD
    method, target, version = words
    if not method or not _TOKEN.issuperset(method) or not target or not target.isascii():
        return _BAD
    if len(version) != 8 or not version.startswith(b"HTTP/") or version[6:7] != b".":
        return _BAD
    if not (version[5:6] + version[7:8]).isdigit():
        return _BAD
    if version[5:6] != b"1":
        return _bad(505)
    if line.translate(None, _CONTROLS) != line or b"\t" in line:
        return _BAD
    found = _headers(headers)
    if found is None:
        return _BAD
    old = version == b"HTTP/1.0"
    hosts = found.get(b"host", [])
    if len(hosts) > 1 or (not hosts and not old):
        return _BAD
    path = _path(target)
    if path is None:
        return _BAD
    options = {word.strip().lower() for value in found.get(b"connection", ()) for word in value.split(b",")}
    keep = b"keep-alive" in options if old else b"close" not in options
    if status := _wrong_length(found):
        return _bad(status)
    if _has_body(found):
        keep = False
    return Request(200, method, path, keep, old, b",".join(found.get(b"accept", ())).lower())


_remembered = lru_cache(maxsize=64)(_parse)


def _headers(lines: list[bytes]) -> dict[bytes, list[bytes]] | None:
    found: dict[bytes, list[bytes]] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        # A space before the colon or at the line's start (an obsolete continuation line) is how requests are
        # smuggled: RFC 9112, 5.1 and 5.2.
        if not colon or not name or not _TOKEN.issuperset(name):
            return None
        if value.translate(None, _CONTROLS) != value:
            return None
        found.setdefault(name.lower(), []).append(value.strip())
    return found


def _wrong_length(found: dict[bytes, list[bytes]]) -> int:
    """Where two readers may differ about the body's end: 400, or 501 for what only others decode; 0 when all is well.

    Several lengths have to be one and the same, in digits alone (RFC 9110, 8.6); one coding, and that is "chunked".
    """
    lengths = {each.strip() for value in found.get(b"content-length", ()) for each in value.split(b",")}
    if len(lengths) > 1 or not all(each.isdigit() and len(each) <= 20 for each in lengths):
        return 400
    codings = found.get(b"transfer-encoding", [])
    return 501 if codings and [each.lower() for each in codings] != [b"chunked"] else 0


def _has_body(found: dict[bytes, list[bytes]]) -> bool:
    return b"transfer-encoding" in found or any(value != b"0" for value in found.get(b"content-length", ()))


def _path(target: bytes) -> bytes | None:
    """The path of a request target: origin form, absolute form, or "*"."""
    if target[:7].lower() == b"http://":
        slash = target.find(b"/", 7)
        target = target[slash:] if slash >= 0 else b"/"
    elif not target.startswith(b"/") and target != b"*":
        return None
    return target.partition(b"?")[0].partition(b"#")[0]
