"""Who imports whom in the package, read from the source.

Imports inside functions and under TYPE_CHECKING count, too.
"""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = "bam_plugin"


def modules_of(folder: Path) -> dict[str, Path]:
    """Full name of every module of the package in `folder` -> its file; a package goes by its own name."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(source: str, modules: set[str]) -> set[str]:
    """Full names of what `source` imports: modules of `modules` exactly, others as they are written.

    `import_module("a.b")` counts as an import of a.b.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "relative import"
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in modules else node.module for name in full}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            names |= {arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)}
    return names


def import_graph(folder: Path) -> dict[str, set[str]]:
    """Module of the package -> full names of what it imports."""
    modules = modules_of(folder)
    return {name: imports_of(path.read_text(encoding="utf-8"), set(modules)) for name, path in modules.items()}


def room_of(module: str) -> str:
    """`nn` for bam_plugin.nn.fast.native, `cli` for bam_plugin.cli, and the empty name for bam_plugin itself."""
    return module.removeprefix(PACKAGE).lstrip(".").partition(".")[0]


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """One circle of imports, its first module repeated at the end, or an empty list."""
    finished: set[str] = set()
    for start in graph:
        path: list[str] = []
        stack = [(start, iter(sorted(graph[start])))] if start not in finished else []
        path = [start] if stack else []
        while stack:
            module, rest = stack[-1]
            following = next((name for name in rest if name in graph and name not in finished), None)
            if following is None:
                finished.add(module)
                stack.pop()
                path.pop()
            elif following in path:
                return [*path[path.index(following) :], following]
            else:
                stack.append((following, iter(sorted(graph[following]))))
                path.append(following)
    return []


def reached_from(module: str, graph: dict[str, set[str]]) -> dict[str, str]:
    """Everything that is imported when `module` and all its functions are run -> the module that asks for it.

    To import a module is to import the packages around it.
    """
    reached, waiting = {module: module}, [module]
    while waiting:
        current = waiting.pop()
        parents = [current.rsplit(".", depth)[0] for depth in range(1, current.count(".") + 1)]
        for name in [*graph[current], *parents]:
            if name not in reached:
                reached[name] = current
                if name in graph:
                    waiting.append(name)
    return reached
