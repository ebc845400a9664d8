"""Hooks that steer a model's decoder layers, and the tables that they read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saif_fast.banks import HookedModel, LayerBanks
from saif_fast.hf import decoder_layers
from saif_fast.latent_set import LatentSet
from saif_fast.limits import MAX_DOSE
from saif_fast.placement import SlotAllocator
from saif_fast.request import SteeringRequest, check_combination, check_length
from saif_kernels import RequestRows, SteeringBank, prepare_steps_, steer_

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class SteeringHooks:
    """Steering hooks on the decoder layers of one model.

    :meth:`set_requests` says which sets each batch row asks for, :meth:`place_tokens` places the
    tokens of the next forward, and the hooks of :meth:`attached` steer every layer's output in
    place. A Hugging Face decoder layer returns the full residual stream, so the op gets no separate
    residual.

    Args:
        model: a decoder-only transformers model.
        sets: the sets that may be asked for, by name.

    Raises:
        ValueError: a set was made for a model of another shape.
    """

    def __init__(self, model: PreTrainedModel, sets: Mapping[str, LatentSet]) -> None:
        modules = decoder_layers(model)
        self._device, self._dtype = model.device, model.dtype
        self._d_model = model.config.get_text_config().hidden_size
        self._sets = dict(sets)
        layers = sorted({layer for latent_set in sets.values() for layer in latent_set.layers})
        fits = HookedModel(tuple(layers), self._d_model, len(modules), model.dtype)
        self._banks, self._slots = _load_sets(self._sets, fits, self._device)
        self._layers = {layer: modules[layer] for layer in self._banks}
        self._rows: RequestRows | None = None
        self._request_row = self._token_row = torch.empty(0, dtype=torch.int32)
        self._token_scale = torch.empty(0)

    def set_requests(self, requests: Sequence[SteeringRequest | None], prompt_lens: Tensor) -> None:
        """Set what the batch rows of the next forwards ask for.

        Args:
            requests: [batch], one request per batch row; None = unsteered.
            prompt_lens: [batch] integer, number of prompt tokens of each row, without padding.

        Raises:
            ValueError: two sets of one request edit the same latent, or a change is too long for
                the model's dtype.
        """
        for asked in {request.sets for request in requests if request is not None}:
            check_combination({name: self._sets[name] for name, _ in asked})
            check_length(((self._sets[name], strength) for name, strength in asked), self._dtype)
        self._rows = None
        if any(request is not None for request in requests):
            self._rows = _request_rows(requests, self._slots, prompt_lens, self._device)
        steered = [-1 if request is None else row for row, request in enumerate(requests)]
        self._request_row = torch.tensor(steered, dtype=torch.int32, device=self._device)

    def keep_rows(self, kept: Tensor) -> None:
        """Keep only these batch rows, [kept] int64, when finished ones leave the batch."""
        self._request_row = self._request_row[kept]

    def place_tokens(self, positions: Tensor, real: Tensor | None) -> None:
        """Place the tokens of the next forward.

        Args:
            positions: [batch, tokens] integer, position of each token in its own sequence, without
                padding.
            real: [batch, tokens] bool, False on padding, which is never steered; None = no padding.
        """
        if self._rows is None:
            return
        batch, length = positions.shape
        assert batch == self._request_row.shape[0]
        start = torch.arange(batch + 1, dtype=torch.int32, device=self._device) * length
        self._token_row = start.new_empty(batch * length)
        self._token_scale = torch.empty(batch * length, device=self._device)
        prepare_steps_(
            token_row=self._token_row,
            token_scale=self._token_scale,
            query_start_loc=start,
            request_row=self._request_row,
            positions=positions.reshape(-1).contiguous(),
            rows=self._rows,
        )
        if real is not None:
            self._token_row.masked_fill_(~real.reshape(-1), -1)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Steer every forward of the model inside the block. Any exit removes the hooks."""
        with ExitStack() as hooks:
            for layer, module in self._layers.items():
                handle = module.register_forward_hook(self._hook(self._banks[layer]))
                hooks.callback(handle.remove)
            yield

    def _hook(self, bank: SteeringBank) -> Any:
        def hook(module: torch.nn.Module, args: Any, output: Any) -> Any:
            if self._rows is None:
                return output
            hidden = output[0] if isinstance(output, tuple) else output
            if torch.is_grad_enabled() and hidden.requires_grad:
                raise ValueError(
                    "steer: expected a forward under torch.no_grad(), got one with gradients"
                )
            flat = hidden.reshape(-1, self._d_model)
            assert flat.shape[0] == self._token_row.shape[0]
            steer_(
                flat,
                None,
                bank,
                self._rows,
                self._token_row,
                self._token_scale,
                max_dose=MAX_DOSE,
            )
            steered = flat.view(hidden.shape)
            return (steered, *output[1:]) if isinstance(output, tuple) else steered

        return hook


def _load_sets(
    sets: Mapping[str, LatentSet], model: HookedModel, device: torch.device
) -> tuple[dict[int, SteeringBank], dict[str, int]]:
    """Return banks by layer that hold all sets, and each set's slot by name."""
    live = [sum(s.n_live.get(layer, 0) for s in sets.values()) for layer in model.layers]
    max_sets, max_latents = len(sets), max(live, default=0)
    allocator = SlotAllocator(model.layers, max_sets, max_latents)
    loaded = LayerBanks(model, max_sets, max_latents, device)
    for latent_set in sets.values():
        edits = model.edits_by_layer(latent_set, max_latents)
        loaded.write_set(allocator.place(latent_set), edits)
    slots = {name: allocator.placed[found.content_hash].slot for name, found in sets.items()}
    return loaded.banks, slots


def _request_rows(
    requests: Sequence[SteeringRequest | None],
    slots: Mapping[str, int],
    prompt_lens: Tensor,
    device: torch.device,
) -> RequestRows:
    width = max(1, *(len(request.sets) for request in requests if request is not None))
    # Filled on the host and copied at once: one copy per row would add up over large batches.
    rows = RequestRows.allocate(len(requests), width, "cpu")
    for row, request in enumerate(requests):
        if request is not None:
            pairs = [(slots[name], strength) for name, strength in request.sets]
            rows.write_row(row, pairs, prompt_len=0, window=request.window)
    rows = RequestRows(rows.table.to(device))
    rows.prompt_len.copy_(prompt_lens)
    return rows
