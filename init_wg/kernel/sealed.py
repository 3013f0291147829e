"""Is this network sealed? The one answer for `up`, `status` and the watchdog, from the kernel's own tables.

`up` asks before anything heavy is imported: three small nfnetlink messages, read with `struct` alone.
"""

from __future__ import annotations

import _socket  # not `socket`, whose import costs more than everything here
import errno
import os
from struct import pack

from init_wg.kernel.walk import DONE, ERROR, HEADER, attribute, attribute_list, attributes, error_number, messages

#: Of both our tables. Spelt out here, so that the watchdog need not load the ruleset's text.
TABLE = "init_wg"
_NETFILTER, _NF_TABLES = 12, 10
GET_TABLE, GET_CHAIN, GET_RULE = 1, 4, 7
_REQUEST_AND_ACK, DUMP = 0x5, 0x300
_INET, _LOCAL_OUT, _DORMANT, _DROP, _ACCEPT = 1, 3, 1, 0, 1  # NFPROTO_INET, NF_INET_LOCAL_OUT, NFT_TABLE_F_DORMANT
#: Expressions that let only some packets come as far as the verdict.
_MATCHES = frozenset((b"cmp", b"lookup", b"range", b"limit", b"quota", b"fib", b"numgen", b"connlimit", b"match"))


def in_place() -> bool:
    """Does our kill-switch decide what leaves? Raises OSError (EPERM without NET_ADMIN).

    The table of our name is there and not dormant. Its output chain is a filter at the output hook, drops what it
    does not know, and has no rule that accepts everything. Any other difference from the design is drift, for `up`.
    """
    table, chain = _name(1, TABLE), _name(3, "output")  # NFTA_TABLE_NAME; NFTA_CHAIN_NAME
    try:
        (found,) = ask(GET_TABLE, _INET, table)
        if _number(attributes(found, 4).get(2, b"")) & _DORMANT:  # NFTA_TABLE_FLAGS
            return False
        (found,) = ask(GET_CHAIN, _INET, table + chain)
        # The rules of one chain: NFTA_RULE_CHAIN is not NFTA_CHAIN_NAME.
        rules = ask(GET_RULE, _INET, table + _name(2, "output"), DUMP)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return _drops(attributes(found, 4)) and not any(map(_accepts_everything, rules))


def _drops(chain: dict[int, bytes]) -> bool:
    """NFTA_CHAIN_HOOK, with its NFTA_HOOK_HOOKNUM; NFTA_CHAIN_POLICY; NFTA_CHAIN_TYPE."""
    hook = attributes(chain.get(4, b"")).get(1)
    return hook is not None and (_number(hook), _number(chain.get(5, b"\1")), chain.get(7)) == (
        _LOCAL_OUT, _DROP, b"filter\0",
    )  # fmt: skip


def _accepts_everything(data: bytes) -> bool:
    rule = attributes(data, 4)
    if (rule.get(1), rule.get(2)) != (TABLE.encode() + b"\0", b"output\0"):
        return False  # kernels before 5.8 dump the rules of all chains
    accepts = False
    for _, element in attribute_list(rule.get(4, b"")):  # NFTA_RULE_EXPRESSIONS
        expression = attributes(element)
        name = expression.get(1, b"").rstrip(b"\0")
        if name in _MATCHES:
            return False
        if name == b"immediate":  # NFTA_IMMEDIATE_DATA, NFTA_DATA_VERDICT, NFTA_VERDICT_CODE
            verdict = attributes(attributes(attributes(expression.get(2, b"")).get(2, b"")).get(2, b""))
            accepts |= _number(verdict.get(1, b"")) == _ACCEPT
    return accepts


def ask(message: int, family: int, asked: bytes, flags: int = 0) -> list[bytes]:
    """One nf_tables question; every answer without its netlink header. Raises OSError with the kernel's errno."""
    body = pack("=BBH", family, 0, 0) + asked
    kind = _NF_TABLES << 8 | message
    answers: list[bytes] = []
    kernel = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, _NETFILTER)
    try:
        kernel.send(HEADER.pack(16 + len(body), kind, flags | _REQUEST_AND_ACK, 1, 0) + body)
        while True:
            for kind, _, _, _, payload in messages(kernel.recv(1 << 17)):
                if kind not in (ERROR, DONE):
                    answers.append(payload)
                    continue
                if code := error_number(payload):
                    raise OSError(code, os.strerror(code))
                return answers
    finally:
        kernel.close()


def _name(kind: int, text: str) -> bytes:
    """A netlink attribute that is a string."""
    return attribute(kind, text.encode() + b"\0")


def _number(data: bytes) -> int:
    """nf_tables' numbers are big-endian."""
    return int.from_bytes(data, "big")
