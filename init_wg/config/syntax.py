"""The text of a WireGuard file -> its sections, every value with its line, nothing guessed.

wgconfig splits keys, values and sections. It is lenient in silence (it skips a section behind a byte order
mark, takes junk for keys, lets one peer overwrite another), so it never sees the file itself. A strict scan
decides first what each line is, and refuses what it does not understand. wgconfig gets the plain text of
that. Its result must be what the scan saw.
"""

# No `from __future__ import annotations`, of which NamedTuple would compile every annotation.
import io
from collections.abc import Callable
from typing import Any, NamedTuple

from init_wg.config import values
from init_wg.config.source import fail, lines, shown
from init_wg.errors import ConfigError

MOST_DIGITS = 10  # of a number: a mark or a routing table has 32 bits
LONGEST_NAME = 20  # characters of an unknown word that an error repeats; a key has 44

INTERFACE = "Interface"
PEER = "Peer"
HOOKS = ("PreUp", "PostUp", "PreDown", "PostDown")


class Key(NamedTuple):
    """Where a key belongs, how its values are read, whether in a list, whether it has to be there."""

    section: str
    parse: Callable[[str], Any]
    many: bool = False
    needed: bool = False


# wg(8) "CONFIGURATION FILE FORMAT" and wg-quick(8) "CONFIGURATION". Case does not matter.
KEYS = {
    "PrivateKey": Key(INTERFACE, values.private_key, needed=True),
    "Address": Key(INTERFACE, values.address, many=True),
    "DNS": Key(INTERFACE, values.resolver, many=True),
    "MTU": Key(INTERFACE, values.mtu),
    "ListenPort": Key(INTERFACE, values.port),
    "FwMark": Key(INTERFACE, values.fwmark),
    "Table": Key(INTERFACE, values.table),
    "SaveConfig": Key(INTERFACE, values.boolean),
    "PublicKey": Key(PEER, values.key, needed=True),
    "PresharedKey": Key(PEER, values.preshared_key),
    "Endpoint": Key(PEER, values.endpoint, needed=True),
    "AllowedIPs": Key(PEER, values.network, many=True, needed=True),
    "PersistentKeepalive": Key(PEER, values.keepalive),
}
# Commands and the like are noted and nothing more: their text goes nowhere, not even to wgconfig.
HOOK = Key(INTERFACE, str)

# What Amnezia's fork of WireGuard has beside these; its servers answer to nothing else.
AMNEZIA = frozenset(
    "jc jmin jmax s1 s2 s3 s4 h1 h2 h3 h4 i1 i2 i3 i4 i5 j1 j2 j3 itime advancedsecurity".split()  # noqa: SIM905
)
# Which programs of a phone use the tunnel (wireguard-android): here the whole pod does.
APPLICATIONS = ("IncludedApplications", "ExcludedApplications")
QUOTES = "\"'`"

NAMES = {name.lower(): name for name in (*KEYS, *HOOKS, *APPLICATIONS)}
SECTIONS = {name.lower(): name for name in (INTERFACE, PEER)}

WHY_NEEDED = {
    "PrivateKey": "add the one your provider gave, or your own from `wg genkey`",
    "PublicKey": "add the one of the server",
    "Endpoint": "add the server's host:port, as without it this pod can never reach the peer",
    "AllowedIPs": "add what goes through the tunnel, often '0.0.0.0/0, ::/0'",
}


class Item(NamedTuple):
    """One value: its text, its line, and then what the text means. Its repr hides all but the line."""

    text: str
    line: int
    value: Any = None

    def __repr__(self) -> str:
        return f"Item(hidden, line={self.line})"


class Section(NamedTuple):
    """One [section]: the line of its header, and the items of each key in the order of the file."""

    name: str
    line: int
    items: dict[str, list[Item]]

    def all(self, key: str) -> list[Any]:
        """The values of a key that may be a list; none when it is absent."""
        return [item.value for item in self.items.get(key, ())]

    def one(self, key: str) -> Any:
        """The value of a key that stands once; None when it is absent."""
        return next(iter(self.all(key)), None)

    def texts(self) -> dict[str, list[str]]:
        """The texts alone."""
        return {name: [item.text for item in items] for name, items in self.items.items()}

    def lines(self, key: str) -> list[int]:
        """The lines a key stands in."""
        return sorted({item.line for item in self.items.get(key, ())})


def sections(text: str, file: str) -> tuple[Section, list[Section], dict[str, list[int]]]:
    """The [Interface], the [Peer]s in their order, and the lines of what is ignored; all checked and read."""
    found, hooks = _scan(text, file)
    _check_form(found, file)
    # "Interface" sorts before "Peer", and peers keep their order: wgconfig's order too.
    found.sort(key=lambda section: section.name)
    texts = _parsed_by_wgconfig(found, file)
    interface, *peers = [_valued(section, parsed, file) for section, parsed in zip(found, texts, strict=True)]
    return interface, peers, hooks


