"""The house rules as functions: each takes one file and returns what is wrong with it, as sentences.

What ruff, mypy and import-linter can say is said in pyproject.toml; here is the rest. Every rule has a test
that feeds it a bad file (test_rules.py), since a rule that cannot fail protects nothing.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

ROOT = Path(__file__).resolve().parents[2]

FILE_LINES_MAX = 650
"""The aim is 600; what grows past this is two ideas in one room."""

FUNCTION_LINES_MAX = 70
"""From `def` to the last line, docstring included (TigerBeetle's limit)."""

FLOORS = ("raft", "kvstore", "quorumlog")


class Source(NamedTuple):
    """One file of the project: its path from the root, with slashes, and its text."""

    path: str
    text: str

    @property
    def floor(self) -> str:
        return self.path.split("/", 1)[0]

    @property
    def is_python(self) -> bool:
        first_line = self.text.split("\n", 1)[0]
        return self.path.endswith(".py") or (first_line.startswith("#!") and "python" in first_line)

    @property
    def is_shell(self) -> bool:
        first_line = self.text.split("\n", 1)[0]
        return self.path.endswith(".sh") or (first_line.startswith("#!") and "bash" in first_line)

    @property
    def is_program(self) -> bool:
        """A program may speak to its standard output; a library may not."""
        return self.floor not in FLOORS or self.floor == "quorumlog" or self.path.endswith("/__main__.py")


Rule: TypeAlias = Callable[[Source], Iterator[str]]

_SKIPPED_DIRECTORIES = {".git", ".venv", ".cluster", "__pycache__", "build", "dist", "node_modules"}


def read_tree(root: Path = ROOT) -> list[Source]:
    """Return every text file of the project but what is generated. Needs no version control."""
    sources = []
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        hidden = any(part.startswith(".") and part not in {".ci", ".gitignore"} for part in parts)
        if hidden or _SKIPPED_DIRECTORIES.intersection(parts) or not path.is_file():
            continue
        if any(part.endswith(".egg-info") for part in parts) or re.search(r"_pb2\.pyi?$", path.name):
            continue
        try:
            sources.append(Source("/".join(parts), path.read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            continue  # binary test data
    return sources


def _tree(source: Source) -> ast.Module:
    return ast.parse(source.text, source.path)


def _imports(tree: ast.Module) -> Iterator[tuple[int, str, str | None]]:
    """Yield (line, module, name) for each import; name is None for `import module`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, None
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                yield node.lineno, node.module or "", alias.name


# --- size ---------------------------------------------------------------------------------------------------


def file_length(source: Source) -> Iterator[str]:
    lines = source.text.count("\n")
    if (source.is_python or source.is_shell) and lines > FILE_LINES_MAX:
        yield f"{source.path}: {lines} lines, more than {FILE_LINES_MAX}"


def function_length(source: Source) -> Iterator[str]:
    if not source.is_python:
        return
    for node in ast.walk(_tree(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                yield f"{source.path}:{node.lineno}: {node.name} has {lines} lines, over {FUNCTION_LINES_MAX}"


# --- floors -------------------------------------------------------------------------------------------------

CORE_MODULES = {
    "__future__",
    "bisect",
    "collections",
    "collections.abc",
    "dataclasses",
    "enum",
    "functools",
    "heapq",
    "itertools",
    "math",
    "operator",
    "random",
    "struct",
    "typing",
    "zlib",
}
"""All that the core may import besides itself. An allow-list: whatever is new has to be argued for here."""

_IMPURE_CALLS = {"print", "open", "input", "eval", "exec", "__import__", "breakpoint"}


def core_is_pure(source: Source) -> Iterator[str]:
    """The core has no loop, clock, log, file or randomness of its own. It may *hold* a random.Random, so the
    module may be imported for its type, but it neither makes one nor uses the module's hidden global one."""
    if not source.path.startswith("raft/core/"):
        return
    tree = _tree(source)
    for line, module, name in _imports(tree):
        own = module == "raft.core" or module.startswith("raft.core.")
        if not own and module not in CORE_MODULES:
            yield f"{source.path}:{line}: the core imports {module}"
        if module == "random" and name not in (None, "Random"):
            yield f"{source.path}:{line}: the core imports random.{name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
            yield f"{source.path}:{node.lineno}: the core awaits"
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in _IMPURE_CALLS:
                yield f"{source.path}:{node.lineno}: the core calls {called}"
            if called == "Random" or called.startswith("random."):
                if called in {"Random", "random.Random"} or _is_module(tree, "random"):
                    yield f"{source.path}:{node.lineno}: the core has randomness of its own: {called}"


def _is_module(tree: ast.Module, name: str) -> bool:
    """True if `name` is an imported module in this file and no parameter or variable hides it."""
    imported = any(module == name and item is None for _, module, item in _imports(tree))
    hidden = any(isinstance(node, ast.arg) and node.arg == name for node in ast.walk(tree))
    return imported and not hidden


def public_names(init_source: str) -> set[str]:
    """Return what a package's __init__.py lists in __all__."""
    for node in ast.parse(init_source).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            return set(ast.literal_eval(node.value))
    return set()


def raft_by_its_public_names(names: set[str]) -> Rule:
    """Floors above raft use `import raft` and `from raft import X`, with X in its __all__, nothing deeper."""

    def rule(source: Source) -> Iterator[str]:
        if source.floor not in FLOORS or source.floor == "raft" or not source.is_python:
            return
        tree = _tree(source)
        for line, module, name in _imports(tree):
            if module.startswith("raft.") or (module == "raft" and name is not None and name not in names):
                what = f"{module}.{name}" if name else module
                yield f"{source.path}:{line}: {what} is not a public name of raft"
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Attribute)
                and ast.unparse(node.value) == "raft"
                and node.attr not in names
            ):
                yield f"{source.path}:{node.lineno}: raft.{node.attr} is not a public name of raft"

    return rule


def no_import_of_tests(source: Source) -> Iterator[str]:
    if source.floor not in FLOORS or not source.is_python:
        return
    for line, module, _ in _imports(_tree(source)):
        if module.split(".")[0] in {"tests", "bench", "pytest", "hypothesis"}:
            yield f"{source.path}:{line}: the program imports {module}"


# --- what is never done -------------------------------------------------------------------------------------

_UNSAFE_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle"}
_UNSAFE_CALLS = {"eval", "exec", "os.system", "os.popen"}


def no_code_from_data(source: Source) -> Iterator[str]:
    """No pickle, eval or shell: whatever comes from disk, wire or command line stays data."""
    if not source.is_python:
        return
    tree = _tree(source)
    for line, module, _ in _imports(tree):
        if module.split(".")[0] in _UNSAFE_MODULES:
            yield f"{source.path}:{line}: imports {module}"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in _UNSAFE_CALLS:
            yield f"{source.path}:{node.lineno}: calls {called}"
        for keyword in node.keywords:
            is_false = isinstance(keyword.value, ast.Constant) and not keyword.value.value
            if keyword.arg == "shell" and not is_false:
                yield f"{source.path}:{node.lineno}: gives a command to a shell"


def no_print_in_libraries(source: Source) -> Iterator[str]:
    if source.is_program or not source.is_python:
        return
    for node in ast.walk(_tree(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"print", "pprint", "pprint.pprint"}:
            yield f"{source.path}:{node.lineno}: a library prints"


# --- words --------------------------------------------------------------------------------------------------
# The patterns are written so that they do not match themselves: this file is checked too.

_UNFINISHED = re.compile(r"\b(TO[D]O|FIX[M]E|XX[X]|HAC[K])\b")
_UNFINISHED_CODE = re.compile(
    r"(NotImplemented[E]rror|\bplace[h]older\b|\bfor no[w]\b|\bsimplified versio[n]\b)"
)
_MACHINE_PATH = re.compile(r"(?<![\w.])/(wor[k]|roo[t]|far[m]|tm[p]|home/[a-z]\w*|Users/[a-z]\w*)(/|\b)")
_REGISTRY = re.compile(r"(pypi\.or[g]|pythonhosted\.or[g]|npmjs\.or[g]|debian\.or[g]|index-ur[l]|/simpl[e]/)")


def _matches(source: Source, pattern: re.Pattern[str], what: str) -> Iterator[str]:
    for number, line in enumerate(source.text.splitlines(), 1):
        found = pattern.search(line)
        if found:
            yield f"{source.path}:{number}: {what}: {found[0]}"


def no_unfinished_work(source: Source) -> Iterator[str]:
    yield from _matches(source, _UNFINISHED, "unfinished work")
    if source.floor in FLOORS and source.is_python:
        yield from _matches(source, _UNFINISHED_CODE, "unfinished work")


def no_machine_paths(source: Source) -> Iterator[str]:
    yield from _matches(source, _MACHINE_PATH, "path of one machine")


def no_registry_hosts(source: Source) -> Iterator[str]:
    yield from _matches(source, _REGISTRY, "package registry")


# --- pins ---------------------------------------------------------------------------------------------------


def is_pin(line: str) -> bool:
    """True for `name==version` and nothing else: no host, no hash, no marker, no range."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][A-Za-z0-9.+!]*", line) is not None


def canonical_name(name: str) -> str:
    """Return a distribution's name as PEP 503 normalizes it."""
    return re.sub(r"[-_.]+", "-", name).lower()
