"""The layout, held: who may import whom, who may touch the world, and how little the lockdown loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import init_wg
import watchdog

ROOT = Path(__file__).parents[2]
SOURCES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for package in ("init_wg", "watchdog")
    for file in (ROOT / package).rglob("*.py")
}
#: The rooms, and which other rooms each may know, for types too. A room is a folder; what lies at the top is a room of
#: its own, called by its package. Everybody may know what is in GROUND.
ROOMS: dict[str, tuple[str, ...]] = {
    "init_wg.model": (),
    "init_wg.config": ("init_wg.model",),
    "init_wg.design.firewall": ("init_wg.model",),
    "init_wg.design": ("init_wg.model", "init_wg.config", "init_wg.design.firewall"),
    "init_wg.kernel": ("init_wg.model", "init_wg.design.firewall"),
    "init_wg.setup": (
        "init_wg.model",
        "init_wg.config",
        "init_wg.design.firewall",
        "init_wg.design",
        "init_wg.kernel",
    ),
    "init_wg.server.design": ("init_wg.model", "init_wg.config", "init_wg.design", "init_wg.design.firewall"),
    "init_wg.server": (
        "init_wg.model",
        "init_wg.config",
        "init_wg.design.firewall",
        "init_wg.design",
        "init_wg.kernel",
        "init_wg.setup",
        "init_wg.server.design",
    ),
    "init_wg.node.design": ("init_wg.model", "init_wg.config"),
    "init_wg.node": ("init_wg.model", "init_wg.config", "init_wg.kernel", "init_wg.setup", "init_wg.node.design"),
    "init_wg": ("init_wg.config", "init_wg.kernel", "init_wg.setup", "init_wg.server", "init_wg.node"),
    "watchdog.web": (),
    "watchdog": ("init_wg", "init_wg.config", "init_wg.kernel", "init_wg.model", "watchdog.web"),
}
#: Below every room.
GROUND = {"init_wg.errors", "init_wg.log", "watchdog.loop"}
#: No I/O and no clock: what they say depends on what they are given.
PURE = (
    "init_wg.errors", "init_wg.config", "init_wg.config.settings", "init_wg.config.server_settings",
    "init_wg.config.node_settings", "init_wg.config.peer_names",
    *sorted(
        m for m in SOURCES
        if m.startswith(("init_wg.model", "init_wg.design", "init_wg.server.design", "init_wg.node.design"))
    ),
    "watchdog.peer_health", "watchdog.contention", "watchdog.scheduler", "watchdog.exit_check", "watchdog.incident",
    "watchdog.status", "watchdog.traffic",
    "watchdog.web", "watchdog.web.jsontext", "watchdog.web.metrics", "watchdog.web.request",
)  # fmt: skip
IMPURE = {
    "socket", "_socket", "os", "subprocess", "time", "random", "select", "selectors", "signal", "threading", "asyncio",
    "io", "pathlib", "tempfile", "shutil", "ctypes", "fcntl", "sys", "ssl", "http", "urllib", "requests", "pyroute2",
    "dns", "datetime",
}  # fmt: skip
IMPURE_CALLS = {"open", "print", "input", "__import__", "exec", "eval"}
#: What is used of it is pure: the list of the log's levels; the spelling of addresses.
PURE_ENOUGH = {("init_wg.config.settings", "init_wg.log"), ("init_wg.model.networks", "socket")}


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(SOURCES[module].read_text())


def imports(module: str, *, typing_too: bool = False) -> set[str]:
    """The modules that one imports, anywhere in it; without those that only type checkers see."""
    package = module if SOURCES[module].name == "__init__.py" else module.rpartition(".")[0]
    return set(_imports(tree(module), package, typing_too))


def _imports(node: ast.AST, package: str, typing_too: bool) -> Iterator[str]:
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not typing_too:
        children: list[ast.stmt] = node.orelse
    else:
        children = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.AST)]  # type: ignore[misc]
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        around = package.rsplit(".", node.level - 1)[0] if node.level else ""
        base = ".".join(filter(None, (around, node.module)))
        yield from (f"{base}.{a.name}" if f"{base}.{a.name}" in SOURCES else base for a in node.names)
    for child in children:
        yield from _imports(child, package, typing_too)


@cache
def names(module: str) -> set[str]:
    """Every name, attribute and string in a module's code."""
    found = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found


