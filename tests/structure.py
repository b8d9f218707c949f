"""Counts of what makes a code base hard to read: `python tests/structure.py [part of a path]` lists each place.

Counted are circles of imports, private names imported across files, long function bodies, long argument lists, arguments and results
without types, public names without documentation, and long files.
"""

import ast
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "molequi"
BODY, ARGUMENTS, ARGUMENTS_OF_FIT, LINES = 60, 15, 21, 500
Function = ast.FunctionDef | ast.AsyncFunctionDef


def modules(root: Path = ROOT) -> dict[str, tuple[Path, ast.Module]]:
    """Path and syntax tree of each module, by its dotted name."""
    out = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        out[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = (
            path,
            ast.parse(path.read_text("utf-8")),
        )
    return out


def _imports(tree: ast.Module) -> Iterator[tuple[str, str, int]]:
    """(module, name, line) of each import, without those for a type checker alone."""

    def visit(node: ast.AST) -> Iterator[tuple[str, str, int]]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            yield from ((alias.name, "", node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name, node.lineno) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    yield from visit(tree)


def circles(found: dict[str, tuple[Path, ast.Module]]) -> list[str]:
    """Sets of modules that import each other, functions included."""
    package = next(iter(found)).split(".")[0]
    edges: dict[str, set[str]] = {name: set() for name in found}
    for name, (_, tree) in found.items():
        for module, item, _ in _imports(tree):
            other = f"{module}.{item}" if f"{module}.{item}" in found else module
            if other in found and other not in (name, package):
                edges[name].add(other)

    def reach(start: str) -> set[str]:
        seen, stack = set(), [start]
        while stack:
            for other in edges[stack.pop()] - seen:
                seen.add(other)
                stack.append(other)
        return seen

    reached = {name: reach(name) for name in found}
    together = {frozenset(b for b in reached[a] if a in reached[b]) | {a} for a in found if a in reached[a]}
    return [" <-> ".join(sorted(group)) for group in together]


def private_imports(found: dict[str, tuple[Path, ast.Module]]) -> list[str]:
    """Names with an underscore that a file takes from another one, by import or through a module."""
    out = []
    for path, tree in found.values():
        aliases = {}
        for module, item, line in _imports(tree):
            if module.split(".")[0] == ROOT.name and item.startswith("_") and not item.startswith("__"):
                out.append(f"{path}:{line} imports {module}.{item}")
            if f"{module}.{item}" in found:
                aliases[item] = f"{module}.{item}"
        for node in ast.walk(tree):
            if (
                (
                    isinstance(node, ast.Attribute)
                    and isinstance(node.value, ast.Name)
                    and node.value.id in aliases
                )
                and node.attr.startswith("_")
                and not node.attr.startswith("__")
            ):
                out.append(f"{path}:{node.lineno} uses {aliases[node.value.id]}.{node.attr}")
    return out


def functions(found: dict[str, tuple[Path, ast.Module]]) -> Iterator[tuple[Path, Function]]:
    """All functions and methods, those inside others too."""
    for path, tree in found.values():
        for node in ast.walk(tree):
            if isinstance(node, Function):
                yield path, node


def _arguments(node: Function) -> list[ast.arg]:
    given = node.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
    return [a for a in every if a.arg not in ("self", "cls")]


def long_bodies(found: dict[str, tuple[Path, ast.Module]]) -> list[str]:
    """Functions with more than BODY lines, docstring and signature aside."""
    out = []
    for path, node in functions(found):
        body = node.body[1:] if ast.get_docstring(node) is not None else node.body
        length = node.end_lineno - body[0].lineno + 1 if body else 0
        if length > BODY:
            out.append(f"{path}:{node.lineno} {node.name}: {length} lines")
    return out


def long_signatures(found: dict[str, tuple[Path, ast.Module]]) -> list[str]:
    """Functions with more arguments than ARGUMENTS, `fit` with more than ARGUMENTS_OF_FIT."""
    out = []
    for path, node in functions(found):
        most = ARGUMENTS_OF_FIT if node.name == "fit" and path.name == "fit.py" else ARGUMENTS
        if len(_arguments(node)) > most:
            out.append(f"{path}:{node.lineno} {node.name}: {len(_arguments(node))} arguments")
    return out


def untyped(found: dict[str, tuple[Path, ast.Module]]) -> list[str]:
    """Arguments and results without a type."""
    out = []
    for path, node in functions(found):
        missing = [a.arg for a in _arguments(node) if a.annotation is None]
        if node.returns is None:
            missing.append("the result")
        if missing:
            out.append(f"{path}:{node.lineno} {node.name}: {', '.join(missing)}")
    return out


def long_files(found: dict[str, tuple[Path, ast.Module]]) -> list[str]:
    """Files with more than LINES lines."""
    sizes = {path: len(path.read_text("utf-8").splitlines()) for path, _ in found.values()}
    return [f"{path}: {size} lines" for path, size in sizes.items() if size > LINES]


def _own(value: object) -> bool:
    return (getattr(value, "__module__", None) or "").split(".")[0] == ROOT.name


def api() -> dict[str, object]:
    """The documented interface: what the package and its public modules list in `__all__`."""
    package = importlib.import_module(ROOT.name)
    names = {
        f"{ROOT.name}.{name}": getattr(package, name)
        for name in (*package.__all__, *package.models.BACKBONES)
    }
    for module in package.PUBLIC_MODULES:
        room = importlib.import_module(f"{ROOT.name}.{module}")
        listed = getattr(room, "__all__", None)
        if listed is None:
            listed = [
                n
                for n, v in vars(room).items()
                if not n.startswith("_") and getattr(v, "__module__", "") == room.__name__
            ]
        names |= {f"{ROOT.name}.{module}.{name}": getattr(room, name) for name in listed}
    unique: dict[int, str] = {}
    for name, value in names.items():
        unique.setdefault(id(value), name)
    return {name: names[name] for name in unique.values()}


def _section(doc: str, *titles: str) -> str:
    """Text of the sections of a NumPy docstring with these titles."""
    parts = re.split(r"^(\w[\w ]*)\n-{3,}\n", doc, flags=re.MULTILINE)
    return "\n".join(text for title, text in zip(parts[1::2], parts[2::2]) if title in titles)


def _undescribed(function: object, doc: str) -> list[str]:
    """Parameters that the docstring does not name in its section Parameters (or Attributes)."""
    try:
        parameters = [
            p
            for p in inspect.signature(function).parameters.values()
            if p.name not in ("self", "cls", "args", "kwargs")
        ]
    except (TypeError, ValueError):
        return []
    text = _section(doc, "Parameters", "Attributes", "Other Parameters")
    lines = [line.split(":")[0] for line in text.splitlines() if line and not line.startswith(" ")]
    named = {word.strip(" *") for line in lines for word in line.split(",")}
    return [p.name for p in parameters if p.name not in named and not p.name.startswith("_")]


def undocumented() -> list[str]:
    """Public names without a docstring, and those of the documented interface whose parameters are not described in NumPy style."""
    out = []
    for name, value in api().items():
        if inspect.isfunction(value) or inspect.isclass(value):
            out += _gaps(name, value)
        if inspect.isclass(value):
            for key, member in vars(value).items():
                member = member.__func__ if isinstance(member, (staticmethod, classmethod)) else member
                if key.startswith("_") or not (inspect.isfunction(member) or isinstance(member, property)):
                    continue
                inherited = any(
                    getattr(getattr(base, key, None), "__doc__", None) for base in value.__mro__[1:]
                )
                if isinstance(member, property):
                    out += [] if member.__doc__ or inherited else [f"{name}.{key}: no docstring"]
                elif not (inherited and not member.__doc__):
                    out += _gaps(f"{name}.{key}", member)
    for path, tree in modules().values():
        for node in ast.walk(tree):
            public = isinstance(node, (Function, ast.ClassDef)) and not node.name.startswith("_")
            if public and ast.get_docstring(node) is None and node in tree.body:
                out.append(f"{path}:{node.lineno} {node.name}: no docstring")
        if ast.get_docstring(tree) is None:
            out.append(f"{path}: no docstring")
    return out


def _gaps(name: str, value: object) -> list[str]:
    doc = inspect.cleandoc(value.__doc__ or "")
    if not doc or (inspect.isclass(value) and doc.startswith(f"{value.__name__}(")):
        return [f"{name}: no docstring"]
    missing = _undescribed(value, doc)
    return [f"{name}: not described: {', '.join(missing)}"] if missing else []


def measure() -> dict[str, list[str]]:
    """All counts, each with the places."""
    for info in pkgutil.walk_packages([str(ROOT)], f"{ROOT.name}."):
        importlib.import_module(info.name)
    found = modules()
    return {
        "circles of imports": circles(found),
        "private names across files": private_imports(found),
        "long bodies": long_bodies(found),
        "long argument lists": long_signatures(found),
        "without types": untyped(found),
        "without documentation": undocumented(),
        "long files": long_files(found),
    }


def main(part: str = "") -> int:
    """Prints the places whose path or name contains `part`."""
    for what, places in measure().items():
        chosen = [place.replace(f"{ROOT.parent}/", "") for place in places if part in place]
        print(f"{what}: {len(chosen)}", *(f"  {place}" for place in chosen), sep="\n")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT.parent))
    sys.exit(main(*sys.argv[1:2]))
