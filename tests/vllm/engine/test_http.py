"""The OpenAI client against a server process: steered like Hugging Face, or answered with 400."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import embedded_sets
import httpx
import openai
import pytest
import torch
from churn import Churn, ask_streaming, put_strays
from hf_reference import NEAR_TIE, Comparison
from http_bodies import BAD, UNUSUAL
from http_server import NOT_GENERATING, metric, server
from transformers import AutoTokenizer
from vllm.version import __version_tuple__

from saif_fast.embedded import model_path
from saif_fast.latent_set import LatentSet
from saif_fast.request import check_keys
from saif_fast.tasks.embedded import embedded_task
from saif_transformers import steer
from saif_vllm.frontend.http import ROUTES

pytestmark = [pytest.mark.engine, pytest.mark.smoke]

KEY = "a key"
GREEDY: dict[str, Any] = {"model": "embedded", "temperature": 0}
# Cases whose replies are text: many others are nothing but end-of-sequence tokens.
TEXTS = ("unsteered", "scale_middle", "vector_last", "three_sets", "all", "window", "decay")


@pytest.fixture(scope="module")
def own_sets(set_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(set_dir, tmp_path_factory.mktemp("own"), dirs_exist_ok=True)
    put_strays(folder, (folder / "both.safetensors").read_bytes())
    return folder


@pytest.fixture(scope="module")
def address(own_sets: Path) -> Iterator[str]:
    options = ("--max-sets-per-request", "4", "--api-key", KEY)
    # Routes that vLLM has as an option from 0.30 on.
    more = ("--enable-scale-out",) if __version_tuple__ >= (0, 30) else ()
    with server("embedded", "--set-dir", own_sets, *options, *more) as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def post(address: str) -> Iterator[Callable[..., httpx.Response]]:
    """POST to any route; a client of none."""
    with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {KEY}"}) as plain:
        yield lambda route, body: plain.post(route, json=body, timeout=60)


def extra(extra_args: Mapping[str, Any] | None, **fields: Any) -> dict[str, Any]:
    """Fields that OpenAI's API does not know."""
    # As many tokens as the reference has.
    return {"ignore_eos": True, **fields, **({"vllm_xargs": extra_args} if extra_args else {})}


def content(name: str) -> str:
    """The user turn of a case, as embedded_sets.requests() deals them out."""
    turns = embedded_task("french").contents("report")[: len(embedded_sets.prompts())]
    return turns[list(embedded_sets.cases()).index(name) % len(turns)]


@pytest.fixture(scope="module")
def same_text(reference: Mapping[str, Any]) -> Callable[[str, str], None]:
    """Compare a text with the reference's, up to the first near tie."""
    tokenizer = AutoTokenizer.from_pretrained(model_path())

    def compare(name: str, text: str) -> None:
        gaps = reference[name]["gaps"]
        sure = next((i for i, gap in enumerate(gaps) if gap < NEAR_TIE), len(gaps))
        tokens = reference[name]["tokens"][:sure]
        expected = tokenizer.decode(tokens, skip_special_tokens=True).strip()
        assert expected and text.strip()[: len(expected)] == expected, name
        if sure == len(gaps):
            assert text.strip() == expected, name

    return compare


def complete(client: openai.OpenAI, asked: Mapping[str, Any], **options: Any) -> Any:
    return client.completions.create(
        **GREEDY,
        prompt=asked["prompt"],
        max_tokens=asked["max_tokens"],
        extra_body=extra(asked["extra_args"], return_token_ids=True),
        **options,
    )


def test_concurrent_completions_are_each_steered_as_asked(
    client: openai.OpenAI, requests: Mapping[str, Any], reference: Mapping[str, Any]
) -> None:
    with ThreadPoolExecutor(len(requests)) as pool:
        answers = pool.map(lambda asked: complete(client, asked), requests.values())
        comparison = Comparison()
        for name, answer in zip(requests, answers, strict=True):
            comparison.add(name, reference[name], {"tokens": answer.choices[0].token_ids})
    comparison.check()


def test_streams_of_completions_too(
    client: openai.OpenAI, requests: Mapping[str, Any], reference: Mapping[str, Any]
) -> None:
    comparison = Comparison()
    for name in ("scale_last", "ablate_middle", "unsteered"):
        tokens: list[int] = []
        for chunk in complete(client, requests[name], stream=True):
            tokens += chunk.choices[0].token_ids or []
        comparison.add(name, reference[name], {"tokens": tokens})
    comparison.check()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_chats(stream: bool, client: openai.OpenAI, same_text: Callable[[str, str], None]) -> None:
    def chat(name: str) -> str:
        answer = client.chat.completions.create(
            **GREEDY,
            messages=[{"role": "user", "content": content(name)}],
            max_tokens=embedded_sets.N_TOKENS,
            stream=stream,
            extra_body=extra(embedded_sets.cases()[name]),
        )
        if not stream:
            return str(answer.choices[0].message.content)
        return "".join(chunk.choices[0].delta.content or "" for chunk in answer)

    with ThreadPoolExecutor(len(TEXTS)) as pool:
        for name, text in zip(TEXTS, pool.map(chat, TEXTS), strict=True):
            same_text(name, text)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", TEXTS)
