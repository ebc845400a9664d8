"""The core's seams on a stand-in of vLLM's engine core."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from offered import catalog, core_request
from stand_in_core import admission

from saif_vllm import seams
from saif_vllm.core import patches
from saif_vllm.core.admission import Admission
from saif_vllm.frontend import patches as frontend
from saif_vllm.parsing import parse_extra_args

ADD, HALF = {"saif": "add_last"}, {"saif": "add_last*0.5"}


@pytest.fixture
def core(set_dir: Path) -> Admission:
    return admission(catalog(set_dir))


def test_the_seams_that_are_checked_first_are_those_that_are_patched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrapped: list[seams.Seam] = []
    monkeypatch.setattr(seams, "owner", lambda seam: SimpleNamespace())
    monkeypatch.setattr(seams, "wrap", lambda seam, around: wrapped.append(seam))
    frontend.arm()
    patches.arm()
    assert sorted(wrapped) == sorted(seams.ARMED)


def test_an_engine_without_steering_refuses_to_be_asked() -> None:
    assert parse_extra_args({"other": 1, "siaf": 1}, None) is None
    for asked in ({"saif": "french"}, {"saif_start": 1}, {"saif": {"sets": []}}):
        with pytest.raises(ValueError, match="this engine does not steer"):
            parse_extra_args(asked, None)
        with pytest.raises(ValueError, match="this engine does not steer"):
            patches._refuse_steering(core_request(asked))
    patches._refuse_steering(SimpleNamespace(sampling_params=None))


@pytest.mark.parametrize("session", [ADD, {}], ids=["steered", "unsteered"])
@pytest.mark.parametrize("piece", [HALF, {}, ADD], ids=["half", "unsteered", "steered"])
def test_the_core_ends_a_session_that_changes_its_mind(
    core: Admission, session: dict[str, object], piece: dict[str, object]
) -> None:
    requests: dict[str, Any] = {}
    ended: list[list[str]] = []
    engine = SimpleNamespace(
        saif_admission=core,
        scheduler=SimpleNamespace(requests=requests),
        request_block_hasher=None,
        abort_requests=core.abort,
        _send_error_outputs_to_client=lambda ids, client: ended.append(ids),
    )

    def send(extra_args: dict[str, object], request_id: str) -> None:
        sent = core_request(extra_args, request_id, resumable=True, client_index=0)
        found, wave = patches._preprocess_add_request(lambda core, sent: (sent, 0), engine, sent)
        patches._add_request(
            lambda core, sent, wave: requests.setdefault(sent.request_id, sent), engine, found, wave
        )

    send(session, "0-other")
    for extra_args in (session, session, piece):
        send(extra_args, "0-session")
    assert ended == ([] if piece == session else [["0-session"]])
    assert requests.keys() == {"0-other", "0-session"}
    send(session, "0-other")
    assert len(ended) <= 1
