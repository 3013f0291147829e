"""Answers: rendered once, and chosen for a request."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .request import Request

#: An answer of so many bytes is not copied into one piece with its head.
_LARGE = 1 << 12

TEXT = "text/plain; charset=utf-8"
_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    414: "URI Too Long",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}


class Reply:
    """An answer, rendered once in every form in which it may be asked for: by how the connection goes on (closed; kept;
    kept although the client speaks HTTP/1.0), the head alone, and the pieces of head and body."""

    __slots__ = ("body", "get", "head", "status")

    def __init__(self, status: int, body: str, content_type: str = TEXT, extra: str = "") -> None:
        self.status, self.body = status, body
        data = body.encode()
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {content_type}\r\n"
            f"Content-Length: {len(data)}\r\nCache-Control: no-store\r\n{extra}"
        )
        heads = [(head + how + "\r\n").encode() for how in ("Connection: close\r\n", "", "Connection: keep-alive\r\n")]
        self.head = tuple((form,) for form in heads)
        self.get = tuple((form, data) if len(data) >= _LARGE else (form + data,) for form in heads)


ALLOW = Reply(405, "only GET and HEAD are served here", extra="Allow: GET, HEAD\r\n")
ERRORS = {
    400: Reply(400, "this is not an HTTP request"),
    404: Reply(404, "not here: try /, /healthz, /readyz, /livez, /metrics or /status"),
    408: Reply(408, "the request took too long"),
    414: Reply(414, "the request line is too long"),
    431: Reply(431, "the headers are too large"),
    500: Reply(500, "the watchdog could not render this page; its log says why"),
    505: Reply(505, "only HTTP/1.0 and HTTP/1.1 are served here"),
}


def choose(
    pages: Mapping[bytes, Callable[[Request], Reply]], request: Request, failed: Callable[[str], None]
) -> tuple[bytes, ...]:
    """The pieces of the answer to a request. failed: told why a page could not be rendered."""
    if request.status != 200:
        return ERRORS[request.status].get[0]
    form = 0 if not request.keep_alive else 2 if request.old else 1
    page = pages.get(request.path)
    if request.method not in (b"GET", b"HEAD"):
        reply = ALLOW
    elif page is None:
        reply = ERRORS[404]
    else:
        try:
            reply = page(request)
        except Exception as error:  # noqa: BLE001 - a page that cannot be rendered must not end the watchdog
            failed(f"{request.path.decode(errors='replace')}: {type(error).__name__}: {error}")
            reply = ERRORS[500]
    return reply.head[form] if request.method == b"HEAD" else reply.get[form]
