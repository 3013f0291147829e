"""wg0.conf (and wg0.address beside it) -> Tunnel.

`source` reads a file, `syntax` says what is in it, `values` what each value means, and this module
whether all of it makes one tunnel. Whatever is wrong ends as one ConfigError of one line, never as half a
result.
"""

# This is loaded on every start. Hence paths are plain strings (pathlib costs more than all of this), and there
# is no `from __future__ import annotations` (of which NamedTuple would compile every annotation).
import os
from binascii import a2b_base64, b2a_base64
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Any, NamedTuple

from init_wg.config import serverfiles, source, syntax, values
from init_wg.errors import ConfigError
from init_wg.model.secret import Secret

OWN_MARK = 51820
LEAST_IPV6_MTU = 1280
READABLE_BY_ALL = 0o004
SHOWN_NAMES = 8  # of files, in one error
_UNREPLACED = "$("  # Kubernetes leaves $(NAME) in a value as it is where it knows no NAME
MEMORY_FILE = "/memfd:"  # memfd_create(2), in /proc/self/fd

# What wg-quick would do and init-wg has its own way for.
IGNORED = {
    "FwMark": f"init-wg always uses the mark {OWN_MARK}",
    "Table": "init-wg makes its own routes in its own table",
    "SaveConfig": "init-wg never writes to the file",
}


class Endpoint(NamedTuple):
    """Where a peer listens: a host (an IP address or a name, without brackets) and a UDP port."""

    host: str
    port: int


class Peer(NamedTuple):
    """One [Peer]. Keys are base64, 44 characters; keepalive is in seconds, 0 is off."""

    public_key: str
    preshared_key: Secret | None
    endpoint: Endpoint | None
    allowed_ips: tuple[IPv4Network | IPv6Network, ...]
    keepalive: int


class Tunnel(NamedTuple):
    """One server's file, validated. `notices` are sentences to be logged once (what is ignored, and why)."""

    name: str
    path: str
    private_key: Secret
    addresses: tuple[IPv4Interface | IPv6Interface, ...]
    dns: tuple[IPv4Address | IPv6Address, ...]
    search: tuple[str, ...]
    mtu: int | None
    listen_port: int | None
    peers: tuple[Peer, ...]
    notices: tuple[str, ...]


def servers(path: str) -> tuple[str, ...]:
    """The config files at `path` in name order: itself, or those of a folder (see serverfiles). Raises ConfigError."""
    where = source.shown(path) or "(an empty path)"
    try:
        folder, names = serverfiles.listing(path)
    except NotADirectoryError:
        return (path,)
    except FileNotFoundError:
        raise ConfigError(_missing(path)) from None
    except PermissionError:
        raise ConfigError(f"{where}: no permission to list it: correct its owner or mode") from None
    except (OSError, ValueError):  # ValueError: a NUL in the name
        raise ConfigError(f"{where}: cannot be listed: check the path and the volume it is on") from None
    files = tuple(os.path.join(folder, name) for name in names)
    found = tuple(file for file in files if not os.path.isdir(file))
    if not found and folder != path:
        raise ConfigError(_missing(path) if _UNREPLACED in path else _no_match(path, folder))
    if not found:
        raise ConfigError(source.folder(files[0]) if files else _no_servers(path))
    return found


def _no_match(path: str, folder: str) -> str:
    """A pattern that no file matches: most likely a replica for which nobody has put a file into the Secret."""
    _, names = serverfiles.listing(folder)
    shown = ", ".join(source.shown(name)[:60] for name in names[:SHOWN_NAMES]) or "no *.conf at all"
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return (
        f"{source.shown(path)}: no file matches: there is {shown}{more}: "
        "put one for this replica beside them, or correct WG_CONFIG"
    )


def _no_servers(path: str) -> str:
    """What to do about a folder without *.conf, by what is there instead."""
    where = source.shown(path)
    there = sorted(name for name in os.listdir(path) if not name.startswith("."))
    if not there and path.rstrip("/").endswith(".conf"):
        return source.folder(path)
    what = f"{where}: a folder without *.conf: put a WireGuard configuration in it, as in wg0.conf"
    if not there:
        return what
    named = ", ".join(source.shown(name)[:40] for name in there[:5])
    return f"{what}; there is {named}: the name of the file, or of the Secret's key, has to end in .conf"


