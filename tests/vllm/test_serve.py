from __future__ import annotations

from argparse import Namespace
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

from saif_fast.embedded import model_path
from saif_vllm import engine_args, serve


def test_every_argument_of_engine_args_is_an_option() -> None:
    # The extension is vLLM's own option.
    assert {*serve._OPTIONS, "worker_extension_cls"} == set(signature(engine_args).parameters)


@pytest.mark.parametrize("named", [None, ["mine"]], ids=["default", "named"])
def test_options_become_vllms_beside_the_users_own(named: Any, monkeypatch: Any) -> None:
    given: dict[str, Any] = {}

    def ours(**options: Any) -> dict[str, Any]:
        given.update(options)
        return {"additional_config": {"saif": 1}, "worker_extension_cls": "ours"}

    values = {name: object() for name in serve._OPTIONS}
    parsed = Namespace(
        model_tag="embedded",
        served_model_name=named,
        additional_config={"theirs": 2},
        worker_extension_cls="own.Extension",
        port=8001,
        **values,
    )
    monkeypatch.setattr(serve, "engine_args", ours)
    serve._switch_on(parsed)
    assert given == {**values, "worker_extension_cls": "own.Extension"}
    assert parsed.additional_config == {"saif": 1, "theirs": 2}
    assert parsed.worker_extension_cls == "ours"
    assert parsed.served_model_name == (named or ["embedded"])
    assert Path(parsed.model_tag) == model_path()
    assert parsed.port == 8001
