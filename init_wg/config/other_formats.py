"""Names a file that is no WireGuard configuration: the sentence for people who have one of those.

Loaded only when a file could not be read as what it should be, and never a reason to refuse one that could.
No sentence repeats the text: any of it may be a key.
"""

from __future__ import annotations

from binascii import Error as Base64Error
from binascii import a2b_base64

WIREGUARD = "download the provider's WireGuard file (wg0.conf)"
#: How often people wrap base64 into base64; a bound for what is not meant as such.
WRAPPINGS = 4

BINARY = {
    b"PK\x03\x04": "a ZIP archive: unpack it, and mount one of the files in it",
    b"\x1f\x8b": "compressed with gzip: unpack it, and mount the file in it",
    b"\x89PNG": "a picture: mount the text that its QR code stands for",
    b"\xff\xd8\xff": "a picture: mount the text that its QR code stands for",
    b"%PDF": "a PDF: mount the configuration as plain text",
    b"\x7fELF": "a program: name the right file",
    b"\xff\xfe": "UTF-16 text, as Windows writes it: save it as UTF-8",
    b"\xfe\xff": "UTF-16 text, as Windows writes it: save it as UTF-8",
}
#: By how a file begins, in small letters; the first that fits.
BEGINNINGS = {
    "$ansible_vault": "encrypted by Ansible Vault: decrypt it before it is mounted",
    "age-encryption.org": "encrypted by age: decrypt it before it is mounted",
    "-----begin age": "encrypted by age: decrypt it before it is mounted",
    "-----begin pgp": "encrypted by PGP: decrypt it before it is mounted",
    "-----begin": f"PEM, a certificate or a key of another kind: {WIREGUARD}",
    "{\\rtf": "a word processor's file: save it as plain text",
    "{{": "a template that nobody filled in: render it before it is mounted",
    "{%": "a template that nobody filled in: render it before it is mounted",
    "{": f"JSON, not a WireGuard configuration: {WIREGUARD}",
    "[{": f"JSON, not a WireGuard configuration: {WIREGUARD}",
    "<?xml": f"XML, not a WireGuard configuration: {WIREGUARD}",
    "```": "Markdown: delete the lines with ```",
    "wireguard://": f"a link for another program: {WIREGUARD}",
    "wg://": f"a link for another program: {WIREGUARD}",
    "vless://": f"a link for another program: {WIREGUARD}",
    "apiversion:": "a Kubernetes manifest: mount the Secret it describes, not the manifest itself",
    "kind:": "a Kubernetes manifest: mount the Secret it describes, not the manifest itself",
    "interface:": "the output of `wg show`, which has no keys to set up: `wg showconf` has, or the file it came from",
}
#: Whose a section is, by its name in small letters.
SECTIONS = {
    "netdev": "systemd-networkd",
    "wireguard": "systemd-networkd or NetworkManager",
    "wireguardpeer": "systemd-networkd",
    "connection": "NetworkManager",
    "socks5": "wireproxy",
    "http": "wireproxy",
}
OPENVPN = ("client", "dev tun", "dev tap", "<ca>", "<cert>", "<tls-crypt>", "proto udp", "proto tcp", "auth-user-pass")


def text(content: str) -> str:
    """The sentence for a file's text, "" when it is nothing that is known here."""
    lines = [line.strip() for line in content.splitlines() if line.strip() and not line.lstrip().startswith(("#", ";"))]
    if not lines:
        return "a script: name the configuration itself" if content.startswith("#!") else ""
    first = lines[0].lower()
    return (
        next((sentence for start, sentence in BEGINNINGS.items() if first.startswith(start)), "")
        or _in_base64(content)
        or _without_line_ends(lines)
        or ("an OpenVPN configuration: " + WIREGUARD if any(line.lower() in OPENVPN for line in lines) else "")
        or ("a script: name the configuration itself" if content.startswith("#!") else "")
        or _yaml(lines)
    )


def data(content: bytes) -> str:
    """The sentence for a file that is no UTF-8 text, "" when it is nothing that is known here."""
    known = next((sentence for start, sentence in BINARY.items() if content.startswith(start)), "")
    # Without a byte order mark: every second byte of ASCII text is zero.
    return known or (BINARY[b"\xff\xfe"] if content[:2].count(0) == 1 and content[:40].count(0) == 20 else "")


def _in_base64(content: str) -> str:
    found = content.encode(errors="replace")
    for _ in range(WRAPPINGS):
        try:
            found = a2b_base64(b"".join(found.strip(b" \t\r\n\"'").split()), strict_mode=True)
        except Base64Error:
            return ""
        if b"[interface]" in found.lower() or b"privatekey" in found.lower():
            return "base64 of a configuration: put the text itself in stringData, or encode it once, in data"
        if len(found) == 32:
            return "one key, not a configuration: put it behind 'PrivateKey =' in a whole file, as in wg0.conf"
    return ""


def _without_line_ends(lines: list[str]) -> str:
    first = lines[0].lower()
    if "\\n" in first and "privatekey" in first:
        return "has '\\n' instead of line ends: write real ones (in YAML, put | behind the key and the text below)"
    if first.startswith("[interface]") and "privatekey" in first:
        return "is all in one line, but [Interface] and every key need a line end: in YAML, use | instead of >"
    return ""


def _yaml(lines: list[str]) -> str:
    """Most lines are `key: value`, and there is no section."""
    like = [line for line in lines if line.startswith("- ") or line == "---" or line.endswith(":") or ": " in line]
    if len(like) * 2 > len(lines) and not any(line.startswith("[") for line in lines):
        return f"YAML, not a WireGuard configuration: {WIREGUARD}"
    return ""