def addresses(text: str, file: str) -> list[Item]:
    """The contents of a .address file: addresses, by line or with commas between."""
    found = [
        _read(Item(part, line), "Address", file)
        for line, content in lines(text)
        for part in _split(content, "Address", line, file)
    ]
    if not found:
        fail(file, 1, "no address in this file: put the tunnel's own in it, as in '10.64.0.2/32'")
    return found


def _scan(text: str, file: str) -> tuple[list[Section], dict[str, list[int]]]:
    """Every line that says something is a section, or a known key in its section; or it is an error."""
    found: list[Section] = []
    hooks: dict[str, list[int]] = {}
    for line, content in lines(text):
        if content.startswith("["):
            found.append(Section(_section_name(content, line, file), line, {}))
            continue
        if content.startswith("<") and not found:
            fail(file, line, "HTML, not a WireGuard configuration: download it anew, it may be a log-in page")
        name, value = _key_name(content, line, file)
        if not found:
            fail(file, line, f"{name} stands before any section: put [Interface] or [Peer] above it")
        section = found[-1]
        belongs = KEYS.get(name, HOOK).section
        if section.name != belongs:
            fail(file, line, f"{name} stands below [{section.name}]: move it below [{belongs}]")
        if name not in KEYS:
            hooks.setdefault(name, []).append(line)
        else:
            _add(section, name, value, line, file)
    if not found:
        raise ConfigError(f"{shown(file)}: an empty file: put a WireGuard configuration in it")
    return found, hooks


def _section_name(content: str, line: int, file: str) -> str:
    name = SECTIONS.get(content[1:-1].lower())
    if name is None or content[-1] != "]":
        from init_wg.config.other_formats import SECTIONS as OTHERS

        whose = OTHERS.get(content[1:-1].lower(), "")
        of = f"; this may be a file of {whose}" if whose else ""
        fail(file, line, f"an unknown section: only [Interface] and [Peer] are known, alone on their line{of}")
    return name


def _key_name(content: str, line: int, file: str) -> tuple[str, str]:
    """The known key of a line, and its text. wgconfig would take any line at all for a key."""
    word, equals, value = (part.strip(" \t") for part in content.partition("="))
    if not equals and NAMES.get(content.partition(":")[0].strip(" \t").lower()):
        fail(file, line, "not a 'Key = value' line: write '=' instead of the colon")
    if not equals:
        fail(file, line, "not a 'Key = value' line: correct it, or put # before it if it is a comment")
    name = NAMES.get(word.lower())
    if word.lower() in AMNEZIA and value:
        fail(
            file,
            line,
            f"{word} belongs to AmneziaWG, which is not supported: get a plain WireGuard file for this server; "
            "without these lines it would not answer",
        )
    if name is None and not word.isascii():
        fail(file, line, f"unknown key: it has {_not_ascii(word)}, which is not ASCII: write the line anew by hand")
    if name is None:
        fail(file, line, f"unknown key{_repeatable(word, value)}: correct it, delete it, or put # before it")
    return name, value


def _not_ascii(text: str) -> str:
    """The first character that looks like another one, by its name: many look like nothing at all."""
    from unicodedata import name

    character = next(character for character in text if not character.isascii())
    return f"U+{ord(character):04X} {name(character, 'without a name')}"


def _repeatable(word: str, value: str) -> str:
    """An unknown word, if it is plainly one: letters, then perhaps digits ("Jc", "H1").

    A piece of a key nearly always has a digit between letters, and its end ("Zm9v=") has no value.
    """
    plain = word.isascii() and word.rstrip(values.DIGITS).isalpha() and len(word) <= LONGEST_NAME
    return f" {word}" if plain and value.strip("=") else ""


def _add(section: Section, name: str, value: str, line: int, file: str) -> None:
    """Notes a key's items. What stands once is refused twice: wgconfig would make a list of it."""
    earlier = section.items.setdefault(name, [])
    parts = _split(value, name, line, file)
    if not KEYS[name].many and len(parts) > 1:
        fail(file, line, f"{name} has a comma, but takes one value: keep one")
    if not KEYS[name].many and earlier:
        fail(file, line, f"{name} stands already in line {earlier[0].line}: keep one of the two")
    earlier.extend(Item(part, line) for part in parts)


def _split(value: str, name: str, line: int, file: str) -> list[str]:
    """The parts between commas; in ASCII, since Python takes many other characters for digits and spaces."""
    if not value:
        fail(file, line, f"{name} has no value: add one, or delete the line")
    if not value.isascii():
        fail(
            file, line, f"{name} has a character that is not ASCII ({_not_ascii(value)}): write the value anew by hand"
        )
    if value[0] in QUOTES or value[-1] in QUOTES:
        fail(file, line, f"{name} has quotation marks around its value: delete them")
    parts = [part.strip(" \t") for part in value.split(",")]
    if not all(parts):
        fail(file, line, f"{name} has a comma with nothing beside it: delete the comma")
    # wgconfig makes an int of it, and so another text; or fails, if it is very long.
    if any(part.isdigit() and (len(part) > MOST_DIGITS or part[0] == "0" != part) for part in parts):
        fail(file, line, f"{name} has a number with zeroes in front, or one too large: correct it")
    return parts


