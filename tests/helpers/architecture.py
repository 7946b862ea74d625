"""The rooms, which of them each may import, and the imports that the code really has."""

import ast
import pathlib
import subprocess
from collections.abc import Iterator

import pytest

ROOMS = {
    # room -> rooms it may import; an arrow points down
    "common": set(),
    "data": {"common"},
    "engine": {"common"},
    "models": {"engine", "data", "common"},
    "maskgen": {"models", "engine", "data", "common"},
    "pretrain": {"models", "engine", "data", "common"},
    "evaluate": {"pretrain", "models", "engine", "data", "common"},
    "demo": {"evaluate", "maskgen", "pretrain", "models", "engine", "data", "common"},
}


def tracked(repository: pathlib.Path, *patterns: str) -> list[str]:
    """Files of the working tree that git knows or would add, as paths relative to the root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    try:
        listed = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("git does not list this folder's files")
    return [line for line in listed.splitlines() if (repository / line).is_file()]


def imports(name: str, source: str, modules: frozenset[str]) -> Iterator[tuple[int, str]]:
    """Yield (line, file) of every import of ours; "absolute" in place of a file for `import hapicl...`.

    Args:
        name: path of the importing file, relative to the root.
        source: its text.
        modules: paths of all files of the package.
    """
    folder = name.split("/")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            if any(alias.name.split(".")[0] == "hapicl" for alias in node.names):
                yield node.lineno, "absolute"
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            if (node.module or "").split(".")[0] == "hapicl":
                yield node.lineno, "absolute"
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - (node.level - 1)]
            target = [*base, *(node.module or "").split(".")] if node.module else base
            for alias in node.names:
                yield node.lineno, _file_of([*target, alias.name], modules)


def _file_of(parts: list[str], modules: frozenset[str]) -> str:
    """The file that an imported name comes from: a module, or the module or package that defines it."""
    for length in (len(parts), len(parts) - 1):
        stem = "/".join(parts[:length])
        for candidate in (f"{stem}.py", f"{stem}/__init__.py".lstrip("/")):
            if candidate in modules:
                return candidate
    return "/".join(parts)


def first_cycle(arrows: dict[str, set[str]]) -> list[str]:
    """A cycle in a graph given as node -> targets, or an empty list."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for target in sorted(arrows.get(node, ())):
            if found := visit(target, [*path, node]):
                return found
        done.add(node)
        return []

    for node in sorted(arrows):
        if found := visit(node, []):
            return found
    return []
