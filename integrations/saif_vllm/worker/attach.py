"""Attaching to a loaded model: its decoder layers, their tables and hooks."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch

from saif_fast.tables import HookedModel, SteeringTables
from saif_kernels import RequestRows, Tally
from saif_vllm.config import SteeringConfig, hooked_model
from saif_vllm.worker.capture import LastTokenCapture
from saif_vllm.worker.layers import Steering
from saif_vllm.worker.op import steering_hook
from saif_vllm.worker.proof import Proof
from saif_vllm.worker.scrub import can_scrub
from saif_vllm.worker.step import StepTables
from saif_vllm.worker.structure import decoder_layers, verify_streams

logger = logging.getLogger("vllm.saif")


def refuse_unsupported(vllm_config: Any, config: SteeringConfig) -> None:
    """Raise ValueError for engine features that would leave tokens unsteered or wrongly steered."""
    parallel, model = vllm_config.parallel_config, vllm_config.model_config
    below_last = config.layers[0] < model.get_total_num_hidden_layers() - 1
    cache_dtype = vllm_config.cache_config.cache_dtype
    refused = {
        # Only the last pipeline rank's word of a token that is not finite reaches the engine core.
        "pipeline parallelism with no hooked layer on the last rank (also hook the last layer)": (
            parallel.pipeline_parallel_size > 1
            and config.layers[-1] < _first_layer_of_last_rank(vllm_config)
        ),
        f"kv_cache_dtype {cache_dtype}, which cannot be cleared of what is not finite,": (
            not can_scrub(cache_dtype)
        ),
        # The second half of a batch would read the first half's rows.
        "microbatching (enable_dbo, ubatch_size)": parallel.use_ubatching,
        # A rank sees a part of each prompt only.
        "prefill context parallelism": parallel.prefill_context_parallel_size > 1,
        # Late layers see a part of the batch only.
        "kv_sharing_fast_prefill": vllm_config.cache_config.kv_sharing_fast_prefill,
        # Between layers the residual stream would be cut up over the ranks.
        "sequence parallelism (pass_config.enable_sp)": getattr(
            vllm_config.compilation_config.pass_config, "enable_sp", False
        ),
        # It answers requests without our validation.
        "the Rust front end (VLLM_USE_RUST_FRONTEND)": (
            os.environ.get("VLLM_USE_RUST_FRONTEND", "0") != "0"
        ),
        # Its hooks would be set by the structure probe's forward, before the model is compiled.
        "layerwise NVTX tracing": getattr(
            vllm_config.observability_config, "enable_layerwise_nvtx_tracing", False
        ),
        # The canary would run forwards that the other ranks do not take part in.
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


def attach(worker: Any, config: SteeringConfig) -> Steering:
    """Allocate the tables and hook the layers of a worker's model.

    Before the first compiled forward, so that torch.compile traces the hooks. The tables are no
    part of the model: vLLM reloads a model's weights, and its sleep mode drops them and puts its
    buffers back as they were, while sets may have been loaded in between.

    Raises:
        ValueError: the model's structure is not one that steering knows.
    """
    vllm_config, runner = worker.vllm_config, worker.model_runner
    model = runner.get_model()
    fits, device = hooked_model(vllm_config, config), torch.device(worker.device)
    layers = decoder_layers(model, fits.num_layers)
    streams = verify_streams(runner, vllm_config, layers, config.layers)
    steering = _allocate(config, fits, list(streams), runner.max_num_tokens, vllm_config, device)
    context = vllm_config.compilation_config.static_forward_context
    for layer, table in steering.layers.items():
        name = f"saif.layers.{layer}"
        context[name] = table
        layers[layer].register_forward_hook(steering_hook(name, streams[layer]))
    # vLLM 0.32 sizes a GPU's KV cache by the memory that is free after its profiling run, so after
    # this, and only prints this number; earlier versions add it up. A CPU's runner has none.
    if hasattr(runner, "model_memory_usage"):
        runner.model_memory_usage += steering.nbytes
    logger.info(
        "Steering layers %s: %.1f MiB for at most %d sets and %d live latents a layer",
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
) -> Steering:
    tables = SteeringTables(fits, config.max_sets, config.max_latents, device, owned=owned)
    max_requests = vllm_config.scheduler_config.max_num_seqs
    rows = RequestRows.allocate(max_requests, config.max_sets_per_request, device)
    tally = Tally.allocate(len(owned), max_tokens, max_requests, device)
    proof = Proof(tally, owned, config.warn_dose)
    capture = None
    if config.max_captures:
        capture = LastTokenCapture(
            len(owned), config.max_captures, fits.d_model, fits.dtype, device
        )
    step = StepTables(rows, proof, max_tokens, capture)
    return Steering(tables, step, config.max_dose)
