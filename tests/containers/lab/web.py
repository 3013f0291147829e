"""Says where one seems to come from: HTTP on port 80, and UDP on port 9."""

from __future__ import annotations

import http.server
import socket
import threading


class Answer(http.server.BaseHTTPRequestHandler):
    """The client's address, and nothing else."""

    def do_GET(self) -> None:  # noqa: N802 - the base class's name
        body = self.client_address[0].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def echo() -> None:
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("", 9))
    while True:
        _, client = server.recvfrom(2048)
        server.sendto(client[0].encode(), client)


threading.Thread(target=echo, daemon=True).start()
http.server.ThreadingHTTPServer(("", 80), Answer).serve_forever()