def _check_form(found: list[Section], file: str) -> None:
    """One [Interface], at least one [Peer], what each must have, and every peer once."""
    interfaces = [section for section in found if section.name == INTERFACE]
    peers = [section for section in found if section.name == PEER]
    if not interfaces:
        raise ConfigError(f"{shown(file)}: no [Interface] section: add it, with your PrivateKey and Address")
    if len(interfaces) > 1:
        first, second = (section.line for section in interfaces[:2])
        fail(
            file,
            second,
            f"a second [Interface], the first is in line {first}: keep one of the two, or write each server into a "
            "file of its own",
        )
    if not peers:
        raise ConfigError(f"{shown(file)}: no [Peer] section: add it, with PublicKey, Endpoint, AllowedIPs")
    for section in found:
        for name, key in KEYS.items():
            if key.needed and key.section == section.name and name not in section.items:
                why = WHY_NEEDED[name]
                if name == "Endpoint" and "ListenPort" in interfaces[0].items:
                    why += "; with a ListenPort, this may be the server's own file: use the client's"
                fail(file, section.line, f"this [{section.name}] has no {name}: {why}")
    _refuse_twins(peers, file)


def _refuse_twins(peers: list[Section], file: str) -> None:
    """WireGuard knows peers by PublicKey: of two with the same one, wgconfig keeps the second."""
    seen: dict[str, int] = {}
    for peer in peers:
        public = peer.items["PublicKey"][0]
        first = seen.setdefault(_plain_key(public.text), public.line)
        if first != public.line:
            fail(file, public.line, f"the same PublicKey as in line {first}: keep one of the two peers")


def _plain_key(text: str) -> str:
    """In the spelling in which equal keys are equal texts; what is no key is for its reader to refuse."""
    try:
        return values.key(text)
    except values.BadValueError:
        return text


def _parsed_by_wgconfig(found: list[Section], file: str) -> list[dict[str, list[str]]]:
    """The texts of each section as wgconfig parses them, if that is exactly what the scan saw."""
    # Here and not above: who only asks for the types or the folder's list need not wait for it.
    from wgconfig import WGConfig

    parser = WGConfig()
    # Not by name: wgconfig changes names ("wg0" becomes /etc/wireguard/wg0.conf).
    parser.read_from_fileobj(io.StringIO(_plain(found)))
    try:
        # Each is asked once: after an error, wgconfig's next answer is the half that it had read.
        peers = parser.get_peers(keys_only=False, include_disabled=True)
        parsed = [_texts(data) for data in (parser.get_interface(), *peers.values())]
    except Exception:  # noqa: BLE001  whatever it is, its text may quote a key
        parsed = []
    if parsed != [section.texts() for section in found]:
        raise ConfigError(f"{shown(file)}: wgconfig reads this file differently: report it, without its keys")
    return parsed


def _plain(found: list[Section]) -> str:
    """The sections as text in which nothing can be taken in two ways."""
    text: list[str] = []
    for section in found:
        text.append(f"[{section.name}]")
        text += [f"{name} = {', '.join(parts)}" for name, parts in section.texts().items()]
    return "\n".join(text)


def _texts(data: dict[str, Any]) -> dict[str, list[str]]:
    """A section of wgconfig's, each value as a list of texts: it unwraps lists of one and makes ints."""
    lists = {name: value if isinstance(value, list) else [value] for name, value in data.items()}
    return {name: [str(part) for part in value] for name, value in lists.items()}


def _valued(section: Section, parsed: dict[str, list[str]], file: str) -> Section:
    """The section with wgconfig's texts, and the meaning of each beside it."""
    items = {
        name: [_read(Item(text, item.line), name, file) for item, text in zip(items, parsed[name], strict=True)]
        for name, items in section.items.items()
    }
    return section._replace(items=items)


def _read(item: Item, name: str, file: str) -> Item:
    try:
        return item._replace(value=KEYS[name].parse(item.text))
    except values.BadValueError as bad:
        if _is_placeholder(item.text):
            fail(file, item.line, f"{name} has a placeholder (<...>, ${{...}} and the like): put the real value there")
        fail(file, item.line, f"{name} {bad}")


def _is_placeholder(text: str) -> bool:
    """What templates leave where a value belongs; only asked of what could not be read."""
    words = ("your", "replace", "change", "insert", "example", "placeholder", "redacted", "hidden", "xxxx", "todo")
    return text.startswith(("<", "${", "$(", "{{", "{%", "%", "...", "***", "__")) or text.lower().startswith(words)
