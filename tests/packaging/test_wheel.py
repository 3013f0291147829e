"""What `pip install init-wg` puts into somebody's environment, and what it leaves alone there."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: PyPI's own of that name, which very many environments have.
THEIRS = "watchdog==6.0.0"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = copy_of_the_project(folder / "source")
    argv = [*PIP, "wheel", "--no-deps", "--wheel-dir", str(folder), str(source)]
    subprocess.run(argv, check=True, timeout=300)
    (built,) = folder.glob("*.whl")
    return built


def copy_of_the_project(target: Path) -> Path:
    """What git knows or would add: building leaves folders beside the source."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if not name.startswith("tests/") and (ROOT / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes((ROOT / name).read_bytes())
    return target


def test_it_owns_no_name_of_others(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"init_wg", "init_wg_watchdog"}
    ours = {f"init_wg/{name}" for name in below("init_wg")} | {f"init_wg_watchdog/{name}" for name in below("watchdog")}
    assert {name for name in names if name.endswith(".py")} == ours


def below(folder: str) -> list[str]:
    return [str(file.relative_to(ROOT / folder)) for file in (ROOT / folder).rglob("*.py")]


@pytest.mark.parametrize("ours_first", [True, False])
def test_beside_pypis_watchdog_both_work(wheel: Path, tmp_path: Path, ours_first: bool) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path], check=True)
    python = str(tmp_path / "bin/python")
    for what in (wheel, THEIRS) if ours_first else (THEIRS, wheel):
        subprocess.run([*PIP, "--python", python, "install", "--no-deps", what], check=True, timeout=300)

    def says(*argv: str) -> str:
        return subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60).stdout

    assert "watchdog/observers" in says(python, "-c", "import watchdog.observers as o; print(o.__file__)")
    assert "usage: init-wg-watchdog" in says(str(tmp_path / "bin/init-wg-watchdog"), "--help")
    assert "usage: init-wg " in says(str(tmp_path / "bin/init-wg"), "--help")
    # Its children are started by a module's name: by the one that it has here.
    code = "import init_wg_watchdog.keeper as k; print(k.__package__)"
    assert says(python, "-P", "-c", code) == "init_wg_watchdog\n"
