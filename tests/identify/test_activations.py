from __future__ import annotations

import re
from hashlib import sha256

import pytest
import torch
from random_model import D_MODEL, N_LAYERS, tiny_model, tiny_sae, tiny_tokenizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from saif_fast import hf
from saif_fast.identify import (
    ActivationSet,
    ContrastPair,
    ContrastPairs,
    LatentStatistics,
    Reading,
    collect,
    collect_readings,
    plain_texts,
)

PAIRS = ContrastPairs(
    (
        ContrastPair("w1 w2 w3", "w1", "a"),
        ContrastPair("w4", "w5 w6 w7 w8", "b"),
        ContrastPair("w9 w10", "w1", "b"),  # a negative that comes twice
    )
)
PLAIN = ("w1 w2 w3 w4 w5", "w6", "w7 w8")
LAYERS = (0, N_LAYERS - 1)


def read(chat: bool | None, batch_tokens: int = 8192, adds_bos: bool = True) -> ActivationSet:
    return collect(
        tiny_model(),
        tiny_tokenizer(adds_bos=adds_bos),
        PAIRS,
        LAYERS,
        chat=chat,
        plain=PLAIN,
        batch_tokens=batch_tokens,
    )


def alone(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, text: str, layer: int
) -> torch.Tensor:
    """The residual stream of one text, run by itself: [tokens, d_model]."""
    seen: list[torch.Tensor] = []
    handle = model.model.layers[layer].register_forward_hook(
        lambda module, args, output: seen.append(output)
    )
    with torch.no_grad():
        model(torch.tensor(hf.encode_texts(tokenizer, [text])))
    handle.remove()
    return seen[0][0]


@pytest.mark.parametrize("batch_tokens", [1, 12, 8192])
@pytest.mark.parametrize("chat", [True, False])
def test_batches_with_padding_equal_texts_alone(chat: bool, batch_tokens: int) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    activations = read(chat, batch_tokens)
    for layer in LAYERS:
        for i, pair in enumerate(PAIRS.pairs):
            for side, text in (("positive", pair.positive), ("negative", pair.negative)):
                prompt = hf.chat_texts(tokenizer, [text])[0] if chat else text
                expected = alone(model, tokenizer, prompt, layer)[-1]
                got = getattr(activations, side)[layer][i]
                torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_plain_text_is_every_token_but_bos() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    got = read(None).plain[0]
    rows = [alone(model, tokenizer, text, 0)[1:] for text in PLAIN]
    torch.testing.assert_close(got, torch.cat(rows), rtol=1e-4, atol=1e-4)


def test_a_tokenizer_without_bos_loses_no_token() -> None:
    assert read(False, adds_bos=False).plain[0].shape == (8, D_MODEL)


def test_the_template_is_used_where_there_is_one() -> None:
    assert read(None).chat and not read(False).chat
    assert torch.equal(read(None).positive[0], read(True).positive[0])
    assert not torch.allclose(read(None).positive[0], read(False).positive[0])


def test_no_hook_stays_behind() -> None:
    model = tiny_model()
    collect(model, tiny_tokenizer(), PAIRS, LAYERS, plain=PLAIN)
    assert not any(module._forward_hooks for module in model.modules())


def test_bad_layers_are_refused() -> None:
    for layer in (-1, N_LAYERS):
        with pytest.raises(ValueError, match=f"expected 0 to {N_LAYERS - 1}, got {layer}"):
            collect(tiny_model(), tiny_tokenizer(), PAIRS, [layer])
    with pytest.raises(ValueError, match=r"expected one of \[0, 2\], got 1"):
        read(False).at(1)


def test_the_built_in_plain_text() -> None:
    texts = plain_texts()
    assert len(texts) >= 40 and len(set(texts)) == len(texts)
    assert all(20 < len(text) < 200 for text in texts)


def test_the_plain_text_is_named_with_its_hash() -> None:
    own, built_in = (
        collect(tiny_model(), tiny_tokenizer(), PAIRS, [LAYERS[0]], plain=plain)
        for plain in (["w1 w2", "w3"], None)
    )
    digest = sha256(b"w1 w2\nw3").hexdigest()[:12]
    assert own.plain_name == f"2 texts given, sha256 {digest}"
    assert re.fullmatch("built-in everyday English, sha256 [0-9a-f]{12}", built_in.plain_name)
    found = LatentStatistics.compute(tiny_sae(LAYERS[0]), own).provenance
    assert found.notes["plain_text"] == f"{own.plain_name}, 3 tokens"


