"""``steer``, a context manager under which a Hugging Face model's ``generate`` is steered."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saif_fast.latent_set import LatentSet
from saif_fast.names import listed
from saif_fast.request import SteeringRequest, check_strength, parse_request, with_defaults
from saif_fast.set_dir import SetDirectory
from saif_transformers.hooks import SteeringHooks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RowRequest = str | SteeringRequest | Mapping[str, str | int | float] | None


@contextmanager
def steer(
    model: PreTrainedModel,
    sets: SetDirectory | Mapping[str, LatentSet],
    requests: RowRequest | Sequence[RowRequest],
    *,
    prompt_lens: Sequence[int] | None = None,
    **options: str | int | float,
) -> Iterator[None]:
    """Steer ``model.generate`` (and plain forwards) inside the block::

        with steer(model, {"french": french}, ["french*1.2", None], saif_scope="all"):
            model.generate(**tokenizer(prompts, return_tensors="pt", padding=True))

    Padding is read from the attention mask. Plain forwards work as well: a forward with an empty
    cache begins a sequence, and its tokens are the prompt. For a prompt that is fed in chunks, give
    ``prompt_lens``. Any exit from the block leaves the model as it was.

    Args:
        model: a decoder-only transformers model, on one device.
        sets: the sets that a request may name.
        requests: one request for all batch rows, or a sequence of one per row, counted after
            ``generate`` expanded the batch by beams or return sequences. A request is a string such
            as ``"french*1.2"``, a mapping of ``saif`` keys as in vLLM's ``extra_args``, a
            SteeringRequest, or None = unsteered.
        prompt_lens: number of prompt tokens of each row, without padding; None = see above.
        options: ``saif_scope``, ``saif_start``, ``saif_stop``, ``saif_decay`` of the requests that
            are strings.

    Raises:
        ValueError: a request does not parse, a set is unknown or made for another model, the number
            of batch rows is not that of requests, or an attention mask is not two-dimensional.
    """
    names = sets.names() if isinstance(sets, SetDirectory) else sorted(sets)
    parsed = (
        _parse(requests, options, names)
        if requests is None or isinstance(requests, str | SteeringRequest | Mapping)
        else [_parse(request, options, names) for request in requests]
    )
    rows = parsed if isinstance(parsed, list) else [parsed]
    used = {name for request in rows if request is not None for name, _ in request.sets}
    loaded = {name: load_set(sets, name) for name in names if name in used}
    defaults = {name: each.defaults for name, each in loaded.items()}
    resolved = [each and with_defaults(each, defaults) for each in rows]
    hooks = SteeringHooks(model, loaded)
    tracker = _PromptTracker(
        model, hooks, resolved if isinstance(parsed, list) else resolved[0], prompt_lens
    )
    with hooks.attached(), tracker.attached():
        yield


def load_set(sets: SetDirectory | Mapping[str, LatentSet], name: str) -> LatentSet:
    """Return the set of that name; KeyError, or the directory's own error, if there is none."""
    return sets.load(name) if isinstance(sets, SetDirectory) else sets[name]


def _parse(
    request: RowRequest, options: Mapping[str, str | int | float], names: Sequence[str]
) -> SteeringRequest | None:
    if request is None:
        return None
    if isinstance(request, SteeringRequest):
        unknown = [name for name, _ in request.sets if name not in names]
        if unknown:
            raise ValueError(
                f"requests: expected sets among {listed(names, unknown[0])}, got {unknown[0]!r}"
            )
        for name, strength in request.sets:
            check_strength(name, strength)
        return request
    extra_args = {"saif": request, **options} if isinstance(request, str) else request
    return parse_request(extra_args, available=names)


class _PromptTracker:
    """A tracker that finds, before each forward, tokens' positions and rows' prompt lengths."""

    def __init__(
        self,
        model: PreTrainedModel,
        hooks: SteeringHooks,
        requests: SteeringRequest | list[SteeringRequest | None] | None,
        prompt_lens: Sequence[int] | None,
    ) -> None:
        self._model, self._decoder, self._hooks = model, model.get_decoder(), hooks
        self._signature = inspect.signature(self._decoder.forward)
        self._requests, self._prompt_lens = requests, prompt_lens
        self._prompt_columns: int | None = None
        self._generating = False

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hook the decoder, and wrap ``generate`` to learn where a prompt ends, until any exit."""
        with ExitStack() as stack:
            handle = self._decoder.register_forward_pre_hook(self._before_forward, with_kwargs=True)
            stack.callback(handle.remove)
            shadowed = self._model.__dict__.get("generate")
            self._model.__dict__["generate"] = self._wrap_generate(self._model.generate)
            if shadowed is None:
                stack.callback(self._model.__dict__.pop, "generate")
            else:
                stack.callback(self._model.__dict__.__setitem__, "generate", shadowed)
            yield

    def _wrap_generate(self, generate: Any) -> Any:
        @functools.wraps(generate)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            inputs = [args[0] if args else None]
            inputs += [kwargs.get(name) for name in ("inputs", "input_ids", "inputs_embeds")]
            mask = kwargs.get("attention_mask")
            # With a filled cache the mask covers the whole prompt, and the inputs perhaps only its
            # end.
            sized = [mask, *inputs] if mask is not None else inputs
            self._prompt_columns = next((t.shape[1] for t in sized if t is not None), 1)
            self._generating = True
            try:
                return generate(*args, **kwargs)
            finally:
                self._generating, self._prompt_columns = False, None

        return wrapper

    def _before_forward(self, module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        given = self._signature.bind_partial(*args, **kwargs).arguments
        tokens = given.get("input_ids")
        tokens = given["inputs_embeds"] if tokens is None else tokens
        batch, length = tokens.shape[:2]
        cache, mask = given.get("past_key_values"), given.get("attention_mask")
        past = 0 if cache is None else cache.get_seq_length()
        if mask is not None and (
            not isinstance(mask, Tensor) or mask.shape != (batch, past + length)
        ):
            got = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(
                f"attention_mask: expected {[batch, past + length]} (a dynamic cache), got {got}"
            )
        requests = self._requests if isinstance(self._requests, list) else [self._requests] * batch
        if len(requests) != batch:
            raise ValueError(f"requests: expected one per row ({batch}), got {len(requests)}")
        self._hooks.set_requests(requests, self._prompt_lengths(mask, batch, past, length, tokens))
        if mask is None:
            positions = torch.arange(past, past + length, device=tokens.device).expand(batch, -1)
            self._hooks.place_tokens(positions, None)
        else:
            real = mask != 0
            positions = real.long().cumsum(1) - 1
            self._hooks.place_tokens(positions[:, past:], real[:, past:])

    def _prompt_lengths(
        self, mask: Tensor | None, batch: int, past: int, length: int, tokens: Tensor
    ) -> Tensor:
        if self._prompt_lens is not None:
            if len(self._prompt_lens) != batch:
                raise ValueError(
                    f"prompt_lens: expected one per row ({batch}), got {len(self._prompt_lens)}"
                )
            return torch.tensor(self._prompt_lens, device=tokens.device)
        if not self._generating and past == 0:
            self._prompt_columns = length
        columns = self._prompt_columns
        if columns is None:
            raise ValueError("prompt_lens: expected with a cache filled before steering, got None")
        if mask is None:
            return torch.full((batch,), columns, device=tokens.device)
        # Of a prompt fed in chunks, the columns still to come hold no left padding.
        return (mask[:, :columns] != 0).sum(1) + max(0, columns - mask.shape[1])