def name(path: str) -> str:
    """The server's name: its file's, without .conf. The watchdog keeps a copy of a file in memory, under its name."""
    try:
        kept = os.readlink(path)
    except (OSError, ValueError):
        kept = ""
    if kept.startswith(MEMORY_FILE):
        return kept.removeprefix(MEMORY_FILE).removesuffix(" (deleted)")
    return os.path.basename(path).removesuffix(".conf")


def load(path: str) -> Tunnel:
    """Read and validate one file. Raises ConfigError whose text has file:line and what to do."""
    text, mode = source.read(path, _missing(path))
    interface, peers, hooks = _sections(text, path)
    addresses = _addresses(interface, path)
    _refuse_small_mtu(interface, addresses, path)
    _refuse_shared_networks(peers, path)
    dns = interface.all("DNS")
    return Tunnel(
        name=name(path),
        path=path,
        private_key=Secret(interface.one("PrivateKey")),
        addresses=addresses,
        dns=_unique(entry for entry in dns if not isinstance(entry, str)),
        search=_unique(entry for entry in dns if isinstance(entry, str)),
        mtu=interface.one("MTU"),
        listen_port=interface.one("ListenPort"),
        peers=tuple(_peer(peer) for peer in peers),
        notices=tuple(_notices(interface, peers, hooks, path, mode)),
    )


def _sections(text: str, path: str) -> tuple[syntax.Section, list[syntax.Section], dict[str, list[int]]]:
    """A file of another kind is called by its name, instead of by the first line that is wrong in it."""
    try:
        return syntax.sections(text, path)
    except ConfigError:
        from init_wg.config import other_formats

        if what := other_formats.text(text):
            raise ConfigError(f"{source.shown(path)}: {what}") from None
        raise


def refuse_own_key(tunnel: Tunnel) -> None:
    """Raises ConfigError when a peer's PublicKey is the one of the file's own PrivateKey: WireGuard leaves such a
    peer out without a word. Costs some milliseconds, so it is asked where that is seen, or where time is no matter.
    """
    from init_wg.config import x25519

    own = b2a_base64(x25519.public_key(a2b_base64(tunnel.private_key)), newline=False).decode()
    if all(peer.public_key != own for peer in tunnel.peers):
        return
    text, _ = source.read(tunnel.path, _missing(tunnel.path))
    _, peers, _ = syntax.sections(text, tunnel.path)
    line = next((peer.lines("PublicKey")[0] for peer in peers if peer.one("PublicKey") == own), 1)
    source.fail(tunnel.path, line, "this PublicKey belongs to this file's own PrivateKey: put the server's there")


def _missing(path: str) -> str:
    where = source.shown(path) or "(an empty path)"
    if _UNREPLACED in path:
        return (
            f"{where}: no such file: nothing has replaced $(NAME): set NAME in the container's env before WG_CONFIG, "
            "and WG_CONFIG there, too, not in a ConfigMap"
        )
    return f"{where}: no such file or folder: mount it there, or name the right one in WG_CONFIG"


def _peer(section: syntax.Section) -> Peer:
    preshared = section.one("PresharedKey")
    return Peer(
        public_key=section.one("PublicKey"),
        preshared_key=None if preshared is None else Secret(preshared),
        endpoint=Endpoint(*section.one("Endpoint")),
        allowed_ips=_unique(section.all("AllowedIPs")),
        keepalive=section.one("PersistentKeepalive") or 0,
    )


def _unique(items: Iterable[Any]) -> tuple[Any, ...]:
    """In the order of the file, each once: saying a network twice is no mistake, and the kernel keeps one."""
    return tuple(dict.fromkeys(items))


def _address_file(path: str) -> str:
    return path.removesuffix(".conf") + ".address"