def users(name: str) -> set[str]:
    return {module for module in SOURCES if name in names(module)}


def importers(name: str) -> set[str]:
    return {
        module
        for module in SOURCES
        if any(imported.split(".")[0] == name for imported in imports(module, typing_too=True))
    }


def test_the_tool_sees_what_it_must() -> None:
    """Positive control: imports inside functions, of submodules, and under TYPE_CHECKING."""
    assert "init_wg.cli" in imports("init_wg.__main__")
    assert "dns" in {name.split(".")[0] for name in imports("init_wg.setup.resolve")}
    assert "init_wg.design.firewall.policy" not in imports("init_wg.design.firewall.killswitch")
    assert "init_wg.design.firewall.policy" in imports("init_wg.design.firewall.killswitch", typing_too=True)


def test_both_packages_are_ours() -> None:
    """`watchdog` is also a distribution on PyPI."""
    assert Path(init_wg.__file__ or "").parent == ROOT / "init_wg"
    assert Path(watchdog.__file__ or "").parent == ROOT / "watchdog"


def test_the_watchdog_works_by_any_name() -> None:
    """A wheel installs it by another one than the folder's: PyPI's watchdog has that."""
    absolute = {
        module
        for module in SOURCES
        if module.split(".")[0] == "watchdog"
        for node in ast.walk(tree(module))
        if (isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "watchdog")
        or (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "watchdog" for alias in node.names))
    }
    assert not absolute
    assert not {module for module in SOURCES if any(name.startswith("watchdog.") for name in names(module))}


@pytest.mark.parametrize("module", [name for name in SOURCES if name.startswith("init_wg.")])
def test_init_wg_never_imports_the_watchdog(module: str) -> None:
    assert not {name for name in imports(module, typing_too=True) if name.split(".")[0] == "watchdog"}


