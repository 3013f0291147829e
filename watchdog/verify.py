"""`python -m watchdog.verify URL [EXPECTED]`: from where does the world see us? A child of the watchdog.

Exit status 0: through the tunnel, as far as that can be told. 1: not, or nobody answered; the last line on
stderr says which.
"""

from __future__ import annotations

import json
import sys
from ipaddress import ip_address
from itertools import islice

#: Seconds for the connection, and between two pieces of the answer.
_TIMEOUT = (10, 10)
#: Of the answer, so many pieces of so many bytes are read.
_PIECES, _PIECE = 16, 4096


def judge(answer: str, expected: str) -> tuple[bool, str]:
    """What an answer means: whether it is fine, and a sentence. Pure.

    Mullvad's JSON says itself whether the exit is one of theirs. Any other answer has to be, or to contain as
    "ip", an address: the expected one if there is one, else any public one.
    """
    try:
        found = json.loads(answer)
    except ValueError:
        found = answer.strip()
    address = found
    if isinstance(found, dict):
        address = found.get("ip", found.get("origin", found.get("query", "")))
        if not expected and "mullvad_exit_ip" in found:
            if found["mullvad_exit_ip"] is True:
                return True, f"the exit is {address}"
            return False, f"traffic leaves from {address}, which is not one of Mullvad's exits"
    try:
        seen = ip_address(str(address).strip())
    except ValueError:
        return False, "the answer of the exit check has no address in it: is VERIFY_URL right?"
    if expected:
        try:
            right = any(seen == ip_address(each) for each in expected.replace(",", " ").split())
        except ValueError:
            return False, "VERIFY_EXPECT is not an address"
        return right, f"the exit is {seen}" if right else f"traffic leaves from {seen}, expected was {expected}"
    if not seen.is_global:
        return False, f"the exit check saw {seen}, which is not a public address"
    return True, f"the exit is {seen}"


def main(arguments: list[str]) -> int:
    """Ask, judge, tell."""
    import requests

    url, expected = arguments[0], arguments[1] if len(arguments) > 1 else ""
    try:
        # No proxy from the environment: the question is where the tunnel's traffic leaves.
        with requests.Session() as session:
            session.trust_env = False
            with session.get(url, timeout=_TIMEOUT, stream=True, headers={"Accept": "application/json"}) as reply:
                reply.raise_for_status()
                pieces = islice(reply.iter_content(_PIECE), _PIECES)
                answer = b"".join(pieces).decode(errors="replace")
    except requests.RequestException as error:
        print(f"the exit check got no answer: {type(error).__name__}", file=sys.stderr)
        return 1
    fine, sentence = judge(answer, expected)
    print(sentence, file=sys.stderr)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
