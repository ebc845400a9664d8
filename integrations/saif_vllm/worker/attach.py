"""Attachment to a loaded model: its decoder layers get banks and hooks."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch

from saif_fast.banks import HookedModel, LayerBanks
from saif_kernels import RequestRows, Tally
from saif_vllm.config import SteeringConfig, hooked_model
from saif_vllm.worker.batch import BatchTables
from saif_vllm.worker.capture import LastTokenCapture
from saif_vllm.worker.layers import WorkerSteering
from saif_vllm.worker.op import steering_hook
from saif_vllm.worker.proof import Proof
from saif_vllm.worker.scrub import can_scrub
from saif_vllm.worker.structure import decoder_layers, verify_forms

logger = logging.getLogger("vllm.saif")


def refuse_unsupported(vllm_config: Any, config: SteeringConfig) -> None:
    """Raise ValueError for engine features that would leave tokens unsteered or wrongly steered."""
    parallel, model = vllm_config.parallel_config, vllm_config.model_config
    below_last = config.layers[0] < model.get_total_num_hidden_layers() - 1
    cache_dtype = vllm_config.cache_config.cache_dtype
    refused = {
        # The engine core hears of tokens that are not finite from the last pipeline rank only.
        "pipeline parallelism with no hooked layer on the last rank (also hook the last layer)": (
            parallel.pipeline_parallel_size > 1
            and config.layers[-1] < _first_layer_of_last_rank(vllm_config)
        ),
        f"kv_cache_dtype {cache_dtype}, which cannot be cleared of what is not finite,": (
            not can_scrub(cache_dtype)
        ),
        # The second half of a batch would use the first half's rows.
        "microbatching (enable_dbo, ubatch_size)": parallel.use_ubatching,
        # Each rank sees only a part of each prompt.
        "prefill context parallelism": parallel.prefill_context_parallel_size > 1,
        # Late layers see only a part of the batch.
        "kv_sharing_fast_prefill": vllm_config.cache_config.kv_sharing_fast_prefill,
        # Between layers the residual stream would be split over the ranks.
        "sequence parallelism (pass_config.enable_sp)": getattr(
            vllm_config.compilation_config.pass_config, "enable_sp", False
        ),
        # It answers requests without our checks.
        "the Rust front end (VLLM_USE_RUST_FRONTEND)": (
            os.environ.get("VLLM_USE_RUST_FRONTEND", "0") != "0"
        ),
        # The structure probe's forward would set its hooks before the model is compiled.
        "layerwise NVTX tracing": getattr(
            vllm_config.observability_config, "enable_layerwise_nvtx_tracing", False
        ),
        # The canary would run forwards in which the other ranks do not take part.
        "elastic expert parallelism": getattr(parallel, "enable_elastic_ep", False),
        "an encoder-decoder model": model.is_encoder_decoder,
        # It encodes images and runs no decoder layer.
        "an encoder cache's producer (ec_role ec_producer)": (
            getattr(getattr(vllm_config, "ec_transfer_config", None), "ec_role", None)
            == "ec_producer"
        ),
        "a diffusion model": getattr(model, "is_diffusion", False),
        # Steered KV would leave the engine under the key of plain KV.
        "a KV connector, with a hooked layer below the last": (
            vllm_config.kv_transfer_config is not None and below_last
        ),
    }
    for feature, used in refused.items():
        if used:
            raise ValueError(f"{feature}: expected off in an engine that steers, got on")


def _first_layer_of_last_rank(vllm_config: Any) -> int:
    from vllm.distributed.utils import get_pp_indices

    n_ranks = vllm_config.parallel_config.pipeline_parallel_size
    n_layers = vllm_config.model_config.get_total_num_hidden_layers()
    first: int = get_pp_indices(n_layers, n_ranks - 1, n_ranks)[0]
    return first


def attach(worker: Any, config: SteeringConfig) -> WorkerSteering:
    """Allocate the tables and hook the layers of a worker's model.

    Must run before the first compiled forward, so that torch.compile traces the hooks. The tables
    are not parameters or buffers of the model, because vLLM reloads a model's weights, and its
    sleep mode drops them and restores old buffers. Sets loaded in between would be lost.

    Raises:
        ValueError: steering does not know the model's structure.
    """
    vllm_config, runner = worker.vllm_config, worker.model_runner
    model = runner.get_model()
    fits, device = hooked_model(vllm_config, config), torch.device(worker.device)
    layers = decoder_layers(model, fits.num_layers)
    forms = verify_forms(runner, vllm_config, layers, config.layers)
    steering = _allocate(config, fits, list(forms), runner.max_num_tokens, vllm_config, device)
    context = vllm_config.compilation_config.static_forward_context
    for layer, table in steering.layers.items():
        name = f"saif.layers.{layer}"
        context[name] = table
        layers[layer].register_forward_hook(steering_hook(name, forms[layer]))
    # Earlier versions than 0.32 size a GPU's KV cache by this number. 0.32 only prints it, and
    # sizes the cache by the memory that is free after its profiling run, which comes later. A CPU's
    # runner does not have it.
    if hasattr(runner, "model_memory_usage"):
        runner.model_memory_usage += steering.nbytes
    logger.info(
        "Steering layers %s: %.1f MiB for at most %d sets and %d live latents per layer",
        list(steering.layers),
        steering.nbytes / 2**20,
        config.max_sets,
        config.max_latents,
    )
    return steering


def _allocate(
    config: SteeringConfig,
    fits: HookedModel,
    owned: list[int],
    max_tokens: int,
    vllm_config: Any,
    device: torch.device,
) -> WorkerSteering:
    tables = LayerBanks(fits, config.max_sets, config.max_latents, device, owned=owned)
    max_requests = vllm_config.scheduler_config.max_num_seqs
    rows = RequestRows.allocate(max_requests, config.max_sets_per_request, device)
    tally = Tally.allocate(len(owned), max_tokens, max_requests, device)
    proof = Proof(tally, owned, config.warn_dose)
    capture = None
    if config.max_captures:
        capture = LastTokenCapture(
            len(owned), config.max_captures, fits.d_model, fits.dtype, device
        )
    batch = BatchTables(rows, proof, max_tokens, capture)
    return WorkerSteering(tables, batch, config.max_dose)