BOTH = ContrastPairs((ContrastPair("w1 w2", "w1", "a"), ContrastPair("w3 w4", "w3", "b")))


def with_pair(positive: str, negative: str) -> ContrastPairs:
    return ContrastPairs((*BOTH.pairs, ContrastPair(positive, negative)))


TOO_LONG = " ".join(["w1"] * 64)  # the context's length
BAD_TEXTS = {
    "an empty side": (
        with_pair("w1", ""),
        PLAIN,
        "pair 2: negative '': expected 1 to 63 tokens, got 0",
    ),
    "a side that fills the context": (
        with_pair(TOO_LONG, "w1"),
        PLAIN,
        "pair 2: positive 'w1 .*': expected 1 to 63 tokens, got 64",
    ),
    "the same tokens": (
        with_pair("w1  w2", "w1 w2"),
        PLAIN,
        "pair 2: expected sides that differ in tokens, got the same 2 of 'w1  w2' and 'w1 w2'",
    ),
    "an empty plain text": (BOTH, ("w1", ""), "plain text 1: expected 1 to 63 tokens, got 0"),
    "a long plain text": (BOTH, (TOO_LONG,), "plain text 0: expected 1 to 63 tokens, got 64"),
}


@pytest.mark.parametrize(("pairs", "plain", "message"), BAD_TEXTS.values(), ids=BAD_TEXTS)
def test_every_text_is_checked_before_the_model_runs(
    pairs: ContrastPairs, plain: tuple[str, ...], message: str
) -> None:
    model = tiny_model()
    model.model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    tokenizer = tiny_tokenizer(adds_bos=False)
    with pytest.raises(ValueError, match=message):
        collect(model, tokenizer, pairs, LAYERS, chat=False, plain=plain)


def test_a_template_without_the_content_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ bos_token }} User"
    with pytest.raises(ValueError, match=r"pair 0: expected sides .* after the chat template"):
        collect(tiny_model(), tokenizer, BOTH, LAYERS, plain=PLAIN)


@pytest.mark.parametrize("row", [[], [4] * 64], ids=["empty", "long"])
def test_a_text_without_a_last_token_has_no_residual(row: list[int]) -> None:
    with pytest.raises(ValueError, match=f"text 1: expected 1 to 63 tokens, got {len(row)}"):
        list(hf.run_decoder(tiny_model(), [[4, 5], row], LAYERS, 8192))


REPLIES = {"w1 w2 w3": [5, 6, 7], "w1": [8, 9, 10, 11], "w4": [12, 2], "w5 w6 w7 w8": [13]}


def read_replies(replies: dict[str, list[int]]) -> dict[Reading, ActivationSet]:
    return collect_readings(tiny_model(), tiny_tokenizer(), PAIRS, replies, LAYERS, plain=PLAIN)


def test_replies_are_read_token_by_token_up_to_the_shorter_one() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    found = read_replies(REPLIES)
    for side in ("positive", "negative"):
        torch.testing.assert_close(getattr(found["last"], side)[0], getattr(read(True), side)[0])
    # The last token of a reply yields nothing that was read: two tokens of the first pair's three,
    # of the second pair's replies one and none, and the third pair has no reply to its positive.
    prompts = hf.encode_texts(tokenizer, hf.chat_texts(tokenizer, ["w1 w2 w3", "w1"]))
    for side, prompt, reply in zip(
        ("positive", "negative"), prompts, ([5, 6], [8, 9]), strict=True
    ):
        seen: list[torch.Tensor] = []
        handle = model.model.layers[0].register_forward_hook(
            lambda module, args, output, seen=seen: seen.append(output)
        )
        with torch.no_grad():
            model(torch.tensor([[*prompt, *reply]]))
        handle.remove()
        expected = seen[0][0][len(prompt) :]
        torch.testing.assert_close(getattr(found["reply"], side)[0], expected, rtol=1e-4, atol=1e-4)
    assert found["reply"].reading == "reply" and found["last"].reading == "last"


def test_without_replies_there_is_one_reading() -> None:
    assert list(read_replies({})) == ["last"]
    assert list(read_replies({"w1 w2 w3": [5, 6]})) == ["last"]


def test_a_reply_that_fills_the_context_is_refused() -> None:
    with pytest.raises(ValueError, match="prompt and reply 0: expected 1 to 63 tokens"):
        read_replies({**REPLIES, "w1 w2 w3": [5] * 60})
