"""From a sign to a repair: what the log and the counters say of it."""

from __future__ import annotations

import pytest

from watchdog.events import Author
from watchdog.incident import LONGEST, RECENT, Incident, Incidents
from watchdog.scheduler import CONFIG, CONFIRM, DRIFT, FOUGHT, PEER, RETRY, START, VERIFY, Run

RULES = Run(DRIFT, ("rules", "firewall"))
SLOWED = "something keeps changing this, so repairs are slowed down"


def as_it_is(author: Author) -> Author:
    return author


def repaired(
    incidents: Incidents, run: Run, *, changed: bool = True, slowed: bool = False, server: str = "b"
) -> tuple[str, str] | None:
    """It began at 100 and ended at 102."""
    return incidents.repaired(run, 102.0, 100.0, lambda: server, changed=changed, slowed=slowed)


def failed(incidents: Incidents, code: int, words: str = "") -> tuple[str, str] | None:
    """It began at 100 and ended at 102."""
    return incidents.failed(RULES, 102.0, 100.0, code, words)


def test_the_clock_runs_from_the_first_sign() -> None:
    incidents = Incidents()
    incidents.noticed(99.5, (), as_it_is)
    incidents.noticed(99.9, (), as_it_is)
    assert repaired(incidents, RULES) == ("info", "repaired in 2.50 s: rules, firewall")
    assert incidents.repair_seconds.total == 2.5
    assert incidents.repairs == {"rules": 1, "firewall": 1}


def test_without_a_sign_it_runs_from_the_repair_itself() -> None:
    incidents = Incidents()
    incidents.noticed(10, (Author(7, "nft"),), as_it_is)
    incidents.dismissed()
    assert repaired(incidents, RULES) == ("info", "repaired in 2.00 s: rules, firewall")


def test_who_did_it_is_named_and_forgotten_afterwards() -> None:
    incidents = Incidents()
    incidents.noticed(100, (Author(7, "nft"), Author(8, ""), Author(0, "")), as_it_is)
    incidents.noticed(101, (Author(7, "nft"),), as_it_is)
    line = repaired(incidents, RULES, slowed=True)
    assert line == ("info", f"repaired in 2.00 s: rules, firewall, changed by nft (7), process (8); {SLOWED}")
    assert repaired(incidents, RULES) == ("info", "repaired in 2.00 s: rules, firewall")


def test_a_flood_of_authors_does_not_make_it_grow() -> None:
    incidents = Incidents()
    asked: list[Author] = []

    def named(author: Author) -> Author:
        asked.append(author)
        return author._replace(name="rival")

    for pid in range(1, 1000):
        incidents.noticed(100, (Author(pid, ""),), named)
    assert len(asked) == 4
    _, words = repaired(incidents, RULES) or ("", "")
    assert words.endswith("changed by rival (1), rival (2), rival (3), rival (4)")


def test_a_process_is_one_process() -> None:
    """Its name can be looked up while it runs, and not for its last changes; some events bring it along."""
    incidents = Incidents()
    names = ["ip", ""]
    for _ in range(2):
        incidents.noticed(100, (Author(7, ""),), lambda author: author._replace(name=names.pop(0)))
    incidents.noticed(100, (Author(8, ""), Author(8, "nft")), as_it_is)
    _, words = repaired(incidents, RULES) or ("", "")
    assert words.endswith("changed by ip (7), nft (8)")


def test_who_is_not_known_takes_nobodys_place() -> None:
    incidents = Incidents()
    incidents.noticed(100, [Author(0, name) for name in "abcdef"] + [Author(7, "nft")], as_it_is)
    _, words = repaired(incidents, RULES) or ("", "")
    assert words.endswith("changed by nft (7)")


