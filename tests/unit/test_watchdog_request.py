"""HTTP requests as bytes: what is understood, what is refused, and that nothing ever raises."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from watchdog.web.request import MAX_HEAD, MAX_LINE, Request, parse, split

HOST = b"Host: pod:9999\r\n"


def one(data: bytes) -> Request:
    found = split(data)
    assert found is not None
    return found[0]


@pytest.mark.parametrize(
    ("data", "path", "keep_alive", "old"),
    [
        (b"GET / HTTP/1.1\r\n" + HOST + b"\r\n", b"/", True, False),
        (b"GET /healthz?full=1 HTTP/1.1\r\n" + HOST + b"\r\n", b"/healthz", True, False),
        (b"GET http://pod:9999/livez HTTP/1.1\r\n" + HOST + b"\r\n", b"/livez", True, False),
        (b"GET http://pod:9999 HTTP/1.1\r\n" + HOST + b"\r\n", b"/", True, False),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n", b"/", False, False),
        (b"GET / HTTP/1.1\r\n" + HOST + b"CONNECTION: foo, Close\r\n\r\n", b"/", False, False),
        (b"GET / HTTP/1.0\r\n\r\n", b"/", False, True),
        (b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", b"/", True, True),
        (b"\r\nGET / HTTP/1.1\r\n" + HOST + b"\r\n", b"/", True, False),
        (b"GET / HTTP/1.1\nHost: typed-by-hand\n\n", b"/", True, False),
        (b"GET / HTTP/1.1\nHost: mixed\n\r\n", b"/", True, False),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\n", b"/", False, False),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: 0\r\n\r\n", b"/", True, False),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n", b"/", False, False),
        (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", b"*", True, False),
    ],
)
def test_understood(data: bytes, path: bytes, keep_alive: bool, old: bool) -> None:
    request = one(data)
    assert (request.status, request.path, request.keep_alive, request.old) == (200, path, keep_alive, old)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # a TLS greeting
        (b"hello\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),  # HTTP/0.9
        (b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET / HTTP/1.1 \r\n" + HOST + b"\r\n", 400),
        (b"GET / http/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET / HTTP/1x1\r\n" + HOST + b"\r\n", 400),
        (b"GET relative HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET /\x00 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # RFC 9112, 3.2: no Host
        (b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"no colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Space : before\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b" folded: line\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Bare: carriage\rreturn\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET /" + b"a" * MAX_LINE, 414),
        (b"GET /" + b"a" * MAX_LINE + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
        (b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"a" * MAX_HEAD, 431),
        (b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"a" * MAX_HEAD + b"\r\n\r\n", 431),
        (b"\r\n" * MAX_LINE, 400),
    ],
)
def test_refused(data: bytes, status: int) -> None:
    request = one(data)
    assert request.status == status
    assert not request.keep_alive


@pytest.mark.parametrize("data", [b"", b"G", b"GET /", b"GET / HTTP/1.1\r\n" + HOST, b"\r\n", b"\r"])
def test_not_complete(data: bytes) -> None:
    assert split(data) is None


def test_pipelined_one_after_the_other() -> None:
    data = b"".join(b"GET /%d HTTP/1.1\r\n" % number + HOST + b"\r\n" for number in range(5))
    paths = []
    while data:
        found = split(data)
        assert found is not None
        paths.append(found[0].path)
        data = data[found[1] :]
    assert paths == [b"/0", b"/1", b"/2", b"/3", b"/4"]


def test_longer_heads_are_parsed_like_short_ones() -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\nX: "
    assert parse(head + b"y" * 10) == parse(head + b"y" * 2000)


pieces = st.lists(
    st.one_of(
        st.sampled_from(
            [
                b"GET ", b"HEAD ", b"POST ", b"/", b"/healthz", b" HTTP/1.1", b" HTTP/1.0", b"\r\n", b"\n", b"\r",
                b"Host: a", b"Connection: close", b"Content-Length: 5", b"\r\n\r\n", b"\n\n", b":", b" ", b"\x00",
                b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"a" * 1000, b"a" * 9000,
            ]
        ),
        st.binary(max_size=40),
    ),
    max_size=20,
)  # fmt: skip


def requests(chunks: list[bytes]) -> list[Request]:
    """What a connection makes of data that arrives in these pieces, until it is closed."""
    found, data = [], b""
    for chunk in chunks:
        data += chunk
        while (step := split(data)) is not None:
            request, taken = step
            assert 0 < taken <= len(data)
            found.append(request)
            data = data[taken:]
            if not request.keep_alive:
                return found
            if not data:
                break
    assert len(data) <= MAX_HEAD + MAX_LINE + 4
    return found


@settings(max_examples=1500, deadline=None)
@given(pieces)
def test_any_bytes_in_any_pieces_end_in_requests(chunks: list[bytes]) -> None:
    for request in requests(chunks):
        assert request.status in (200, 400, 414, 431, 505)
        assert request.status == 200 or not request.keep_alive
        assert request.status != 200 or (request.method and request.path)


wellformed = st.lists(
    st.sampled_from(
        [
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"HEAD /livez HTTP/1.1\nHost: a\n\n",
            b"\r\nGET /metrics HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n",
            b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        ]
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=500, deadline=None)
@given(wellformed, st.data())
def test_how_the_bytes_are_cut_does_not_matter(parts: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=12)))
    chunks = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert requests(chunks) == requests([whole])
    assert len(requests([whole])) == len(parts)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param([b"Content-Length: 3", b"Content-Length: 3"], 200, id="the same length twice"),
        pytest.param([b"Content-Length: 3, 3"], 200, id="the same length twice in a list"),
        pytest.param([b"Content-Length: 3", b"Content-Length: 4"], 400, id="two lengths"),
        pytest.param([b"Content-Length: 3, 4"], 400, id="two lengths in a list"),
        pytest.param([b"Content-Length: +3"], 400, id="a sign"),
        pytest.param([b"Content-Length: -1"], 400, id="a negative length"),
        pytest.param([b"Content-Length: 0x3"], 400, id="another base"),
        pytest.param([b"Content-Length: 1_0"], 400, id="as Python writes numbers"),
        pytest.param([b"Content-Length:"], 400, id="no length"),
        pytest.param([b"Content-Length: " + b"1" * 21], 400, id="an endless length"),
        pytest.param([b"Transfer-Encoding: Chunked"], 200, id="chunked"),
        pytest.param([b"Transfer-Encoding: gzip, chunked"], 501, id="two codings"),
        pytest.param([b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"], 501, id="chunked twice"),
        pytest.param([b"Transfer-Encoding: identity"], 501, id="another coding"),
    ],
)
def test_two_readers_never_differ_about_where_a_request_ends(headers: list[bytes], status: int) -> None:
    """The same as h11 says of each."""
    head = b"\r\n".join([b"GET / HTTP/1.1", b"Host: a", *headers])
    assert parse(head).status == status
