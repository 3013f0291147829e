"""Requests and answers of one client after the other: what has arrived is answered, what the client does not take is
kept for a while."""

from __future__ import annotations

import socket
from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT
from time import monotonic

from .reply import Reply, choose
from .request import Request, split

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .clients import Client, Clients

#: Seconds a connection may be idle; to complete a request; to take an answer; to hear of a refusal.
IDLE, COMPLETE, TAKE, LINGER = 60.0, 10.0, 10.0, 1.0
#: Bytes that may wait for one client before its next requests are left unread.
MAX_WAITING = 1 << 16
#: Requests of one client that are answered before it is another's turn.
_IN_A_ROW = 32
_READ = 1 << 12


class Talk:
    """With all `clients`, of `pages` (path -> a call that gives the reply to a request).

    failed: told why a page could not be rendered.
    """

    def __init__(
        self, clients: Clients, pages: Mapping[bytes, Callable[[Request], Reply]], failed: Callable[[str], None]
    ) -> None:
        self._clients = clients
        self._pages = pages
        self._failed = failed

    def ready(self, client: Client, events: int) -> None:
        """Its socket has something, or takes something."""
        try:
            if events & EPOLLOUT:
                self._send(client, [])
            elif events & EPOLLIN:
                self._receive(client)
            elif events & (EPOLLERR | EPOLLHUP):
                self._clients.drop(client)
        except BlockingIOError:
            return
        except OSError:  # the client has gone; which way does not matter
            self._clients.drop(client)

    def _receive(self, client: Client) -> None:
        data = client.socket.recv(_READ)
        if client.draining:
            if not data:
                self._clients.drop(client)
            return
        if not data:
            # A client may close its sending half right after the request; that one was answered already.
            self._clients.drop(client)
            return
        if client.received:
            data = client.received + data
        self._answer(client, data)

    def _answer(self, client: Client, data: bytes) -> None:
        """Answer complete requests in `data`, in order and not too many; keep what is left."""
        answers: list[bytes | memoryview] = []
        size = count = 0
        while data and size < MAX_WAITING and count < _IN_A_ROW:
            found = split(data)
            if found is None:
                break
            request, taken = found
            data = data[taken:]
            answer = choose(self._pages, request, self._failed)
            answers += answer
            size += sum(map(len, answer))
            count += 1
            if not request.keep_alive:
                client.closing = True
                data = b""
        begun = not client.received
        client.received = data
        if not answers:
            if begun:
                client.deadline = monotonic() + COMPLETE  # its first byte: the request has to be complete by then
            self._clients.account(client)
            return
        client.deadline = monotonic() + (COMPLETE if data else IDLE)
        self._clients.finished_request(client)
        more = count == _IN_A_ROW or size >= MAX_WAITING
        self._send(client, answers, more=bool(data) and more)

    def refuse(self, client: Client, reply: Reply) -> None:
        """Say this, and read nothing more."""
        client.closing = True
        client.received = b""
        try:
            self._send(client, [*reply.get[0]])
        except OSError:
            self._clients.drop(client)

    def _send(self, client: Client, answers: list[bytes | memoryview], *, more: bool = False) -> None:
        """Send, or what does not fit into the socket's buffer: keep, and read nothing more until it is gone.

        more: there are complete requests left; when the socket takes something again, it is their turn.
        """
        before = client.writing
        pieces = client.waiting + answers
        sent = 0
        if pieces:
            try:
                sent = client.socket.sendmsg(pieces[:_IN_A_ROW])
            except BlockingIOError:
                sent = 0
        client.waiting = _rest(pieces, sent)
        if client.waiting or more:
            if sent or not before:
                client.deadline = monotonic() + TAKE
            if not before:
                client.writing = True
                self._clients.watch(client, EPOLLOUT)
            self._clients.account(client)
            return
        if before:
            client.writing = False
            client.deadline = monotonic() + IDLE
            self._clients.watch(client, EPOLLIN)
        self._clients.account(client)
        if client.closing:
            self._end(client)
        elif before and client.received:
            self._answer(client, client.received)

    def _end(self, client: Client) -> None:
        """Close such that the client gets the answer.

        Closing a socket that holds unread data resets the connection, and a reset may overtake the answer:
        so the sending half is closed first, and what comes in is read for a moment.
        """
        client.socket.shutdown(socket.SHUT_WR)
        client.draining = True
        client.deadline = monotonic() + LINGER
        self._receive(client)


def _rest(pieces: list[bytes | memoryview], sent: int) -> list[bytes | memoryview]:
    """What is left of them, without a copy."""
    for number, piece in enumerate(pieces):
        if sent < len(piece):
            return [memoryview(piece)[sent:] if sent else piece, *pieces[number + 1 :]]
        sent -= len(piece)
    return []