@pytest.mark.parametrize(
    ("run", "changed", "line"),
    [
        (Run(START), True, ("info", "the setup is made (2.00 s)")),
        (Run(START), False, ("info", "the setup is in place (2.00 s)")),
        (RULES, False, ("debug", "rules, firewall changed, and nothing had to be repaired")),
        (Run(CONFIRM), False, None),
        (Run(CONFIRM), True, None),
        (Run(RETRY), True, None),
        (Run(CONFIG), True, ("info", "the configuration is applied (2.00 s)")),
        (Run(PEER, (), "b"), True, ("info", "connected to b after 2.00 s")),
        (Run(VERIFY, (), "b"), True, ("info", "connected to b after 2.00 s")),
    ],
    ids=str,
)
def test_what_is_said_of_each_kind_of_run(run: Run, changed: bool, line: tuple[str, str] | None) -> None:
    assert repaired(Incidents(), run, changed=changed) == line


def test_a_server_may_have_no_name_that_is_known() -> None:
    assert repaired(Incidents(), Run(PEER), server="") == ("info", "connected to a server after 2.00 s")


@pytest.mark.parametrize("run", [Run(START), RULES, Run(CONFIRM)], ids=str)
def test_a_run_that_changed_nothing_is_no_repair(run: Run) -> None:
    incidents = Incidents()
    repaired(incidents, run, changed=False)
    assert not incidents.repairs
    assert incidents.repair_seconds.total == 0


def test_runs_are_counted_by_what_called_for_them() -> None:
    incidents = Incidents()
    for run in (Run(START), RULES, Run(DRIFT, ("links",))):
        incidents.run_begins(run)
    assert incidents.runs == {"start": 1, "drift": 2}


def test_a_run_that_cannot_win_names_its_rival() -> None:
    incidents = Incidents()
    incidents.noticed(99, (Author(7, "nft"),), as_it_is)
    assert failed(incidents, FOUGHT) == ("warning", f"{SLOWED}, changed by nft (7)")
    assert failed(incidents, FOUGHT) == ("warning", SLOWED)
    assert failed(incidents, 4) is None, "init_wg's own last line has said it"
    assert incidents.failed_repairs == 3
    assert repaired(incidents, RULES) == ("info", "repaired in 2.00 s: rules, firewall")


def test_the_last_one_is_kept_with_all_that_is_known_of_it() -> None:
    incidents = Incidents()
    assert incidents.last is None
    incidents.noticed(99, (Author(7, "nft"),), as_it_is)
    repaired(incidents, RULES)
    drift = Incident(102.0, "drift", ("rules", "firewall"), ("nft (7)",), 3.0, "")
    assert incidents.last == drift
    for run in (Run(START), Run(CONFIG)):
        repaired(incidents, run)
    repaired(incidents, RULES, changed=False)
    assert incidents.last == drift, "a start, a configuration and a false alarm are none"
    repaired(incidents, Run(PEER, (), "b"))
    assert incidents.last == Incident(102.0, "peer", (), (), 2.0, "")
    incidents.noticed(98, (Author(8, ""),), as_it_is)
    failed(incidents, 3, "no permission" * 100)
    assert incidents.last == Incident(
        102.0, "drift", ("rules", "firewall"), ("process (8)",), 4.0, ("no permission" * 100)[:LONGEST]
    )


def test_what_happened_lately_is_kept_and_does_not_grow() -> None:
    incidents = Incidents()
    incidents.turned(1.0, "VPN is active: a")
    for number in range(2 * RECENT):
        incidents.repaired(RULES, 2.0 + number, 1.5 + number, str, changed=True, slowed=False)
    assert incidents.recent[-1] == (2.0 + 2 * RECENT - 1, "repaired in 0.50 s: rules, firewall")
    assert len(incidents.recent) == RECENT
    incidents.turned(999.0, "VPN is not active: " + "x" * 100_000)
    assert incidents.turned_at == 999.0
    assert sum(len(words) for _, words in incidents.recent) < 65_536


def test_that_nothing_had_to_be_done_is_no_event() -> None:
    incidents = Incidents()
    repaired(incidents, RULES, changed=False)
    repaired(incidents, Run(CONFIRM), changed=False)
    assert incidents.recent == []
