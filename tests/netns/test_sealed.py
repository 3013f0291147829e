"""Sealed or not: `up`, `status` and the watchdog ask one function. No table that only looks like ours
deceives it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from init_wg.design.firewall import killswitch
from init_wg.kernel import sealed
from tests.unit.test_killswitch import ORDINARY

#: Each line is an nft text, loaded into an empty ruleset. Answers: is it sealed, and is it once `up` has begun?
WORKER = """
import json, os, sys
from init_wg.kernel import nft, sealed
from init_wg.setup import lockdown
for line in sys.stdin:
    nft.load("flush ruleset\\n" + json.loads(line))
    before = sealed.in_place()
    lockdown.seal()
    print(json.dumps([before, sealed.in_place()]), flush=True)
"""
OUTPUT = "type filter hook output priority filter; policy drop;"


def table(head: str, body: str = "") -> str:
    """As nft wants it: a line for each block."""
    return f"table {head} {{\n{body}\n}}\n"


def output(*rules: str, chain: str = "output", hook: str = OUTPUT) -> str:
    return f"chain {chain} {{\n" + "\n".join([hook, *rules]) + "\n}"


FOREIGN = {
    "absent": "",
    "empty": table("inet init_wg"),
    "dormant": table("inet init_wg", f"flags dormant\n{output()}"),
    "accepting by policy": table("inet init_wg", output(hook=OUTPUT.replace("drop", "accept"))),
    "accepting by a rule": table("inet init_wg", output("accept")),
    "accepting and counting": table("inet init_wg", output("counter accept")),
    "accepting and marking": table("inet init_wg", output("meta mark set 7 accept")),
    "accepting before ours": f"{killswitch.opened(ORDINARY)}\ninsert rule inet init_wg output accept",
    "not hooked": table("inet init_wg", output("drop", hook="")),
    "at another hook": table("inet init_wg", output(hook=OUTPUT.replace("hook output", "hook input"))),
    "of another kind": table("inet init_wg", output(hook=OUTPUT.replace("type filter", "type route"))),
    "of one family": table("ip init_wg", output()),
    "of another name": table("inet init_wg2", output()),
    "with another chain": table("inet init_wg", output(chain="outputs")),
}
OURS = {
    "the lockdown": killswitch.sealed(()),
    "the lockdown with a gate": killswitch.sealed(("eth0",)),
    "opened": killswitch.opened(ORDINARY),
}


@pytest.fixture(scope="module")
def asked() -> Iterator[Callable[[str], list[bool]]]:
    argv = ["unshare", "--net", "sh", "-c", 'ip link add eth0 type veth peer name eth1; exec "$@"', "sh"]
    with subprocess.Popen(
        [*argv, sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as worker:
        requests, answers = worker.stdin, worker.stdout
        assert requests and answers

        def exchange(text: str) -> list[bool]:
            requests.write(json.dumps(text) + "\n")
            requests.flush()
            return list(json.loads(answers.readline()))

        yield exchange
        requests.close()


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_kill_switch_is_not_sealed_and_is_sealed_first(
    asked: Callable[[str], list[bool]], name: str
) -> None:
    assert asked(FOREIGN[name]) == [False, True]


@pytest.mark.parametrize("name", OURS)
def test_ours_is_sealed(asked: Callable[[str], list[bool]], name: str) -> None:
    assert asked(OURS[name]) == [True, True]


def test_the_table_has_one_name() -> None:
    assert sealed.TABLE == killswitch.NAME
