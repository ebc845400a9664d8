from __future__ import annotations

import pytest

from saif_fast.sae import load_sae
from saif_fast.sae.hook_names import residual_layer


@pytest.mark.parametrize(
    "hook_name, layer",
    [
        ("blocks.0.hook_resid_post", 0),
        ("blocks.25.hook_resid_post", 25),
        ("blocks.25.hook_resid_pre", 24),
        ("blocks.0.hook_resid_pre", -1),
        ("blocks.7.hook_out", 7),
        ("blocks.7.hook_in", 6),
        ("model.layers.12", 12),
        ("model.layers.12.output", 12),
        ("model.layers.12.input", 11),
        ("model.language_model.layers.30", 30),
        ("transformer.h.5", 5),
        ("gpt_neox.layers.5", 5),
    ],
)
def test_layer_whose_output_is_read(hook_name, layer):
    assert residual_layer(hook_name) == layer


@pytest.mark.parametrize(
    "hook_name",
    [
        "blocks.3.hook_resid_mid",
        "blocks.3.hook_mlp_out",
        "blocks.3.attn.hook_z",
        "blocks.3.ln2.hook_normalized",
        "blocks.3.mlp.hook_in",
        "blocks.-1.hook_resid_post",
        "blocks.3.hook_resid_post.extra",
        "hook_embed",
        "model.layers.3.self_attn.o_proj.input",
        "model.layers.3.post_feedforward_layernorm.output",
        "vision_tower.encoder.layers.3",
        "model.decoder.layers.3",
        "model.layers",
        "",
    ],
)
def test_other_sites_are_refused(hook_name):
    with pytest.raises(ValueError, match="expected the residual stream"):
        residual_layer(hook_name)


@pytest.mark.parametrize(
    "metadata, layer",
    [
        ({"hook_name": "blocks.4.hook_resid_pre"}, 3),
        ({"hook_name": "model.layers.4"}, 4),
        ({"hook_name": None, "hf_hook_name": "model.layers.4.output"}, 4),
        ({"hook_name": "blocks.4.hook_resid_post", "hf_hook_name": "model.layers.4"}, 4),
    ],
    ids=str,
)
def test_layer_comes_from_the_metadata(write_sae, metadata, layer):
    sae = load_sae(write_sae(metadata=metadata))
    assert sae.layer == layer
    assert sae.hook_name == (metadata["hook_name"] or metadata["hf_hook_name"])
