"""Rows of the GPU benchmarks, issue 3's targets beside them, and both as Markdown."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import NamedTuple

ADD_NORM = "add + norm, inductor"
WHOLE_SAE = "encode, mask, decode"
GEMM = "same Triton GEMM"
STEP_BYTES = 16e9  # a decode step of an 8B model in bf16 reads its weights once


class Row(NamedTuple):
    """One case; all times are of the device, in microseconds, medians."""

    op: str
    n_tokens: int
    n_sets: int
    n_latents: int
    d_model: int
    microseconds: float
    floor: float  # the needed bytes at the bandwidth of a copy
    baselines: dict[str, float]

    @property
    def case(self) -> str:
        return f"T {self.n_tokens}, S {self.n_sets}, K {self.n_latents}, d {self.d_model}"


class Target(NamedTuple):
    """A bound that the worst of some rows must meet."""

    text: str
    bound: str  # "<=" or ">="
    limit: float
    unit: str
    concerns: Callable[[Row], bool]
    value: Callable[[Row], float]

    def line(self, rows: list[Row]) -> str:
        """Return a row of Markdown: target, worst value measured and where, whether met."""
        target = f"| {self.text} | {self.bound} {self.limit:g} {self.unit} |"
        measured = [row for row in rows if self.concerns(row)]
        if not measured:
            return f"{target} not measured | | |"
        pick, meets = {"<=": (max, operator.le), ">=": (min, operator.ge)}[self.bound]
        worst = pick(measured, key=self.value)
        value = self.value(worst)
        met = "yes" if meets(value, self.limit) else "no"
        return f"{target} {value:.3g} {self.unit} | {worst.case} | {met} |"


def targets(bandwidth: float) -> list[Target]:
    """Return issue 3's targets; ``bandwidth`` in bytes per microsecond."""

    def of(op: str, k: int, tokens: range, sets: range = range(1, 2**20)) -> Callable[[Row], bool]:
        return lambda row: (
            (row.op, row.n_latents) == (op, k) and row.n_tokens in tokens and row.n_sets in sets
        )

    def time(row: Row) -> float:
        return row.microseconds

    def ratio(baseline: str) -> Callable[[Row], float]:
        return lambda row: row.microseconds / row.baselines[baseline]

    def speedup(baseline: str) -> Callable[[Row], float]:
        return lambda row: row.baselines[baseline] / row.microseconds

    def share_of_a_step(row: Row) -> float:
        return 100 * row.microseconds / (STEP_BYTES / bandwidth)

    some, few, all_tokens = range(256, 2049), range(1, 65), range(1, 2**20)
    many, wide = range(4096, 2**20), range(1024, 2**20)
    after_norm, encode, rank = "steer_, add + norm", "encode_topk", "topk_rank"
    return [
        Target("idle, one site", "<=", 3, "us", of("idle", 0, all_tokens), time),
        Target(
            "idle, one site, of an 8B decode step",
            "<=", 0.3, "%", of("idle", 0, few), share_of_a_step,
        ),
        Target(
            "constants, T >= 1024, S <= 64: steer_, add + norm against add + norm",
            "<=", 1.15, "x", of(after_norm, 0, wide, range(1, 65)), ratio(ADD_NORM),
        ),
        Target(
            "constants elsewhere: added to add + norm", "<=", 3, "us",
            lambda row: of(after_norm, 0, all_tokens)(row)
            and not of(after_norm, 0, wide, range(1, 65))(row),
            lambda row: row.microseconds - row.baselines[ADD_NORM],
        ),
        Target("live K = 16, T <= 64", "<=", 10, "us", of("steer_", 16, few), time),
        Target("live K = 64, T <= 64", "<=", 25, "us", of("steer_", 64, few), time),
        Target(
            "live K = 16, T 256-2048: above the floor",
            "<=", 15, "us", of("steer_", 16, some), lambda row: row.microseconds - row.floor,
        ),
        Target(
            "live K = 16, T >= 4096: of the floor",
            "<=", 1.6, "x", of("steer_", 16, many), lambda row: row.microseconds / row.floor,
        ),
        Target(
            "against encode, mask, decode of 65k latents, T <= 64",
            ">=", 25, "x", of("steer_ for the whole SAE", 16, few), speedup(WHOLE_SAE),
        ),
        Target(
            "against encode, mask, decode of 65k latents, T = 8192",
            ">=", 100, "x", of("steer_ for the whole SAE", 16, many), speedup(WHOLE_SAE),
        ),
        Target(
            "encode_topk, d >= 4096: speed of the same GEMM", ">=", 0.6, "x",
            lambda row: row.op == encode and row.d_model >= 4096, speedup(GEMM),
        ),
        Target(
            "encode_topk, d = 2304: speed of the same GEMM", ">=", 0.4, "x",
            lambda row: row.op == encode and row.d_model == 2304, speedup(GEMM),
        ),
        Target("topk_rank, K = 16", "<=", 1.25, "x", of(rank, 16, all_tokens), ratio(GEMM)),
        Target("topk_rank, K = 64", "<=", 1.7, "x", of(rank, 64, all_tokens), ratio(GEMM)),
    ]  # fmt: skip


def table(rows: list[Row]) -> list[str]:
    """Return the rows of one op as Markdown, with the times of its baselines."""
    names = list(dict.fromkeys(name for row in rows for name in row.baselines))
    lines = [
        "| T | S | K | d | us | floor us | x floor |" + "".join(f" {n} us | x |" for n in names),
        "|" + "---:|" * (7 + 2 * len(names)),
    ]
    for row in rows:
        cells = [row.n_tokens, row.n_sets, row.n_latents, row.d_model, f"{row.microseconds:.2f}"]
        cells += [f"{row.floor:.2f}", f"{row.microseconds / row.floor:.2f}" if row.floor else "-"]
        for name in names:
            time = row.baselines.get(name)
            ratio = None if time is None else time / row.microseconds
            cells += ["-", "-"] if time is None else [f"{time:.2f}", f"{ratio:.2f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def markdown(machine: str, bandwidth: float, rows: list[Row]) -> str:
    """Return the whole report."""
    lines = [
        f"# {machine}",
        "",
        f"A copy of 1 GiB moves {bandwidth / 1e6:.2f} TB/s, read and written; the floor is the",
        "bytes that a case needs (bench/traffic.py) at that rate. Medians of CUDA graphs of many",
        "calls over inputs rotated past the L2 cache where 256 of them fill it. bf16; every case",
        "equalled the reference first. The x of a baseline is its time over ours.",
        "",
        "| case | target | measured, at worst | where | met |",
        "|---|---:|---:|---|---|",
        *(target.line(rows) for target in targets(bandwidth)),
    ]
    for op in dict.fromkeys(row.op for row in rows):
        lines += ["", f"## {op}", "", *table([row for row in rows if row.op == op])]
    return "\n".join(lines) + "\n"
