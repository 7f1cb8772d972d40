"""The layout of the house: few short files at the top, short functions, imports in no circle, and heads that say why.

These are tests of the project, not of the method: a fork may change their numbers as it likes.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOP = sorted(path.name for path in ROOT.glob("*.py"))
SOURCES = {path.relative_to(ROOT): path.read_text() for place in ("*.py", "builtin/*.py", "real/*.py", "engine/*.py",
                                                                  "lab/*.py") for path in sorted(ROOT.glob(place))}
TREES = {path: ast.parse(text) for path, text in SOURCES.items()}
MODULES = {".".join(path.with_suffix("").parts): path for path in SOURCES}


def lines_of(path: Path) -> int:
    return len(SOURCES[path].splitlines())


def imports(path: Path) -> set[str]:
    """The modules of the project that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found & MODULES.keys()


def test_at_most_twelve_scripts_and_two_thousand_lines_at_the_top():
    lines = {name: lines_of(Path(name)) for name in TOP}
    assert len(TOP) <= 12, TOP
    assert sum(lines.values()) <= 2000, lines


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_files_and_functions_are_short(path):
    assert lines_of(path) <= 350
    long = {node.name: node.end_lineno - node.lineno + 1 for node in ast.walk(TREES[path])
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno - node.lineno >= 60}
    assert not long
    wide = [number for number, line in enumerate(SOURCES[path].splitlines(), 1) if len(line) > 120]
    assert not wide


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_each_file_opens_with_what_it_is(path):
    head = ast.get_docstring(TREES[path]) or ""
    assert len(head.splitlines()) >= 2 and "TODO" not in SOURCES[path]
    assert all((path.parent / name).exists() or (ROOT / name).exists() for name in re.findall(r"[\w/.]+\.py\b", head))


def test_imports_go_in_no_circle():
    done = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way[way.index(module):], module))
        if module not in done:
            for other in sorted(imports(MODULES[module])):
                visit(other, (*way, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def test_the_reading_order_names_each_script_at_the_top_once_and_read_next_follows_it():
    readme = (ROOT / "README.md").read_text()
    links = re.findall(r"^\s*(?:\d+\.|[-*|]) *\[`?([a-z_0-9]+\.py)`?\]\(\1\)", readme, re.M)
    assert sorted(links) == TOP and len(set(links)) == len(links)
    for name, after in zip(links, links[1:]):
        head = ast.get_docstring(TREES[Path(name)])
        assert re.search(rf"Read next: {re.escape(after)}\b", head.replace("\n", " ")), (name, after)
