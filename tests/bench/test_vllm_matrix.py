"""The search of sources that are not installed, and the table of what ran: on small fake trees."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import zipfile
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from bench import vllm_matrix
from bench.vllm_sources import SourceTree, parameters, unpack
from saif_vllm.seams import SEAMS, Attribute, Seam


def tree(root: Path, **files: str) -> SourceTree:
    """A package ``v`` of these modules; two underscores make a directory."""
    for name, content in files.items():
        path = root.joinpath("v", *name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        for folder in path.relative_to(root).parents[:-1]:
            (root / folder / "__init__.py").touch()
        path.write_text(dedent(content))
    return SourceTree(root)


WORKER = """
    class Worker:
        size: int
        total = 3

        def __init__(self, config):
            self.rank, self.config = 0, config
            local = other = 1

        @property
        def busy(self): ...

        def load(self, model, *, dummy=False): ...

        def save(self, path, /, **options): ...

    def options(a, /, b, *c, **d): ...
"""


@pytest.mark.parametrize(
    ("seam", "amiss"),
    [
        (("v.worker", "Worker", "load", ("self", "model")), None),
        (("v.worker", "Worker", "load", ("self", "model", "dummy")), None),
        (("v.worker", "Worker", "load", ("self", "weights")), "got (self, model, dummy)"),
        (("v.worker", "Worker", "load", ("self", "model", "x", "y")), "got (self, model, dummy)"),
        (("v.worker", "Worker", "load", ("self",), ("dummy", "model")), None),
        (("v.worker", "Worker", "load", ("self",), ("x", "dummy")), "no x in (self, model, dummy)"),
        (("v.worker", "Worker", "save", ("self",), ("path",)), "no path in (self, path, options)"),
        (("v.worker", "", "options", (), ("a", "b", "c", "d")), "no a, c, d in (a, b, c, d)"),
        (("v.worker", "Worker", "unload", ("self",)), "not there"),
        (("v.worker", "Worker", "Inner", ("self",)), "not there"),
        (("v.worker", "Runner", "load", ("self",)), "no class Runner"),
        (("v.worker", "", "load", ()), "not there"),
        (("v.worker", "", "Worker", ()), "not a function"),
        (("v.runner", "Worker", "load", ("self",)), "no such module"),
        (("v", "Worker", "load", ("self",)), "no class Worker"),
    ],
)
def test_a_method_is_as_expected_or_what_is_amiss_is_said(
    seam: tuple[Any, ...], amiss: str | None, tmp_path: Path
) -> None:
    assert tree(tmp_path, worker=WORKER).missing(Seam(*seam)) == amiss


@pytest.mark.parametrize(
    ("name", "there"),
    [
        *((name, True) for name in ("size", "total", "rank", "config", "busy", "load")),
        *((name, False) for name in ("model", "dummy", "self", "local", "speed")),
    ],
)
def test_an_attribute_is_declared_or_set(name: str, there: bool, tmp_path: Path) -> None:
    found = tree(tmp_path, worker=WORKER, other="from v.worker import Worker as W\nclass O(W): ...")
    expected = None if there else "not there"
    assert found.missing(Attribute("v.worker", "Worker", name)) == expected
    assert found.missing(Attribute("v.other", "O", name)) == expected
    assert found.missing(Attribute("v.other", "P", name)) == "no class P"


LOAD = Seam("v.child", "Child", "load", ("self", "model"))


@pytest.mark.parametrize(
    "child",
    [
        "from v.worker import Worker\nclass Child(Worker): ...",
        "from .worker import Worker as W\nclass Child(object, W[int]): ...",
        "import v.worker\nclass Child(v.worker.Worker): ...",
        "import v.worker as w\nclass Child(w.Worker): ...",
        "from v import worker\nclass Child(worker.Worker): ...",
        "from v.exported import Worker\nclass Child(Worker): ...",
        "from v.worker import Worker as Child",
        "try:\n    from v.worker import Worker\nexcept ImportError: ...\nclass Child(Worker): ...",
        "from torch import T\nclass Child(T, Generic[T]):\n    def load(self, model): ...",
    ],
    ids=range(9),
)
def test_a_method_is_found_where_it_is_inherited_from(child: str, tmp_path: Path) -> None:
    found = tree(tmp_path, worker=WORKER, child=child, exported="from .worker import *")
    (tmp_path / "v" / "exported.py").write_text("from .worker import Worker")
    assert found.missing(LOAD) is None


@pytest.mark.parametrize(
    "child",
    [
        "from v.worker import Worker\nclass Child(Worker):\n    def load(self, other): ...",
        "from v.worker import Worker\n"
        "class Between(Worker):\n    def load(self, other): ...\n"
        "class Child(Between, Worker): ...",
        "class Child:\n    def load(self, model): ...\n    def load(self, other): ...",
    ],
    ids=["own", "nearer base", "last of two"],
)
def test_what_overrides_counts(child: str, tmp_path: Path) -> None:
    assert tree(tmp_path, worker=WORKER, child=child).missing(LOAD) == "got (self, other)"


@pytest.mark.parametrize(
    "child",
    [
        "if TYPE_CHECKING:\n    from v.worker import Worker as Child",
        "import typing\nif typing.TYPE_CHECKING:\n    from v.worker import Worker as Child",
        "from v.child import Child",
        "from elsewhere import Child",
    ],
)
def test_an_import_that_brings_nothing(child: str, tmp_path: Path) -> None:
    assert tree(tmp_path, worker=WORKER, child=child).missing(LOAD) == "no class Child"


def test_a_function_of_a_package_through_its_init(tmp_path: Path) -> None:
    found = tree(tmp_path, sub__deep="async def build(args, *rest, kind=None): ...", app="")
    (tmp_path / "v" / "sub" / "__init__.py").write_text("from .deep import build as make")
    (tmp_path / "v" / "app.py").write_text("from v.sub import make")
    assert found.missing(Seam("v.app", "", "make", ("args", "rest", "kind"))) is None


class Signatures:
    def plain(self, a, /, b, c=1, *args, d, e=2, **kwargs): ...
    @classmethod
    def of_class(cls, a): ...
    @staticmethod
    def static(a, b): ...


def test_parameters_are_in_the_order_that_python_gives_them() -> None:
    body = ast.parse(dedent(inspect.getsource(Signatures))).body[0]
    assert isinstance(body, ast.ClassDef)
    for method in body.body:
        assert isinstance(method, ast.FunctionDef)
        function = getattr(Signatures, method.name)
        assert parameters(method) == list(inspect.signature(function).parameters)


def test_the_installed_vllm_is_as_its_sources_say() -> None:
    vllm = importlib.util.find_spec("vllm")
    assert vllm is not None and vllm.origin is not None
    found = SourceTree(Path(vllm.origin).parents[1])
    for what in vllm_matrix.RELIED_ON:
        assert found.missing(what) is None, what
    assert found.missing(SEAMS[0]._replace(parameters=("self", "another"))) is not None


def test_a_wheel_gives_its_python_files(tmp_path: Path) -> None:
    wheel = tmp_path / "v-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("v/worker.py", dedent(WORKER))
        archive.writestr("v/library.so", b"")
    unpack(wheel, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out" / "v").iterdir()] == ["worker.py"]


def test_every_check_names_tests_that_there_are() -> None:
    root = Path(__file__).parents[1] / "vllm"
    for chosen in vllm_matrix.CHECKS.values():
        for test in chosen:
            file, _, name = test.partition("::")
            assert f"def {name.partition('[')[0]}" in (root / file).read_text(), test


JUNIT = """<testsuites><testsuite>
<testcase classname="tests.vllm.worker.test_patches" name="test_a[v1]" time="1.5"/>
<testcase classname="tests.vllm.worker.test_patches" name="test_b" time="1.0"><failure/></testcase>
<testcase classname="tests.vllm.engine.test_prefix_cache" name="test_c[x-y]" time="2">
<skipped/></testcase>
<testcase classname="tests.vllm.engine.test_prefix_cache" name="test_d" time="9">
<error/></testcase>
</testsuite></testsuites>"""


def test_outcomes_by_check_where_a_skipped_test_has_failed() -> None:
    found = vllm_matrix.outcomes(JUNIT)
    seams, cache = (
        next(found[check] for check, chosen in vllm_matrix.CHECKS.items() if file in chosen)
        for file in ("worker/test_patches.py", "engine/test_prefix_cache.py")
    )
    assert seams == {"passed": 1, "failed": ["worker/test_patches.py::test_b"], "seconds": 2}
    assert cache["passed"] == 0 and len(cache["failed"]) == 2
    assert all(check["passed"] == 0 for check in found.values() if check not in (seams, cache))


def test_the_table_has_what_failed_and_what_was_refused() -> None:
    checks: dict[str, Any] = vllm_matrix.outcomes(JUNIT)
    results = {
        "machine": "a machine",
        "ran": {
            "0.10.0": {"torch": "2.13.0", "minutes": 1.0, "checks": checks},
            "0.9.0": {"torch": "2.11.0", "refused": "RuntimeError: steering supports vLLM >= 1"},
        },
        "read": {"0.9.0": {"a: B.c(self)": "not there"}, "0.10.0": {"a: B.c(self)": ""}},
    }
    text = vllm_matrix.table(results)
    assert "|  | 0.9.0 | 0.10.0 |" in text
    first = next(iter(vllm_matrix.CHECKS))
    assert f"| {first} | refused | 1 passed, **1 failed**, 2 s |" in text
    assert "0.10.0 failed: `worker/test_patches.py::test_b`" in text
    assert "0.9.0 refused: RuntimeError: steering supports vLLM >= 1" in text
    assert "| `a: B.c(self)` | not there | ok |" in text
