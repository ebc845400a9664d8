from __future__ import annotations

from importlib.machinery import PathFinder
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "saif_fast",
    "kernels/saif_kernels",
    "integrations/saif_vllm",
    "integrations/saif_transformers",
)


@pytest.mark.parametrize("package", PACKAGES)
def test_package_is_typed(package: str) -> None:
    assert (ROOT / package / "__init__.py").is_file()
    assert (ROOT / package / "py.typed").is_file()


@pytest.mark.parametrize("folder", ["kernels", "integrations", "bench", "tests", "tools"])
def test_source_root_is_no_package(folder: str) -> None:
    """A `kernels/__init__.py` on the path hides Hugging Face's `kernels`: transformers breaks."""
    below = "**/__init__.py" if folder == "tests" else "__init__.py"
    assert not list((ROOT / folder).glob(below))


def test_an_installed_kernels_package_wins(tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    installed = tmp_path / "kernels" / "__init__.py"
    installed.touch()
    spec = PathFinder.find_spec("kernels", [str(ROOT), str(tmp_path)])
    assert spec is not None
    assert spec.origin == str(installed)


def test_every_python_file_is_below_400_lines() -> None:
    folders = ("saif_fast", "kernels", "integrations", "bench", "locks", "tests", "tools")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    lengths = {p.relative_to(ROOT).as_posix(): len(p.read_bytes().splitlines()) for p in files}
    assert lengths
    assert {name: n for name, n in lengths.items() if n >= 400} == {}
