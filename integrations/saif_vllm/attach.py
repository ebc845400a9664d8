"""Attaching to a loaded model: its decoder layers, their tables and hooks."""

from __future__ import annotations

import logging
from typing import Any

import torch

from saif_fast.tables import Capacity, SteeringTables
from saif_vllm.config import SteeringConfig
from saif_vllm.op import steering_hook
from saif_vllm.sets import OfferedSets
from saif_vllm.structure import decoder_layers, verify_streams
from saif_vllm.tables import LayerTables, Steering, StepTables

logger = logging.getLogger("vllm.saif")


def refuse_unsupported(vllm_config: Any) -> None:
    """Raise ValueError for engine features that would leave tokens unsteered or wrongly steered."""
    parallel = vllm_config.parallel_config
    refused = {
        "microbatching (enable_dbo, ubatch_size)": parallel.use_ubatching,
        "prefill context parallelism": parallel.prefill_context_parallel_size > 1,
        "kv_sharing_fast_prefill": vllm_config.cache_config.kv_sharing_fast_prefill,
        # The start-up canary counts what it steered on the host's side of a launch, which a replay
        # does not pass.
        "CUDA graphs (enforce_eager=True switches them off)": (
            vllm_config.compilation_config.cudagraph_mode.name != "NONE"
        ),
    }
    for feature, used in refused.items():
        if used:
            raise ValueError(f"{feature}: expected off in an engine that steers, got on")


def attach(worker: Any, config: SteeringConfig) -> Steering:
    """Allocate the tables, load all sets and hook the layers of a worker's model.

    Before the first forward, so that torch.compile traces the hooks.
    """
    vllm_config, runner = worker.vllm_config, worker.model_runner
    model = runner.get_model()
    offered = OfferedSets.load(vllm_config, config)
    device, dtype = torch.device(worker.device), vllm_config.model_config.dtype
    scheduler = vllm_config.scheduler_config
    layers = decoder_layers(model, offered.last_layer + 1)
    streams = verify_streams(runner, vllm_config, layers, config.layers)
    sets = SteeringTables(
        config.layers,
        d_model=vllm_config.model_config.get_hidden_size(),
        num_layers=len(layers),
        capacity=Capacity(
            max_sets=config.max_sets + 1,  # and the canary's
            max_latents=config.max_latents,
            max_requests=scheduler.max_num_seqs + 1,  # and the canary's
            max_sets_per_request=config.max_sets_per_request,
        ),
        dtype=dtype,
        device=device,
        owned=list(streams),  # the others are another pipeline rank's
    )
    for latent_set in offered.by_hash.values():
        sets.load(latent_set)
    step = StepTables(sets.slots, sets.rows, runner.max_num_tokens)
    tables = {layer: LayerTables(bank, step) for layer, bank in sets.banks.items()}
    steering = Steering(step, tables, canary_slot=config.max_sets)
    model.add_module("saif_steering", steering)
    context = vllm_config.compilation_config.static_forward_context
    for layer, table in tables.items():
        name = f"saif.layers.{layer}"
        context[name] = table
        layers[layer].register_forward_hook(steering_hook(name, streams[layer]))
    # vLLM sizes the KV cache by what the model is said to take.
    if hasattr(runner, "model_memory_usage"):
        runner.model_memory_usage += steering.nbytes
    logger.info(
        "Steering layers %s with %d sets (%s): %.1f MiB for at most %d sets and %d live latents",
        sorted(tables),
        len(offered.sets),
        ", ".join(sorted(offered.sets)) or "none",
        steering.nbytes / 2**20,
        config.max_sets,
        config.max_latents,
    )
    return steering
