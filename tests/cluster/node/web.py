"""The lab's web: says from which address it is asked. HTTP on 80, HTTPS on 443, UDP on 9.   web.py CERTIFICATE KEY"""

from __future__ import annotations

import http.server
import socket
import ssl
import sys
import threading


def address(client: str) -> bytes:
    return client.removeprefix("::ffff:").encode()


class Handler(http.server.BaseHTTPRequestHandler):
    """Every path has the same page."""

    def do_GET(self) -> None:
        body = address(self.client_address[0])
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    request_queue_size = 256


def echo() -> None:
    udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    udp.bind(("::", 9))
    while True:
        _, sender = udp.recvfrom(2048)
        udp.sendto(address(sender[0]), sender)


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
secure = Server(("::", 443), Handler)
secure.socket = context.wrap_socket(secure.socket, server_side=True, do_handshake_on_connect=False)
threading.Thread(target=secure.serve_forever, daemon=True).start()
threading.Thread(target=echo, daemon=True).start()
Server(("::", 80), Handler).serve_forever()