def test_responses(
    name: str, stream: bool, client: openai.OpenAI, same_text: Callable[[str, str], None]
) -> None:
    answer = client.responses.create(
        **GREEDY,
        input=content(name),
        max_output_tokens=embedded_sets.N_TOKENS,
        stream=stream,
        extra_body=extra(embedded_sets.cases()[name]),
    )
    if stream:
        deltas = [event for event in answer if event.type == "response.output_text.delta"]
        same_text(name, "".join(event.delta for event in deltas))
    else:
        same_text(name, answer.output_text)


@pytest.mark.parametrize(
    "route",
    ["/v1/messages", "/v1/chat/completions/batch", "/invocations", "/inference/v1/generate"],
)
def test_other_routes_that_pass_steering_on(
    route: str, post: Callable[..., httpx.Response], same_text: Callable[[str, str], None]
) -> None:
    def text(name: str) -> str:
        message = {"role": "user", "content": content(name)}
        body = {
            **GREEDY,
            **extra(embedded_sets.cases()[name]),
            "messages": [[message]] if route.endswith("batch") else [message],
            "max_tokens": embedded_sets.N_TOKENS,
        }
        if route == "/inference/v1/generate":
            body = {**post("/v1/chat/completions/render", body).json(), "output_mode": "text"}
        answer = post(route, body)
        assert answer.status_code == 200, answer.text
        if route == "/v1/messages":
            return str(answer.json()["content"][0]["text"])
        (choice,) = answer.json()["choices"]
        return str(choice["text"] if "text" in choice else choice["message"]["content"])

    for name in ("scale_last", "three_sets"):  # no end of sequence, which not all can ignore
        same_text(name, text(name))


def test_several_samples_of_one_request(
    client: openai.OpenAI, requests: Mapping[str, Any], reference: Mapping[str, Any]
) -> None:
    asked = requests["scale_middle"]
    answer = client.completions.create(
        model="embedded",
        prompt=asked["prompt"],
        max_tokens=asked["max_tokens"],
        n=3,
        temperature=1,
        extra_body=extra(asked["extra_args"], return_token_ids=True, top_k=1),  # greedy, but n > 1
    )
    comparison = Comparison()
    for choice in answer.choices:
        got = {"tokens": choice.token_ids}
        comparison.add(f"sample {choice.index}", reference["scale_middle"], got)
    comparison.check(most_excused=3)
    assert comparison.compared == 3


def test_a_logit_bias_beside(
    client: openai.OpenAI,
    requests: Mapping[str, Any],
    hf_model: Any,
    sets: Mapping[str, LatentSet],
) -> None:
    asked = requests["scale_middle"]
    with steer(hf_model, sets, asked["extra_args"]), torch.no_grad():
        logits = hf_model(torch.tensor([asked["prompt"]])).logits[0, -1]
    first, second = logits.topk(2).indices.tolist()
    answer = complete(client, asked, logit_bias={str(first): -100.0})
    assert answer.choices[0].token_ids[0] == second


def test_prompt_logprobs_are_the_steered_models(
    client: openai.OpenAI,
    requests: Mapping[str, Any],
    hf_model: Any,
    sets: Mapping[str, LatentSet],
) -> None:
    prompt = requests["all"]["prompt"]

    def logprobs(extra_args: dict[str, Any] | None) -> list[float]:
        answer = client.completions.create(
            **GREEDY,
            prompt=prompt,
            max_tokens=0,
            echo=True,
            logprobs=0,
            extra_body=extra(extra_args),
        )
        return list(answer.choices[0].logprobs.token_logprobs[1:])

    def expected(extra_args: dict[str, Any] | None) -> list[float]:
        ids = torch.tensor([prompt])
        with steer(hf_model, sets, extra_args), torch.no_grad():
            scores = hf_model(ids).logits[0, :-1].log_softmax(-1)
        return scores.gather(1, ids[0, 1:, None])[:, 0].tolist()

    asked: dict[str, Any]
    for asked in ({"saif": "add_last", "saif_scope": "all"}, requests["prompt"]["extra_args"]):
        assert logprobs(asked) == pytest.approx(expected(asked), abs=1e-3)
        assert logprobs(asked) != pytest.approx(logprobs(None), abs=0.1)


APIS: dict[str, Callable[..., Any]] = {
    "chat": lambda client, **options: client.chat.completions.create(
        **GREEDY, messages=[{"role": "user", "content": "hello"}], max_tokens=4, **options
    ),
    "completions": lambda client, **options: client.completions.create(
        **GREEDY, prompt="hello", max_tokens=4, **options
    ),
    "responses": lambda client, **options: client.responses.create(
        **GREEDY, input="hello", max_output_tokens=4, **options
    ),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_a_400_that_names_what_there_is(
    name: str, api: str, stream: bool, client: openai.OpenAI
) -> None:
    body, message = BAD[name]
    with pytest.raises(openai.BadRequestError) as caught:
        APIS[api](client, stream=stream, extra_body=body)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("api", "options"),
    [
        ("chat", {"extra_body": {"prompt_logprobs": 1}}),
        ("completions", {"extra_body": {"prompt_logprobs": 0}}),
        ("completions", {"extra_body": {}, "echo": True, "logprobs": 1}),
        ("completions", {"extra_body": {}, "echo": True, "logprobs": 1, "stream": True}),
    ],
    ids=["chat", "completions", "echo", "echo_stream"],
)
def test_logprobs_of_a_prompt_that_is_not_steered_are_refused(
    api: str, options: dict[str, Any], client: openai.OpenAI
) -> None:
    options["extra_body"] |= {"vllm_xargs": {"saif": "add_last"}}
    with pytest.raises(openai.BadRequestError, match="they would be the unsteered model's"):
        APIS[api](client, **options)


