"""The documents: links lead somewhere, named tests exist, and sentences follow CONTRIBUTING.md."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from init_wg import __version__, cli
from init_wg.config import server_settings
from init_wg.config.settings import TABLE
from tests import documents, podspec

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part == "node_modules" for part in path.relative_to(ROOT).parts)
)
#: Written before the rule; each leaves this list when it is rewritten, and none may join it.
BEFORE_THE_RULE = {"CHANGELOG.md"}
LONGEST_SENTENCE = 30  # words
FORBIDDEN = ("What", "Who", "Whoever", "Nobody", "Nothing", "None")


def prose(text: str) -> list[str]:
    """The sentences of a Markdown text: without code, tables, headings, link targets and list marks."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    paragraphs: list[str] = [""]
    for line in text.splitlines():
        if not line.strip() or line.startswith(("#", "|", "    ")):
            paragraphs.append("")
        elif re.match(r"\s*(-|\*|\d+\.) ", line):
            paragraphs.append(re.sub(r"^\s*(-|\*|\d+\.) ", "", line))
        else:
            paragraphs[-1] += " " + line.strip()
    sentences = []
    for paragraph in paragraphs:
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", paragraph).replace("**", "")
        plain = re.sub(r"`[^`]*`", "code", plain)
        sentences += [s.strip() for s in re.split(r"(?<=[.!?:])\s+", plain) if s.strip()]
    return sentences


def test_the_tool_sees_what_it_must() -> None:
    """Positive control."""
    assert prose("# A\nWhat is\nthis. It\n\n- is `a b`.\n\n| What |\n```\nNone\n```") == [
        "What is this.",
        "It",
        "is code.",
    ]


def test_the_list_of_older_documents_only_shrinks() -> None:
    assert set(DOCUMENTS) >= BEFORE_THE_RULE


@pytest.mark.parametrize("document", [each for each in DOCUMENTS if each not in BEFORE_THE_RULE])
def test_sentences(document: str) -> None:
    found = prose((ROOT / document).read_text())
    assert not [sentence for sentence in found if sentence.split()[0].strip('"(') in FORBIDDEN]
    assert not [sentence for sentence in found if len(sentence.split()) > LONGEST_SENTENCE]


MODULES = sorted(
    path.relative_to(ROOT).as_posix() for package in ("init_wg", "watchdog") for path in (ROOT / package).rglob("*.py")
)


