"""Says where one seems to come from: HTTP on port 80, UDP on port 9. Debian's smallest Python has no http.server."""

from __future__ import annotations

import contextlib
import selectors
import socket

selector = selectors.DefaultSelector()
web = socket.create_server(("", 80), backlog=512)
echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
echo.bind(("", 9))
for each in (web, echo):
    each.setblocking(False)
    selector.register(each, selectors.EVENT_READ)


def answer(connection: socket.socket, address: str) -> None:
    """As soon as there is a request."""
    if connection.recv(4096):
        connection.sendall(
            f"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len(address)}\r\n\r\n{address}".encode()
        )
    selector.unregister(connection)
    connection.close()


while True:
    for key, _ in selector.select():
        with contextlib.suppress(OSError):
            if key.fileobj is web:
                connection, client = web.accept()
                connection.setblocking(False)
                selector.register(connection, selectors.EVENT_READ, client[0])
            elif key.fileobj is echo:
                _message, sender = echo.recvfrom(2048)
                echo.sendto(sender[0].encode(), sender)
            elif isinstance(key.fileobj, socket.socket):
                answer(key.fileobj, key.data)
