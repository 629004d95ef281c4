"""What a reader of `dash_pipeline/` is told: each public module, class and function says what it does and how it fails.

Judged by the syntax tree, so only what can be seen there: that there is a docstring, that a function which raises an
error itself says that it does, that one which takes or returns frames or arrays says something of what is in them, and
that a `float` has a unit: the ending of its name, or a word of the docstring.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "dash_pipeline"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "migrations/versions" not in str(path))

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

#: The project's errors: a function whose own body raises one says so.
ERRORS = re.compile(r"(\w*Error|Unavailable|Conflict|Corrupt|Refused\w*)$")
FRAMES = re.compile(r"\b(pl\.(Data|Lazy)Frame|np\.ndarray|NDArray|Floats|Matrix)\b")
# A column or name in backticks, a shape or a dtype.
SHAPES = re.compile(r"`|\bcolumns?\b|\brows?\b|\bshape\b|\b\(n\b|\bfloat64\b|\buint16\b|frame", re.IGNORECASE)

FLOAT = re.compile(r"\bfloat\b")
# `since` is what every server's `probe` takes, as `Server.probe` says.
UNIT_NAMES = re.compile(r"_(s|ms|bytes|shares?|usd)$|^(seconds|shares?|since)$")
UNITS = re.compile(
    r"\b((milli)?seconds?|ms|s|hours?|days?|bytes?|MiB|GiB|shares?|ratio|probabilit(y|ies)|score|per cent|percent|wei"
    r"|dollars?|quote token|USD|price|dimensionless)\b|%",
    re.IGNORECASE,
)

# Docstrings of commands are their help; each error of theirs is one line, and exit code 2.
COMMANDS = {"dash_pipeline/cli.py", "dash_pipeline/models/market_labels.py"}


def public(tree: ast.Module) -> Iterator[tuple[str, Definition]]:
    """Name and definition of every public class, function and method; not what is inside functions, nor overloads."""
    for node in tree.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for inner in node.body:
                    if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef) and not inner.name.startswith("_"):
                        yield f"{node.name}.{inner.name}", inner


def definitions() -> Iterator[tuple[str, Definition]]:
    for path in MODULES:
        for name, node in public(ast.parse(path.read_text())):
            yield f"{path.relative_to(PACKAGE.parent)}:{node.lineno} {name}", node


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for where, node in definitions():
        if not isinstance(node, ast.ClassDef):
            yield where, node


def annotated(function: ast.FunctionDef | ast.AsyncFunctionDef) -> dict[str, str]:
    """The annotations of the parameters, by name, and of what is returned, by the function's name."""
    found = {one.arg: one.annotation for one in function.args.args + function.args.kwonlyargs}
    found[function.name] = function.returns
    return {name: ast.unparse(annotation) for name, annotation in found.items() if annotation}


def raised(function: Definition) -> set[str]:
    """Errors of the project that the function's own body raises, and does not catch where it raises them."""
    found = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            name = ast.unparse(node.exc.func).rpartition(".")[2]
            if ERRORS.match(name):
                found.add(name)
    return found


def test_every_module_says_what_belongs_in_it() -> None:
    said = {str(path.relative_to(PACKAGE.parent)): ast.get_docstring(ast.parse(path.read_text())) for path in MODULES}
    assert [path for path, text in said.items() if not text] == []


def test_every_public_class_and_function_says_what_it_is() -> None:
    assert [where for where, node in definitions() if not ast.get_docstring(node)] == []


def test_who_raises_an_error_says_so() -> None:
    silent = []
    for where, node in functions():
        if where.split(":")[0] in COMMANDS:
            continue
        text = ast.get_docstring(node) or ""
        if (errors := raised(node)) and not re.search("raise|refuse|fails", text, re.IGNORECASE):
            silent.append(f"{where}: raises {', '.join(sorted(errors))}")
    assert silent == []


def test_who_takes_or_returns_frames_says_what_is_in_them() -> None:
    silent = []
    for where, node in functions():
        framed = any(FRAMES.search(annotation) for annotation in annotated(node).values())
        if framed and not SHAPES.search(ast.get_docstring(node) or ""):
            silent.append(where)
    assert silent == []


def test_who_takes_or_returns_a_float_says_its_unit() -> None:
    silent = []
    for where, node in functions():
        if where.split(":")[0] in COMMANDS:
            continue
        spelled = annotated(node).items()
        floats = {name: text for name, text in spelled if FLOAT.search(text) and not UNIT_NAMES.search(name)}
        # A parameter of the API says it where OpenAPI reads it: in its annotation.
        if floats and not UNITS.search(" ".join([ast.get_docstring(node) or "", *floats.values()])):
            silent.append(f"{where}: {', '.join(floats)}")
    assert silent == []