@pytest.mark.parametrize("module", [name for name in PURE if name in SOURCES])
def test_pure_modules_do_no_io(module: str) -> None:
    imported = imports(module)
    impure = {name for name in imported if name.split(".")[0] in IMPURE}
    assert not {name for name in impure if (module, name) not in PURE_ENOUGH}
    ours = {name for name in imported if name in SOURCES and (module, name) not in PURE_ENOUGH}
    # init_wg.config defines the values that a file has, and reads files: its values are used, no more.
    assert ours <= {*PURE, "init_wg.config.tunnel", "init_wg.config.values"}
    called = {n.func.id for n in ast.walk(tree(module)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    assert not called & IMPURE_CALLS


def test_of_socket_only_the_spelling_of_addresses_is_pure() -> None:
    taken = [
        ast.unparse(node)
        for node in ast.walk(tree("init_wg.model.networks"))
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert [line for line in taken if "socket" in line] == ["from socket import inet_ntop, inet_pton"]


def test_every_pure_module_is_there() -> None:
    assert set(PURE) <= set(SOURCES)


def test_no_module_needs_itself() -> None:
    """Not by way of another one either; nor for its types, which would tie two ideas to each other as well."""
    graph = {module: imports(module, typing_too=True) & set(SOURCES) for module in SOURCES}
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError, with the cycle


def room(module: str) -> str:
    """The room that a module is in: its folder, or for a room itself (`__init__`) that room."""
    return module if module in ROOMS else module.rpartition(".")[0]


@pytest.mark.parametrize("module", SOURCES)
def test_who_may_know_whom(module: str) -> None:
    """Arrows lead down: a room knows the rooms that ROOMS lists for it, for types too."""
    known = {name for name in imports(module, typing_too=True) & set(SOURCES) if name not in GROUND}
    allowed = {room(module), *ROOMS[room(module)]}
    assert not {name for name in known if room(name) not in allowed}


def test_the_rooms_are_a_stack() -> None:
    """No two rooms need each other, there are at most 8 floors of them, and every room is there."""
    floors: dict[str, int] = {}
    for each in TopologicalSorter(ROOMS).static_order():
        floors[each] = 1 + max((floors[below] for below in ROOMS[each]), default=0)
    assert max(floors.values()) <= 8
    assert {room(module) for module in SOURCES} == set(ROOMS)


def test_one_place_each() -> None:
    """What must be right is in one place, and can be read there."""
    assert {m for m in SOURCES if any("pyroute2" in name for name in names(m) | imports(m))} <= {
        "init_wg.kernel.rtnetlink_write"
    }
    assert "pyroute2" in names("init_wg.kernel.rtnetlink_write")
    assert users("nft") & {m for m in SOURCES if _starts_programs_named(m, "nft")} <= {"init_wg.kernel.nft"}
    assert {m for m in users("posix_spawn") if m.startswith("init_wg")} == {"init_wg.kernel.process"}
    assert len({m for m in users("posix_spawn") if m.startswith("watchdog")}) <= 1
    # Two who wait for any process would each lose the other's.
    assert {m for m in users("waitpid") if m.startswith("watchdog")} == {"watchdog.supervisor"}
    assert not importers("subprocess") | importers("multiprocessing") | users("system") | users("popen") | users("fork")


def _starts_programs_named(module: str, program: str) -> bool:
    """Does the module have a tuple or list that begins with the program's name?"""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Tuple | ast.List) and node.elts:
            first = node.elts[0]
            if isinstance(first, ast.Constant) and first.value == program:
                return True
    return False


def test_nft_is_run_in_one_place() -> None:
    assert [module for module in SOURCES if _starts_programs_named(module, "nft")] == ["init_wg.kernel.nft"]
    assert [module for module in SOURCES if _starts_programs_named(module, "wireguard-go")] == [
        "init_wg.kernel.wg_uapi"
    ]


def test_no_module_shadows_the_standard_library() -> None:
    files = {file.stem for file in SOURCES.values()} | {file.parent.name for file in SOURCES.values()}
    assert not files & set(sys.stdlib_module_names)
    assert not [file for file in SOURCES.values() if file.name == "setup.py"]


#: Of a class of the product: methods, and lines.
MOST_METHODS, MOST_LINES = 12, 150


@pytest.mark.parametrize("module", SOURCES)
def test_no_class_is_too_large_to_read(module: str) -> None:
    classes = [node for node in ast.walk(tree(module)) if isinstance(node, ast.ClassDef)]
    methods = {c.name: sum(isinstance(each, ast.FunctionDef) for each in c.body) for c in classes}
    assert not {name: count for name, count in methods.items() if count > MOST_METHODS}
    lines = {c.name: (c.end_lineno or 0) - c.lineno + 1 for c in classes}
    assert not {name: count for name, count in lines.items() if count > MOST_LINES}


def test_nothing_asserts_at_run_time() -> None:
    """`python -O` would take the check away."""
    assert not [module for module in SOURCES if any(isinstance(node, ast.Assert) for node in ast.walk(tree(module)))]


def loaded(statement: str) -> set[str]:
    """The modules of a fresh interpreter after a statement, without those that any start loads."""
    code = f"import sys; before = set(sys.modules); {statement}; print(*sorted(set(sys.modules) - before))"
    argv = [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {[str(ROOT), *sys.path]!r}; {code}"]
    return set(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split())


def test_the_lockdown_loads_next_to_nothing() -> None:
    heavy = {"typing", "re", "socket", "ipaddress", "subprocess", "pyroute2", "json", "collections", "enum", "pathlib"}
    assert not loaded("import init_wg.__main__, init_wg.setup.lockdown") & heavy


def test_a_check_loads_none_of_the_heavy_packages() -> None:
    heavy = {"pyroute2", "asyncio", "subprocess", "requests", "dns", "ssl", "logging", "multiprocessing", "wgconfig"}
    assert not loaded("import init_wg.cli, init_wg.setup.reconcile") & heavy


def test_only_a_code_loads_what_draws_it() -> None:
    assert importers("segno") == {"init_wg.server.qr"}
    assert not loaded("import init_wg.cli, init_wg.server.commands") & {"segno", "init_wg.server.qr"}


def test_the_watchdog_is_standard_library_only() -> None:
    """But for its exit check, which is a child of its own (watchdog.verify) and ends at once."""
    allowed = set(sys.stdlib_module_names) | {"init_wg", "watchdog"}
    for module in (name for name in SOURCES if name.startswith("watchdog") and name != "watchdog.verify"):
        assert {name.split(".")[0] for name in imports(module)} <= allowed, module
    assert not {name.split(".")[0] for name in loaded("import watchdog.__main__")} - allowed
