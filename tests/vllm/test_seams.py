"""What a seam says of a vLLM that is not as expected: one sentence each."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from saif_vllm import seams
from saif_vllm.seams import VLLM_RANGE, Seam, is_ours, wrap

STEP = Seam("engine_of_theirs", "Engine", "step", ("self", "request"), ("resumable",))


class Engine:
    """vLLM's class, as the seam expects it."""

    def step(self, request: str, *, resumable: bool = False) -> str:
        return f"{request} {resumable}"


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> type[Any]:
    """A class whose method a test may replace, in a module that the seam names."""
    module = ModuleType(STEP.module)
    module.Engine = type("Engine", (), {"step": Engine.step})  # type: ignore[attr-defined]
    module.Engine.__module__ = STEP.module
    monkeypatch.setitem(sys.modules, STEP.module, module)
    return module.Engine  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (None, "expected a function, got nothing"),
        (3, "expected a function, got nothing"),
        (
            lambda self, prompt, resumable: None,
            r"expected the parameters (self, request, ...), got (self, prompt, resumable)",
        ),
        (
            lambda self, request, **resumable: None,
            "expected the keywords resumable, got (self, request, resumable)",
        ),
    ],
    ids=["missing", "no function", "another parameter", "keywords swallowed"],
)
def test_a_function_that_is_not_as_expected_is_named_and_not_wrapped(
    function: Callable[..., Any] | None, sentence: str, engine: type[Any]
) -> None:
    if function is None:
        del engine.step
    else:
        engine.step = function
    with pytest.raises(RuntimeError) as error:
        wrap(STEP, lambda original, *args: None)
    assert str(error.value) == f"vLLM seam {STEP.module}.Engine.step: {sentence}"
    assert not is_ours(getattr(engine, "step", None))


def test_a_function_is_wrapped_once_and_gets_its_arguments(engine: type[Any]) -> None:
    def around(original: Callable[..., str], *args: Any, **kwargs: Any) -> str:
        return f"<{original(*args, **kwargs)}>"

    for _ in range(2):
        wrap(STEP, around)
    assert engine().step("a", resumable=True) == "<a True>"
    assert is_ours(engine.step) and engine.step.__name__ == "step"


@pytest.mark.parametrize(
    ("found", "supported"),
    [
        (VLLM_RANGE[0], True),
        ((VLLM_RANGE[0][0], VLLM_RANGE[0][1] - 1), False),
        ((VLLM_RANGE[1][0], VLLM_RANGE[1][1] - 1), True),
        (VLLM_RANGE[1], False),
    ],
)
def test_versions_are_supported_from_the_first_up_to_the_last(
    found: tuple[int, int], supported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = ModuleType("vllm.version")
    version.__version__ = "its name"  # type: ignore[attr-defined]
    version.__version_tuple__ = (*found, 0)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.version", version)
    if supported:
        seams.check_version()
    else:
        with pytest.raises(RuntimeError, match=r"steering supports vLLM >= .*, < .*, got its name"):
            seams.check_version()


@pytest.mark.parametrize(
    ("allowed", "sentence"),
    [(None, None), ("saif", None), ("other,saif", None), ("other", "or to be unset"),
     ("", "or to be unset"), ("other, saif", "without white space")],
)  # fmt: skip
def test_vllm_has_to_be_allowed_to_load_the_plugin(
    allowed: str | None, sentence: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if allowed is None:
        monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    else:
        monkeypatch.setenv("VLLM_PLUGINS", allowed)
    if sentence is None:
        seams._check_plugins()
    else:
        with pytest.raises(RuntimeError, match=f"VLLM_PLUGINS: expected .* {sentence}"):
            seams._check_plugins()
