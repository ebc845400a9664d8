"""The Transformers runtime: batched greedy generation and log-probabilities, with steering."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saif_fast.hf import (
    batches,
    check_lengths,
    encode_continuations,
    encode_texts,
    left_pad,
    positions_of,
)
from saif_fast.latent_set import LatentSet
from saif_fast.model_info import ModelInfo
from saif_fast.quality.capability import CapabilityCost
from saif_fast.request import SteeringRequest, check_reached, parse_request, with_defaults
from saif_fast.runtime import Generation, GenerationRequest, LogProbRequest
from saif_fast.set_dir import SetDirectory
from saif_transformers.context import load_set
from saif_transformers.hooks import SteeringHooks

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Elements of a forward's logits: bounds the batch where the vocabulary is large.
_LOGIT_ELEMENTS = 1 << 27


class TransformersRuntime:
    """A ``saif_fast.runtime.Runtime`` on Hugging Face transformers.

    Sets are looked up at every call, so a mapping or directory may grow in between. Requests are
    sorted by length and run in large left-padded batches. Equal calls give equal results.

    Args:
        model: a directory, a hub name, or a loaded model, which needs ``tokenizer``.
        sets: the sets that a request may name.
        tokenizer: the tokenizer of a loaded model.
        dtype: dtype of the weights; "auto" = as stored.
        device: where to run; None = a GPU if there is one, else the CPU.
        max_rows: requests per batch, at most.
        max_batch_tokens: prompt and generated tokens per batch, at most.

    Raises:
        ValueError: a loaded model came without a tokenizer.

    Examples:
        >>> runtime = TransformersRuntime("google/gemma-2-2b-it", SetDirectory("sets"))
        >>> request = GenerationRequest(prompt=prompt, saif="french*1.2", max_tokens=64)
        >>> runtime.generate([request])[0].text
    """

    def __init__(
        self,
        model: str | Path | PreTrainedModel,
        sets: SetDirectory | Mapping[str, LatentSet],
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        dtype: str = "auto",
        device: str | None = None,
        max_rows: int = 1024,
        max_batch_tokens: int = 1 << 17,
    ) -> None:
        if isinstance(model, str | Path):
            from transformers import AutoModelForCausalLM, AutoTokenizer

            device = device or ("cuda" if torch.cuda.is_available() else "cpu")
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(str(model))
            model = AutoModelForCausalLM.from_pretrained(str(model), dtype=dtype).to(device)
        if tokenizer is None:
            raise ValueError("tokenizer: expected one with a loaded model, got None")
        self._model, self._tokenizer, self._sets = model.eval(), tokenizer, sets
        self._context = ModelInfo.from_config(model.config).context
        vocabulary = model.config.get_text_config().vocab_size
        self._max_logits = max(1, _LOGIT_ELEMENTS // vocabulary)
        self._max_rows = min(max_rows, self._max_logits)
        self._max_batch_tokens = max_batch_tokens
        # Stop at the tokenizer's and the generation config's EOS, as vLLM does.
        eos = model.generation_config.eos_token_id
        stops = {tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])} - {None}
        self._eos = torch.tensor(sorted(stops), dtype=torch.long, device=model.device)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Generate greedily, in the order of ``requests``. All are checked before any runs.

        Raises:
            ValueError: a request does not parse, names an unknown set or token, would end before
                it is steered, or its prompt fills the model's context.
        """
        if not requests:
            return []
        steering, hooks = self._steering(requests)
        prompts = encode_texts(self._tokenizer, [request.prompt for request in requests])
        bias = _LogitBias(
            [request.logit_bias for request in requests],
            self._model.config.get_text_config().vocab_size,
            self._model.device,
        )
        for i, request in enumerate(requests):
            if request.max_tokens < 1:
                raise ValueError(
                    f"request {i} max_tokens: expected 1 or more, got {request.max_tokens}"
                )
            if (asked := steering[i]) is not None:
                check_reached(asked.window, request.max_tokens)
        check_lengths(prompts, self._context, lambda i: f"request {i} prompt")
        generated: list[list[int]] = [[]] * len(requests)
        with torch.inference_mode(), hooks.attached():
            # As in vLLM, a generation ends where the context does.
            context = sys.maxsize if self._context is None else self._context
            lengths = [
                min(len(prompt) + request.max_tokens, context)
                for prompt, request in zip(prompts, requests, strict=True)
            ]
            for batch in batches(lengths, self._max_batch_tokens, self._max_rows):
                rows = self._run(
                    [prompts[i] for i in batch],
                    [lengths[i] - len(prompts[i]) for i in batch],
                    [steering[i] for i in batch],
                    hooks,
                    bias.rows(batch),
                )
                for i, row in zip(batch, rows, strict=True):
                    generated[i] = row
        texts = self._tokenizer.batch_decode(generated, skip_special_tokens=True)
        return [
            Generation(text=text, token_ids=row) for text, row in zip(texts, generated, strict=True)
        ]

    def log_probs(self, requests: Sequence[LogProbRequest]) -> list[list[float]]:
        """Return the log-probability of each token of each continuation, in nats.

        All requests are checked before any runs. One forward does a batch.

        Raises:
            ValueError: a request does not parse, names an unknown set, or has an empty prompt or
                continuation, or both together fill the model's context.
        """
        steering, hooks = self._steering(requests)
        pairs = encode_continuations(
            self._tokenizer,
            [request.prompt for request in requests],
            [request.continuation for request in requests],
            self._context,
        )
        found: list[list[float]] = [[]] * len(requests)
        lengths = [len(prompt) + len(continuation) for prompt, continuation in pairs]
        max_tokens = min(self._max_batch_tokens, self._max_logits)
        with torch.inference_mode(), hooks.attached():
            for batch in batches(lengths, max_tokens, self._max_rows):
                tokens, real = left_pad(
                    [[*pairs[i][0], *pairs[i][1]] for i in batch], self._model.device
                )
                longest = max(len(pairs[i][1]) for i in batch)
                logits = self._logits(tokens, real, [steering[i] for i in batch], hooks, longest)
                chosen = logits.gather(-1, tokens[:, -longest:, None]).squeeze(-1)
                rows = (chosen - logits.logsumexp(-1)).tolist()
                for i, row in zip(batch, rows, strict=True):
                    found[i] = row[longest - len(pairs[i][1]) :]
        return found

    def capability_cost(self, saif: str, texts: Sequence[str]) -> CapabilityCost:
        """Compare the model steered at every token with the unsteered one: two forwards per batch.

        For plain text take ``saif_fast.identify.plain_texts()``; prompts go through the chat
        template first.

        Raises:
            ValueError: ``saif`` does not parse or names an unknown set, or a text has fewer than
                two tokens or as many as the context or more.
        """
        (asked,), hooks = self._steering([LogProbRequest(prompt="", continuation="", saif=saif)])
        ids = encode_texts(self._tokenizer, texts)
        check_lengths(ids, self._context, lambda i: f"text {i}")
        for i, row in enumerate(ids):
            if len(row) < 2:
                raise ValueError(f"text {i}: expected 2 tokens or more, got {len(row)}")
        lengths = [len(row) for row in ids]
        sums = torch.zeros(3, dtype=torch.float64)
        # Both variants' logits, and what is made of them, are in memory at once.
        max_tokens = min(self._max_batch_tokens, max(1, self._max_logits // 4))
        with torch.inference_mode(), hooks.attached():
            for batch in batches(lengths, max_tokens):
                tokens, real = left_pad([ids[i] for i in batch], self._model.device)
                plain, steered = (
                    self._logits(tokens, real, [variant] * len(batch), hooks, tokens.shape[1] - 1)
                    for variant in (None, asked)
                )
                plain, steered = plain.log_softmax(-1), steered.log_softmax(-1)
                # A token counts where it and the one before it are no padding.
                known, following = real[:, :-1], tokens[:, 1:, None]
                for k, values in enumerate(
                    (
                        plain.gather(-1, following).squeeze(-1),
                        steered.gather(-1, following).squeeze(-1),
                        (plain.exp() * (plain - steered)).sum(-1),
                    )
                ):
                    sums[k] += values[known].double().sum().cpu()
        n_tokens = sum(lengths) - len(lengths)
        log_plain, log_steered, kl = (sums / n_tokens).tolist()
        return CapabilityCost(
            perplexity=math.exp(-log_plain),
            steered_perplexity=math.exp(-log_steered),
            kl=kl,
            n_tokens=n_tokens,
        )

    def close(self) -> None:
        """Drop the model. The runtime cannot be used afterwards."""
        del self._model, self._tokenizer

    def _steering(
        self, requests: Sequence[GenerationRequest] | Sequence[LogProbRequest]
    ) -> tuple[list[SteeringRequest | None], SteeringHooks]:
        """Parse what the requests ask for, and load the sets that they name."""
        names = self._sets.names() if isinstance(self._sets, SetDirectory) else sorted(self._sets)
        steering = [parse_request(request.extra_args, available=names) for request in requests]
        used = {name for request in steering if request is not None for name, _ in request.sets}
        loaded = {name: load_set(self._sets, name) for name in names if name in used}
        defaults = {name: each.defaults for name, each in loaded.items()}
        resolved = [each and with_defaults(each, defaults) for each in steering]
        return resolved, SteeringHooks(self._model, loaded)

    def _logits(
        self,
        tokens: Tensor,
        real: Tensor,
        steering: list[SteeringRequest | None],
        hooks: SteeringHooks,
        n_last: int,
    ) -> Tensor:
        """Return the logits of each row's ``n_last`` last tokens: [rows, n_last, vocabulary] fp32.

        They are those at the tokens before. The whole row is a prompt, in terms of steering.
        """
        hooks.set_requests(steering, real.sum(1))
        positions = positions_of(real)
        hooks.place_tokens(positions, real)
        output = self._model(
            input_ids=tokens,
            attention_mask=real.long(),
            position_ids=positions,
            use_cache=False,
            logits_to_keep=n_last + 1,
        )
        logits: Tensor = output.logits[:, :-1].float()
        return logits

    def _run(
        self,
        prompts: list[list[int]],
        budgets: list[int],
        steering: list[SteeringRequest | None],
        hooks: SteeringHooks,
        bias: Tensor | None,
    ) -> list[list[int]]:
        """Decode one batch greedily, with a KV cache; a row leaves when it is finished."""
        tokens, real = left_pad(prompts, self._model.device)
        hooks.set_requests(steering, real.sum(1))
        positions = positions_of(real)
        budget = torch.tensor(budgets, device=tokens.device)
        going = list(range(len(prompts)))
        generated: list[list[int]] = [[] for _ in prompts]
        cache: Any = None
        while True:
            hooks.place_tokens(positions, real[:, -positions.shape[1] :])
            output = self._model(
                input_ids=tokens,
                attention_mask=real.long(),
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = output.past_key_values
            logits = output.logits[:, -1].float()
            token = (logits if bias is None else logits + bias).argmax(-1)
            for i, value in zip(going, token.tolist(), strict=True):
                generated[i].append(value)
            budget = budget - 1
            kept = (~torch.isin(token, self._eos) & (budget > 0)).nonzero().squeeze(1)
            if kept.numel() == 0:
                return generated
            if kept.numel() < len(going):
                # Every step copies the cache as it grows, so dropping rows costs one more copy at
                # most.
                cache.batch_select_indices(kept)
                hooks.keep_rows(kept)
                going = [going[i] for i in kept.tolist()]
                token, real, positions, budget = (x[kept] for x in (token, real, positions, budget))
                bias = None if bias is None else bias[kept]
            tokens = token[:, None]
            real = torch.cat([real, real.new_ones(len(going), 1)], dim=1)
            positions = positions[:, -1:] + 1


class _LogitBias:
    """Dense biases, one row per distinct dictionary, added to the raw logits as vLLM does."""

    def __init__(
        self, biases: Sequence[Mapping[int, float] | None], vocabulary: int, device: torch.device
    ) -> None:
        distinct = {id(bias): bias for bias in biases if bias}
        row = {key: i + 1 for i, key in enumerate(distinct)}  # row 0: no bias
        self._row = torch.tensor([row[id(b)] if b else 0 for b in biases], device=device)
        self._table = torch.zeros(len(distinct) + 1, vocabulary, device=device)
        for key, bias in distinct.items():
            token = torch.tensor(list(bias), dtype=torch.long)
            value = torch.tensor(list(bias.values()), dtype=torch.float32)
            outside = (token < 0) | (token >= vocabulary)
            if outside.any() or not value.isfinite().all():
                raise ValueError(
                    f"logit_bias: expected finite values for tokens 0 to {vocabulary - 1}, "
                    f"got {dict(bias)}"
                )
            self._table[row[key], token.to(device)] = value.to(device)

    def rows(self, batch: list[int]) -> Tensor | None:
        """Return [rows, vocabulary] fp32 biases of these requests; None if none has one."""
        row = self._row[batch]
        return self._table[row] if bool((row > 0).any()) else None
