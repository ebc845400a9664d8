"""Bodies that a server answers with 400, and what its answer says."""

from __future__ import annotations

from typing import Any

SETS = "available sets: ablate_last, "
# What a client sends beside a prompt, and what the answer names.
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "top_level": ({"saif": "add_last"}, SETS),
    "top_level_misspelt": ({"SAIF": "add_last"}, "available: saif, saif_scope"),
    "misspelt": ({"vllm_xargs": {"siaf": "add_last"}}, "available: saif, saif_scope"),
    "unknown_key": ({"vllm_xargs": {"saif": "both", "saif_layer": 1}}, "available: saif, saif_s"),
    "not_a_string": ({"vllm_xargs": {"saif": 3}}, SETS),
    "an_object": ({"vllm_xargs": {"saif": {"sets": []}}}, SETS),
    "unknown_set": ({"vllm_xargs": {"saif": "frensh*1.2"}}, SETS),
    "syntax": ({"vllm_xargs": {"saif": "add_last**2"}}, SETS),
    "absurd": ({"vllm_xargs": {"saif": "add_last*11"}}, "between -10 and 10"),
    "option_alone": ({"vllm_xargs": {"saif_scope": "all"}}, SETS),
    "scope": ({"vllm_xargs": {"saif": "both", "saif_scope": "x"}}, "generated, prompt, all"),
    "nothing_shows": (
        {"vllm_xargs": {"saif": "add_last", "saif_scope": "prompt"}},
        "nothing but the first token",
    ),
    "no_strength": ({"vllm_xargs": {"saif": "both + add_last*0"}}, "other than 0 for set"),
    "never_reached": ({"vllm_xargs": {"saif": "both", "saif_start": 4}}, "4, got 4"),
    "extra_body_twice": ({"extra_body": {"vllm_xargs": {"saif": "add_last"}}}, "'extra_body.vllm"),
    "beams": ({"vllm_xargs": {"saif": "add_last"}, "use_beam_search": True}, "use_beam_search"),
}


def body(fields: str) -> bytes:
    """Make the body of a chat; ``fields`` are JSON, which may say what a dictionary cannot."""
    return b'{"model": "embedded", "messages": [%s], "max_tokens": 1, %s}' % (
        b'{"role": "user", "content": "hello"}',
        fields.encode(),
    )


def deep(before: str, behind: str, depth: int = 900) -> str:
    return f"{before * depth}1{behind * depth}"


# A body, what else the request has, and what the answer names; None: it is vLLM's own.
UNUSUAL: dict[str, tuple[bytes, dict[str, Any], str | None]] = {
    "deep_value": (body(f'"vllm_xargs": {{"saif": {deep("[", "]")}}}'), {}, "type list"),
    "deep_place": (body('"vllm_xargs": ' + deep('{"vllm_xargs":', "}")), {}, None),
    "deep_beside": (body(f'"vllm_xargs": {{"other": {deep("[", "]")}}}'), {}, None),
    "deep_and_asked": (
        body(f'"vllm_xargs": {{"saif": "add_last", "other": {deep("[", "]")}}}'),
        {},
        None,
    ),
    "long_name": (body(f'"vllm_xargs": {{"saif": "{"x" * 1_000_000}"}}'), {}, "characters"),
    "long_key": (body(f'"vllm_xargs": {{"saif_{"x" * 1_000_000}": 1}}'), {}, "unknown steering"),
    "given_twice": (body('"vllm_xargs": {"saif": "both"}, "vllm_xargs": {}'), {}, "expected once"),
    "in_a_message": (
        body('"messages": [{"role": "user", "content": "", "vllm_xargs": {"saif": "both"}}]'),
        {},
        "'messages.vllm_xargs'",
    ),
    "header": (body('"seed": 1'), {"headers": {"saif": "both"}}, "the header 'saif'"),
    "query": (body('"seed": 1'), {"params": {"saif": "both"}}, "the query's 'saif'"),
}
