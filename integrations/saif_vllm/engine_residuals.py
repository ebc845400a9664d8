"""``residuals``: a vLLM engine as a source of activations, from which latents are identified."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from saif_fast.hf import check_lengths
from saif_fast.model_info import ModelInfo, stored_name
from saif_vllm.config import SteeringConfig
from saif_vllm.reporting import refuse_async
from saif_vllm.request import CAPTURE_KEY


class EngineResiduals:
    """A ``saif_fast.identify.ResidualSource`` on a ``vllm.LLM``.

    Args:
        llm: started with ``saif_vllm.engine_args(..., layers=..., max_captures=...)``.

    Raises:
        ValueError: ``llm`` was started otherwise, or is an ``AsyncLLM``.
    """

    def __init__(self, llm: Any) -> None:
        refuse_async(llm, "identification wants one that answers a call")
        if not hasattr(llm, "llm_engine"):
            raise ValueError(f"llm: expected a vllm.LLM, got a {type(llm).__name__}")
        vllm_config = llm.llm_engine.vllm_config
        config = SteeringConfig.from_vllm_config(vllm_config)
        if config is None or config.max_captures == 0:
            raise ValueError(
                "llm: expected an engine started with saif_vllm.engine_args(max_captures=...), "
                "got one that keeps no residuals"
            )
        self._llm, self._config = llm, config
        model = vllm_config.model_config
        self.model = ModelInfo(
            name=getattr(model.hf_config, "model_name", None) or model.model,
            d_model=model.get_hidden_size(),
            num_layers=model.get_total_num_hidden_layers(),
            context=model.max_model_len,
            stored_name=stored_name(model.model),
        )

    def read(
        self, ids: Sequence[list[int]], positions: Sequence[Sequence[int]], layers: Sequence[int]
    ) -> dict[int, Tensor]:
        """Return residuals at tokens of texts.

        The engine keeps the residual of a text's last token only. So each position is a request of
        its own, the text up to that token, of which the prefix cache holds the beginning.

        Args:
            ids: token ids of each text.
            positions: token indices, from 0, of each text.
            layers: hooked layers.

        Returns:
            By layer: [number of positions, d_model] fp32 on the CPU, in the order of the texts.

        Raises:
            ValueError: a layer is not hooked, a text is empty or fills the engine's context.

        Examples:
            >>> last = residuals(llm).read(ids, [[len(row) - 1] for row in ids], [20])[20]
        """
        for layer in layers:
            if layer not in self._config.layers:
                raise ValueError(
                    f"layer: expected a hooked one ({', '.join(map(str, self._config.layers))}), "
                    f"got {layer}"
                )
        check_lengths(ids, self.model.context, lambda i: f"text {i}")
        beginnings = [
            row[: position + 1] for row, at in zip(ids, positions, strict=True) for position in at
        ]
        found = {layer: torch.empty(len(beginnings), self.model.d_model) for layer in layers}
        for start in range(0, len(beginnings), self._config.max_captures):
            chosen = slice(start, start + self._config.max_captures)
            kept = self._capture(beginnings[chosen])
            for layer in layers:
                found[layer][chosen] = kept[layer]
        return found

    def _capture(self, ids: Sequence[list[int]]) -> dict[int, Tensor]:
        from vllm import SamplingParams

        self._llm.generate(
            [{"prompt_token_ids": row} for row in ids],
            [
                SamplingParams(max_tokens=1, detokenize=False, extra_args={CAPTURE_KEY: i})
                for i in range(len(ids))
            ],
            use_tqdm=False,
        )
        kept: dict[int, Tensor] = {}
        # Ranks of one pipeline stage return the same; each stage returns its own layers.
        for rank in self._llm.collective_rpc("saif_read_captures", args=(len(ids),)):
            for layer, rows in rank:
                kept[layer] = torch.frombuffer(bytearray(rows), dtype=torch.float32).reshape(
                    len(ids), -1
                )
        return kept


def residuals(llm: Any) -> EngineResiduals:
    """Return an engine's residual stream as a source for ``saif_fast.identify.collect``.

    Functions of ``saif_fast.identify`` take it in place of a model.

    Example::

        llm = LLM(model, **saif_vllm.engine_args("sets", layers=[20], max_captures=64))
        activations = collect(saif_vllm.residuals(llm), llm.get_tokenizer(), pairs, [20])

    The set directory may be empty here, because the layers are given.
    """
    return EngineResiduals(llm)