@pytest.mark.parametrize("name", UNUSUAL)
def test_an_unusual_request_is_a_short_400(name: str, address: str) -> None:
    content, options, message = UNUSUAL[name]
    own = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    answer = httpx.post(
        f"{address}/v1/chat/completions",
        content=content,
        params=options.get("params"),
        headers={**own, **options.get("headers", {})},
        timeout=60,
    )
    assert answer.status_code == 400, answer.text[:1000]
    if message is not None:
        assert message in answer.json()["error"]["message"]
        assert len(answer.text) < 1000


@pytest.mark.parametrize("route", ["/generative_scoring", "/v1/systemone", "/v1/embeddings"])
def test_routes_that_drop_it_refuse_it(route: str, post: Callable[..., httpx.Response]) -> None:
    answer = post(route, {"model": "embedded", "vllm_xargs": {"saif": "add_last"}})
    assert answer.status_code == 400
    assert f"{route} cannot be steered" in answer.json()["error"]["message"]


def test_without_the_key_it_is_a_401_whatever_is_asked(address: str) -> None:
    answer = httpx.post(f"{address}/v1/chat/completions", json={"saif": "frensh"})
    assert answer.status_code == 401


def test_every_route_of_vllm_is_known_and_no_field_is_taken_for_ours(address: str) -> None:
    schema = httpx.get(f"{address}/openapi.json").json()
    posts = {path for path, methods in schema["paths"].items() if "post" in methods}
    assert posts - NOT_GENERATING <= ROUTES.keys()
    for name, model in schema["components"]["schemas"].items():
        assert "saif" not in model.get("properties", {}), name
        check_keys(model.get("properties"))


def test_the_server_goes_on_and_counts_what_it_refused(
    client: openai.OpenAI,
    address: str,
    requests: Mapping[str, Any],
    reference: Mapping[str, Any],
) -> None:
    with pytest.raises(openai.BadRequestError):
        APIS["chat"](client, extra_body={"saif": "add_last"})
    comparison = Comparison()
    for name in ("scale_last", "unsteered", "both"):
        answer = complete(client, requests[name])
        comparison.add(name, reference[name], {"tokens": answer.choices[0].token_ids})
    comparison.check()
    assert metric(address, "http_requests_total", status="4xx", handler="/v1/chat/completions") >= 1
    assert metric(address, "saif:requests_refused_total") >= 1
    assert metric(address, "saif:requests_total", set="scale_last") >= 1
    assert metric(address, "saif:requests_total", set="both") >= 1


def test_metrics_have_the_tokens_that_the_devices_counted(
    client: openai.OpenAI, address: str, requests: Mapping[str, Any]
) -> None:
    names = {
        "planned": "saif:tokens_planned_total",
        "steered": "saif:tokens_steered_total",
        "dose": "saif:relative_dose_total",
    }
    before = {what: metric(address, name) for what, name in names.items()}
    complete(client, requests["unsteered"])
    complete(client, requests["add_last"])
    now = {what: metric(address, name) - before[what] for what, name in names.items()}
    # From the last prompt token to the last but one that is generated.
    assert now["planned"] == now["steered"] == requests["add_last"]["max_tokens"]
    assert now["dose"] > 0
    assert metric(address, names["dose"], layer="2") >= now["dose"]  # add_last is there


def test_sets_that_come_and_go_break_no_stream(
    address: str, own_sets: Path, requests: Mapping[str, Any]
) -> None:
    prompt = requests["unsteered_first"]["prompt"]
    body = {**GREEDY, **extra(None, return_token_ids=True), "prompt": prompt, "max_tokens": 6}
    sources = ("add_last", "scale_last", "ablate_middle")  # which all say something else
    solo = {name: set(ask_streaming(address, KEY, body, [name], 0)) for name in sources}
    churn = Churn(own_sets, [own_sets / f"{name}.safetensors" for name in sources], pause=0.01)
    with churn.running():
        outcomes = ask_streaming(address, KEY, body, churn.names, 12)
    allowed = set().union(*solo.values())
    assert len(allowed) == len(sources) and churn.changes > 200
    refused = {text for text in outcomes if text.startswith("400: ") and "unknown set" in text}
    assert allowed <= outcomes.keys() and not outcomes.keys() - allowed - refused, outcomes
    assert sum(outcomes[text] for text in refused) < outcomes.total() / 2
    assert not any(str(own_sets) in text for text in outcomes)
