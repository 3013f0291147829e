"""docs/comparison.md shows what `make compare` measures, and the set-ups that it names."""

from __future__ import annotations

import re

from tests.compare.__main__ import CASES, CONTROL, DOCUMENT, ROOT, TABLES, table
from tests.compare.setups import SETUPS, Setup, refusal

NAMES = [setup.name for setup in SETUPS]


def rows(text: str) -> dict[str, list[str]]:
    """The cells of each row of all tables, by their first one."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]
    return {first: rest for first, *rest in cells}


def test_a_table() -> None:
    setups = [Setup(name, lambda _lab, _file: None) for name in "ab"]
    assert table("fault", setups, {"none": ["0", "1"]}) == "| fault | a | b |\n|---|---|---|\n| none | 0 | 1 |"


def test_the_document_has_all_that_is_measured() -> None:
    text = DOCUMENT.read_text()
    tables = TABLES.search(text)
    assert tables
    measured = rows(tables[0])
    assert measured["fault"] == NAMES
    assert {*CASES} <= measured.keys()
    named = rows(text[: tables.start()])
    assert set(NAMES) <= named.keys()


def leaked(name: str) -> dict[str, tuple[int, int]]:
    """Of this set-up, by case: ordinary and special packets."""
    cells = re.findall(r"^\| (.+?) \| ((?:[\d,]+ / [\d,]+(?: \| )?)+) \|$", DOCUMENT.read_text(), re.MULTILINE)
    own = {words: row.split(" | ")[NAMES.index(name)].replace(",", "").split(" / ") for words, row in cells}
    return {words: (int(ordinary), int(special)) for words, (ordinary, special) in own.items()}


def test_what_the_document_claims() -> None:
    """No ordinary packet leaves init-wg's pod; the control lets special ones out in each case."""
    assert list(leaked("init-wg")) == list(CASES)
    assert not any(ordinary for ordinary, _ in leaked("init-wg").values())
    assert all(special for _, special in leaked(CONTROL).values())


def test_the_readme_has_the_worst_of_them() -> None:
    shown = rows((ROOT / "README.md").read_text())
    for column, name in enumerate(("init-wg", "wg-quick", "man page")):
        ordinary, special = map(max, zip(*leaked(name).values(), strict=True))
        assert shown["ordinary packets in clear"][column] == f"{ordinary:,}"
        assert shown["packets bound to the uplink"][column] == f"{special:,}"
    idle = rows(DOCUMENT.read_text())["idle memory, beside wireguard-go's"]
    assert shown["idle memory"][0] == idle[NAMES.index("init-wg")]


def test_the_rule_is_the_one_of_the_man_page() -> None:
    rule = "! -o %i -m mark ! --mark $(wg show %i fwmark) -m addrtype ! --dst-type LOCAL -j REJECT"
    assert refusal("-I", "$(wg show %i fwmark)") == f"iptables -I OUTPUT {rule} && ip6tables -I OUTPUT {rule}"
    assert refusal("-A", "0xca6c", "wg0", ("iptables",)) == (
        "iptables -A OUTPUT ! -o wg0 -m mark ! --mark 0xca6c -m addrtype ! --dst-type LOCAL -j REJECT"
    )
