"""The house: arrows between rooms point down, no cycles of files or folders, folders of a readable size."""

import pytest
from architecture import ROOMS, first_cycle, imports, tracked

ROOT_MODULES = {"__init__.py", "__main__.py", "cli.py"}
FEWEST, MOST = 3, 14  # modules in a folder, its __init__ counted; a folder may also hold folders only


@pytest.fixture(scope="module")
def arrows(repository):
    """file -> [(line, imported file)] of every file of the package."""
    names = [
        name for name in tracked(repository, "*.py") if name.split("/")[0] in ROOMS or name in ROOT_MODULES
    ]
    modules = frozenset(names)
    return {
        name: list(imports(name, (repository / name).read_text(encoding="utf-8"), modules)) for name in names
    }


def test_imports_inside_the_package_are_relative(arrows):
    assert [
        f"{name}:{line}" for name, found in arrows.items() for line, to in found if to == "absolute"
    ] == []


def test_arrows_between_rooms_point_down(arrows):
    wrong = [
        f"{name}:{line}: {name.split('/')[0]} must not import {target}"
        for name, found in arrows.items()
        if name.split("/")[0] in ROOMS
        for line, target in found
        if target != "__init__.py"
        and target.split("/")[0] not in ROOMS[name.split("/")[0]] | {name.split("/")[0]}
    ]
    assert wrong == []


def _may_import(room, target):
    return target == room or target in ROOMS[room]


def test_no_files_import_each_other_in_a_circle(arrows):
    graph = {name: {to for _, to in found if to not in ("absolute", name)} for name, found in arrows.items()}
    del graph["__init__.py"]  # names what the rooms have, for type checkers alone; imported when asked for
    assert first_cycle(graph) == []


def test_no_folders_import_each_other_in_a_circle(arrows):
    # a folder and the one around it may: its commands call what is inside, which uses what lies beside them
    graph: dict[str, set[str]] = {}
    for name, found in arrows.items():
        folder = name.rpartition("/")[0]
        for _, target in found:
            other = target.rpartition("/")[0]
            around = f"{folder}/".startswith(f"{other}/") or f"{other}/".startswith(f"{folder}/")
            if folder and other and not around:
                graph.setdefault(folder, set()).add(other)
    assert first_cycle(graph) == []


def test_a_folder_holds_3_to_14_modules(arrows):
    counts: dict[str, int] = {}
    for name in arrows:
        folder = name.rpartition("/")[0]
        counts[folder] = counts.get(folder, 0) + 1
    many = {"pretrain/methods"}  # one file a method
    assert {
        folder: count
        for folder, count in counts.items()
        if folder and folder not in many and not FEWEST <= count <= MOST
    } == {}


def test_the_root_holds_no_other_module(repository):
    assert {name for name in tracked(repository, "*.py") if "/" not in name} == ROOT_MODULES


def test_the_checks_see_what_they_look_for():
    modules = frozenset(
        {
            "maskgen/build.py",
            "pretrain/loop.py",
            "demo/__init__.py",
            "data/__init__.py",
            "__init__.py",
            "common/errors.py",
        }
    )
    source = "from ..maskgen.build import x\nimport hapicl.data\nfrom .loop import y\nfrom .. import demo\n"
    assert list(imports("pretrain/run.py", source, modules)) == [
        (1, "maskgen/build.py"),
        (2, "absolute"),
        (3, "pretrain/loop.py"),
        (4, "demo/__init__.py"),
    ]
    assert list(imports("cli.py", "from .common.errors import UserError", modules)) == [
        (1, "common/errors.py")
    ]
    assert list(imports("demo/run.py", "from .. import __version__", modules)) == [(1, "__init__.py")]
    assert first_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert first_cycle({"a": {"b"}, "b": {"c"}}) == []
