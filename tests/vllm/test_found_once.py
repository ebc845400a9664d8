"""The front end finds a request's sets; the core serves those, whatever becomes of the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from offered import catalog, core_request
from stand_in_core import Core, save

from saif_fast.latent_set import LatentSet
from saif_fast.set_dir import SetDirectory
from saif_vllm.catalog import SetCatalog
from saif_vllm.frontend import patches
from saif_vllm.request import get_steered


@pytest.fixture
def core(tmp_path: Path) -> Core:
    save(tmp_path, a=1, b=2, c=3)
    return Core(tmp_path, max_sets=2)


class FrontEnd:
    """A front end with the plugin's patch, in another process than the core."""

    def __init__(self, folder: Path, **capacity: int) -> None:
        self.saif_catalog: SetCatalog = catalog(folder, **capacity)

    def request(self, text: str, request_id: str = "7-abc", **fields: Any) -> Any:
        """Make a request as the core gets it."""
        vllm = pytest.importorskip("vllm")
        from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

        given = vllm.SamplingParams(extra_args={"saif": text, "other": 1})

        def original(self: Any, request_id: str, prompt: object, params: Any, **kwargs: Any) -> Any:
            return core_request(None, request_id, sampling_params=params.clone())

        made = patches._process_inputs(original, self, request_id, "", given, **fields)
        assert given.extra_args == {"saif": text, "other": 1}  # the caller's own
        sent = MsgpackEncoder().encode(made.sampling_params)
        params = MsgpackDecoder(vllm.SamplingParams).decode(sent)
        return core_request(None, request_id, sampling_params=params, **fields)


@pytest.mark.parametrize("change", ["replaced", "removed", "damaged", "a directory"])
def test_a_request_has_what_the_front_end_found_whatever_became_of_the_file(
    change: str, core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, file = FrontEnd(core.folder).request("a + b*0.5"), core.folder / "a.safetensors"
    if change == "replaced":
        save(core.folder, a=9)
    elif change == "damaged":
        file.write_bytes(file.read_bytes()[:50])
    else:
        file.unlink()
        if change == "a directory":
            file.mkdir()
    for look in ("read", "identity", "names"):
        monkeypatch.setattr(SetDirectory, look, None)  # nor does it look at what is there
    admitted = core.admission.admit(request)
    monkeypatch.undo()
    assert admitted is not None
    core.add(admitted)
    assert core.values(admitted) == [1, 2]
    assert get_steered(request.sampling_params) is not None
    # Nothing of the contents goes further.
    assert set(request.sampling_params.extra_args) == {"saif", "other"} and len(admitted.keys) == 1
    assert not any(offered.found.data for offered in admitted.sets.values())
    core.end(admitted)
    assert core.residency.loaded == ["b"]


def test_a_content_is_read_once_for_all_requests(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    front_end, compiled = FrontEnd(core.folder), []
    requests = [front_end.request("a", f"{i}-x") for i in range(3)]
    for request in requests:
        admitted = core.admission.admit(request)
        assert admitted is not None
        compiled += [offered.compiled for offered in admitted.sets.values()]
        monkeypatch.setattr(LatentSet, "from_bytes", None)  # from the second one on
    assert compiled[0] is compiled[1] is compiled[2]


def test_names_of_one_content_are_each_their_own(core: Core) -> None:
    save(core.folder, same=1)
    front_end = FrontEnd(core.folder)
    names = []
    for text in ("a", "same"):
        admitted = core.admission.admit(front_end.request(text))
        assert admitted is not None
        names.append(admitted.steered.sets[0].name)
    assert names == ["a", "same"]


def test_a_content_that_is_not_what_it_says_is_refused(core: Core) -> None:
    front_end = FrontEnd(core.folder)
    request, other = front_end.request("a"), front_end.request("b")
    (found,), (wrong,) = (x.sampling_params.extra_args["saif_found"] for x in (request, other))
    found[-1] = wrong[-1]
    with pytest.raises(ValueError, match="set 'a': content does not match its hash"):
        core.admission.admit(request)


def test_all_pieces_of_a_session_have_what_its_front_end_found_first(core: Core) -> None:
    front_end = FrontEnd(core.folder)
    with front_end.saif_catalog.one_request():
        pieces = []
        for value in (1, 8, 9):
            save(core.folder, a=value)
            pieces.append(front_end.request("a", "0-s", resumable=True))
    admitted = []
    for piece in pieces:
        admitted.append(core.admission.admit(piece))
        core.admission.begin_session(admitted[-1])
    assert admitted[0] is admitted[1] is admitted[2] and not admitted[0].changed
    core.add(admitted[0])
    assert core.values(admitted[0]) == [1]