def _addresses(interface: syntax.Section, path: str) -> tuple[IPv4Interface | IPv6Interface, ...]:
    """The tunnel's own addresses: `Address`, or the .address file beside (`wg setconf` has no such key)."""
    items, file = interface.items.get("Address"), path
    if items is None:
        file = _address_file(path)
        beside = source.shown(file)
        missing = f"this [Interface] has no Address: add it, or put it in {beside}"
        text, _ = source.read(file, f"{source.shown(path)}:{interface.line}: {missing}")
        items = syntax.addresses(text, file)
    seen: dict[IPv4Address | IPv6Address, int] = {}
    for item in items:
        if item.value.ip in seen:
            source.fail(file, item.line, f"the same address as in line {seen[item.value.ip]}: keep one of the two")
        seen[item.value.ip] = item.line
    return tuple(item.value for item in items)


def _refuse_small_mtu(
    interface: syntax.Section, addresses: tuple[IPv4Interface | IPv6Interface, ...], path: str
) -> None:
    """Below 1280 the kernel silently takes IPv6 off an interface (RFC 8200, section 5)."""
    mtu = interface.one("MTU")
    if mtu is not None and mtu < LEAST_IPV6_MTU and any(address.version == 6 for address in addresses):
        line = interface.lines("MTU")[0]
        source.fail(path, line, f"MTU is below {LEAST_IPV6_MTU}, but there is an IPv6 Address: raise it or delete it")


def _refuse_shared_networks(peers: list[syntax.Section], path: str) -> None:
    """No network may be in two peers: WireGuard silently moves it to the last one. A network within another peer's is
    right: the longest prefix decides, as in a routing table (cryptokey routing, WireGuard whitepaper, section 2)."""
    owned = [(item.value, number, item.line) for number, peer in enumerate(peers) for item in peer.items["AllowedIPs"]]
    owners: dict[IPv4Network | IPv6Network, tuple[int, int]] = {}
    for network, number, line in owned:
        owner, first = owners.setdefault(network, (number, line))
        if owner != number:
            what = f"AllowedIPs has a network that the peer in line {first} has: keep it in one peer"
            if network.prefixlen <= 1:
                what += "; for fail-over, write each server into a file of its own, all in one folder (WG_CONFIG)"
            source.fail(path, line, what)


def _notices(
    interface: syntax.Section, peers: list[syntax.Section], hooks: dict[str, list[int]], path: str, mode: int
) -> list[str]:
    """What is in the file and has no effect, and who else can read it."""
    where = source.shown(path)
    found = []
    for names, why in (
        (syntax.HOOKS, "init-wg runs no commands, and has a kill-switch of its own"),
        (syntax.APPLICATIONS, "the whole pod uses the tunnel"),
    ):
        if named := ", ".join(_with_lines(name, lines) for name, lines in hooks.items() if name in names):
            found.append(f"{where}: ignored: {named}: {why}")
    for name, why in IGNORED.items():
        if name in interface.items and (name, interface.one(name)) != ("FwMark", OWN_MARK):
            found.append(f"{where}: ignored: {_with_lines(name, interface.lines(name))}: {why}")
    if "Address" in interface.items and os.path.exists(_address_file(path)):
        beside = source.shown(_address_file(path))
        found.append(f"{beside}: ignored: {where} has an Address of its own")
    found += [
        f"{where}:{peer.lines('Endpoint')[0]}: Endpoint is in this pod: what listens there (an obfuscator) leaves the "
        "pod only for addresses in BYPASS_CIDRS; the kill-switch refuses all else that is not in the tunnel"
        for peer in peers
        if _is_loopback(peer.one("Endpoint")[0])
    ]
    if mode & READABLE_BY_ALL:
        found.append(f"{where}: everybody can read this file and the key in it: set its mode to 0400")
    return found


def _is_loopback(host: str) -> bool:
    return host == "::1" or (host.startswith("127.") and not host.strip(values.DIGITS + "."))


def _with_lines(name: str, lines: list[int]) -> str:
    """As in "PostUp (lines 4, 5)"."""
    return f"{name} (line{'s' if len(lines) > 1 else ''} {', '.join(map(str, lines))})"
