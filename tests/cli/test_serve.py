from __future__ import annotations

from saif_vllm import serve


def test_serve_is_listed(saif) -> None:
    assert "Serve a model over HTTP" in saif("--help").stdout


def test_serve_without_vllm_says_what_to_install(saif, monkeypatch) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    for arguments in (("embedded", "--set-dir", "sets", "-tp", "2"), ("--help",), ()):
        result = saif("serve", *arguments)
        assert result.exit_code == 1
        assert result.stderr.strip() == (
            "error: serve: needs the package vllm; install it with: pip install 'saif-fast[vllm]'"
        )


def test_all_arguments_reach_the_command(saif, monkeypatch) -> None:
    given: list[list[str]] = []
    monkeypatch.setattr(serve, "serve", given.append)
    arguments = ["-tp", "2", "m", "--a.b", "1", "--json={}", "--help", "-x=1", "y"]
    saif("serve", *arguments)
    assert given == [arguments]