def docstrings(module: str) -> list[str]:
    """Of the module itself, and of what is public in it."""
    documented = (
        node
        for node in ast.walk(ast.parse((ROOT / module).read_text()))
        if isinstance(node, ast.Module)
        or (isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"))
    )
    return [text for node in documented if (text := ast.get_docstring(node))]


@pytest.mark.parametrize("module", MODULES)
def test_sentences_of_docstrings(module: str) -> None:
    """Lists and tables in them, which are indented, are no sentences."""
    found = [sentence for text in docstrings(module) for sentence in prose(re.sub(r"(?m)^ {2,}.*$", "", text))]
    assert not [sentence for sentence in found if sentence.split()[0].strip('"(') in FORBIDDEN]
    assert not [sentence for sentence in found if len(sentence.split()) > LONGEST_SENTENCE]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    targets = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL))
    local = [target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:", target)]
    assert not [target for target in local if target and not (path.parent / target).exists()]


def test_every_named_test_exists() -> None:
    """docs/guarantees.md names a test for each row."""
    named = 0
    for line in (ROOT / "docs/guarantees.md").read_text().splitlines():
        file = ""
        for word in re.findall(r"tests/[\w/]+\.py|`test_\w+`", line):
            if word.startswith("tests/"):
                file = (ROOT / word).read_text()
            else:
                assert f"def {word.strip('`')}(" in file, word
                named += 1
    assert named > 10


def test_each_row_of_the_guarantees_is_shown_by_a_test() -> None:
    rows = [line for line in (ROOT / "docs/guarantees.md").read_text().splitlines() if line.startswith("| ")]
    assert not [row for row in rows if "shown by" not in row and "`test_" not in row]


def test_the_configuration_page_is_the_table() -> None:
    """`make docs` writes it."""
    assert documents.CONFIGURATION.read_text() == documents.configuration()


@pytest.mark.parametrize("file", podspec.files(), ids=lambda file: f"{file.parent.name}/{file.name}")
def test_the_pods_of_k8s_come_from_one_file(file: Path) -> None:
    """`make docs` writes them from k8s/component/workload.yaml."""
    assert file.read_text() == podspec.files()[file]


def test_a_change_of_the_pod_reaches_every_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Positive control."""
    source = (podspec.COMPONENT / "workload.yaml").read_text()
    for name in ("workload.yaml", "kustomization.yaml"):
        (tmp_path / name).write_text((podspec.COMPONENT / name).read_text())
    monkeypatch.setattr(podspec, "COMPONENT", tmp_path)
    (tmp_path / "workload.yaml").write_text(source.replace("medium: Memory", "medium: Another"))
    made = {file.name: text for file, text in podspec.files().items() if file.name != "kustomization.yaml"}
    assert set(made) == {"cronjob.yaml", "bare-pod.yaml", "pod.yaml", "pod-userspace.yaml"}
    assert all("medium: Another" in text for text in made.values())


@pytest.mark.parametrize("file", ["compose.yaml", "compose.server.yaml"])
def test_the_stacks_offer_settings_with_their_defaults(file: str) -> None:
    """The files of compose/ hand them on, compose/.env.example explains them; one table has their defaults."""
    defaults = {setting.name: setting.default for setting in (*TABLE, *server_settings.TABLE)}
    defaults["PEERS"] = "phone,laptop"  # an example: there is no default
    handed = dict(re.findall(r"^ +([A-Z_0-9]+): \$\{\1:-(.*)\}$", (ROOT / "compose" / file).read_text(), re.MULTILINE))
    assert len(handed) > 10
    assert handed == {name: defaults[name] for name in handed}
    lines = re.findall(r"^#([A-Z_0-9]+)=(.*)$", (ROOT / "compose/.env.example").read_text(), re.MULTILINE)
    explained = dict(lines)
    assert handed.keys() <= explained.keys()
    assert {name: value for name, value in explained.items() if name in handed} == handed


def test_the_first_page_names_every_command() -> None:
    rows = re.findall(r"(?m)^\| (`.*?`) \| ", (ROOT / "README.md").read_text())
    named = {word for row in rows for word in re.findall(r"`(\w+)", row)}
    assert named == {command.split()[0] for command in cli.COMMANDS}


def test_the_watchdogs_readme_names_every_page() -> None:
    rows = re.findall(r"(?m)^\| (`/.*?) \| ", (ROOT / "watchdog/README.md").read_text())
    named = {word for row in rows for word in re.findall(r"`(/\w*)`", row)}
    assert named == set(re.findall(r'b"(/\w*)": ', (ROOT / "watchdog/pages.py").read_text()))


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("pyproject.toml", '^version = "(.*)"'),
        ("Dockerfile", "^ARG VERSION=(.*)"),
        ("contrib/helm-plugin/plugin.yaml", "^version: (.*)"),
        ("charts/init-wg/Chart.yaml", r"(?:[vV]ersion: |init-wg/init-wg:)(\d\S*)"),
        ("charts/init-wg/examples/argo-cd/kustomization.yaml", r"ref=v(\S+)"),
        ("k8s/component/kustomization.yaml", "newTag: (.*)"),
        ("k8s/injection/settings.yaml", r"init-wg/init-wg:(\S+)"),
        (".github/workflows/image.yaml", r"init-wg/init-wg:(\d\S*)"),
    ],
)
def test_one_version(file: str, said: str) -> None:
    found = re.findall(f"(?m){said}", (ROOT / file).read_text())
    assert set(found) == {__version__}


def test_the_first_page_stays_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 900
