from __future__ import annotations

import os

import pytest

from saif_vllm.runtime import _cpu_threads

THREADS, BIND = "OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND"


@pytest.mark.parametrize("cores, threads", [(1, "1"), (2, "1"), (16, "15")])
def test_one_core_is_left_to_the_other_processes(
    monkeypatch: pytest.MonkeyPatch, cores: int, threads: str
) -> None:
    monkeypatch.delenv(THREADS, raising=False)
    monkeypatch.delenv(BIND, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    with pytest.raises(KeyError), _cpu_threads():
        assert (os.environ[THREADS], os.environ[BIND]) == (threads, "nobind")
        raise KeyError("an engine that does not start")
    assert THREADS not in os.environ and BIND not in os.environ


def test_several_engines_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(THREADS, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    with _cpu_threads(4):
        assert os.environ[THREADS] == "4"


def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(THREADS, "7")
    monkeypatch.setenv(BIND, "0-6")
    with _cpu_threads():
        assert (os.environ[THREADS], os.environ[BIND]) == ("7", "0-6")
    assert (os.environ[THREADS], os.environ[BIND]) == ("7", "0-6")
