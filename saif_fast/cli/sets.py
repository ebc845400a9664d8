"""``saif make``, ``saif inspect``, ``saif export``: latent sets without generating anything."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saif_fast import hf
from saif_fast.cli.app import out, quiet, say
from saif_fast.cli.loading import SaeOption, load_info, load_model, set_output, tasks_for
from saif_fast.edits import Edit
from saif_fast.latent_set import LatentSet
from saif_fast.model_info import check_sae
from saif_fast.records import Latent, Provenance
from saif_fast.references import reference_of, sae_source
from saif_fast.sae import SparseAutoencoder, load_sae
from saif_fast.version import __version__
from saif_fast.windows import said

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_N_CONTENTS = 64  # over which a constant's shift of the logits is averaged


def make(
    sae: SaeOption,
    latent: Annotated[
        list[str], typer.Option(help="INDEX=EDIT, such as 622=clamp:80 or 17=ablate; repeat it.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The latent set to write.")],
    model: Annotated[
        str | None, typer.Option(help="The SAE's model; only its config is read.")
    ] = None,
    num_layers: Annotated[int | None, typer.Option(min=1, help="Instead of --model.")] = None,
) -> None:
    """Build a latent set by hand."""
    latents, output = [_parse_latent(text) for text in latent], set_output(output)
    read = load_sae(sae_source(sae))
    made = LatentSet.from_sae(
        read,
        latents,
        num_layers=num_layers or _layers_of(read, model),
        provenance=Provenance(method="made", model=read.model_name, version=__version__),
    )
    made.save(output)
    out.print(made.describe(), markup=False, highlight=False, soft_wrap=True)
    say(f"wrote {output}")


def _parse_latent(text: str) -> Latent:
    index, equals, edit = text.partition("=")
    if not equals or not index.strip().isdecimal():
        raise ValueError(f"--latent: expected INDEX=EDIT such as 622=clamp:80, got {text!r}")
    return Latent(index=int(index), edit=Edit.parse(edit))


def _layers_of(sae: SparseAutoencoder, model: str | None) -> int:
    source = model or _known_model(sae.model_name)
    if source is None:
        raise ValueError(
            f"--model: expected the model of SAE {sae.name} (or --num-layers), since "
            f"{sae.model_name!r} is not found on this machine"
        )
    info = load_info(source)
    if (doubt := check_sae(sae, info, allow_mismatch=True)) is not None:
        say(f"warning: {doubt}")
    return info.num_layers


def _known_model(name: str | None) -> str | None:
    """Return what ``--model`` would be for a recorded name, if it is found without a download."""
    if name is None or Path(name).is_dir():
        return name
    if (reference := reference_of(name)) is not None:
        return reference
    quiet()
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError):
        return None
    return name


def inspect(
    file: Annotated[Path, typer.Argument(help="A latent set.")],
    model: Annotated[
        str | None, typer.Option(help="For the promoted tokens; found by itself if it is local.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Promoted tokens per latent.")] = 8,
) -> None:
    """Show latents, statistics, edits, promoted tokens and provenance."""
    latent_set = LatentSet.load(file)
    out.print(latent_set.describe(), markup=False, highlight=False, soft_wrap=True)
    if importlib.util.find_spec("transformers") is None:
        say("promoted tokens are left out: they need transformers (saif-fast[identify])")
        return
    source = model or _known_model(latent_set.provenance.model)
    if source is None:
        say("promoted tokens are left out: give --model to see them")
        return
    loaded, tokenizer = _load_for(latent_set, source)
    for line in _promoted(latent_set, loaded, tokenizer, tokens):
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def _promoted(
    latent_set: LatentSet, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, n: int
) -> list[str]:
    from saif_fast.logit_bias import Unembedding

    unembedding = Unembedding(model)
    lines = ["promoted tokens (logit lens):"]
    for tensors in latent_set.sites:
        rows = {
            f"latent {latent.index}": row
            for latent, row in zip(tensors.site.latents, tensors.W_dec, strict=True)
        }
        constant = latent_set.edits_at(tensors.site.layer).vector
        if constant.any():
            rows["what is always added"] = constant
        for name, row in rows.items():
            raised, _ = unembedding.promoted(row, n)
            shown = " ".join(repr(tokenizer.decode([token])) for token in raised)
            lines.append(f"  layer {tensors.site.layer} {name}: {shown}")
    return lines


def export(
    file: Annotated[Path, typer.Argument(help="A latent set: constant, at the last layer.")],
    logit_bias: Annotated[int, typer.Option(min=1, help="How many tokens, those raised most.")],
    model: Annotated[
        str | None, typer.Option(help="Its model; found by itself if it is local.")
    ] = None,
    strength: Annotated[float, typer.Option(help="Strength of the set.")] = 1.0,
) -> None:
    """Print the set as the OpenAI logit_bias that it nearly is: {token id: bias}.

    The shift of the logits is the mean over 64 contents of the model's tasks.
    """
    from saif_fast.logit_bias import API_LIMIT, Unembedding, clamped, largest, last_residuals

    if not math.isfinite(strength) or strength == 0:
        raise ValueError(f"--strength: expected a finite number that is not 0, got {strength}")
    latent_set = LatentSet.load(file)
    if not latent_set.is_last_layer_constant:
        raise ValueError(
            f"{file}: only a constant at the last layer ({latent_set.num_layers - 1}) is nearly a "
            f"logit bias, and this set edits {_what(latent_set)}"
        )
    source = model or _known_model(latent_set.provenance.model)
    if source is None:
        raise ValueError(
            f"--model: expected the set's model, since {latent_set.provenance.model!r} is not "
            "found on this machine"
        )
    loaded, tokenizer = _load_for(latent_set, source)
    (layer,) = latent_set.layers
    prompts = list(tasks_for(source)[0].identify[:_N_CONTENTS])
    # Use the chat template if the set was found with it; for a set made by hand, if there is one.
    chat = latent_set.provenance.notes.get("chat", "true") == "true"
    if chat and tokenizer.chat_template is not None:
        prompts = hf.chat_texts(tokenizer, prompts)
    residual = last_residuals(loaded, tokenizer, prompts)
    vector = strength * latent_set.edits_at(layer).vector
    # Only raised tokens: so few of them steer better than the largest of both signs.
    bias = largest(Unembedding(loaded).shift(vector, residual), logit_bias, raised=True)
    if latent_set.defaults:
        window = said(latent_set.defaults)
        say(f"warning: a bias has no window, and counts for every token; the set has {window}")
    if clamped(bias) != bias:
        say(f"warning: biases beyond {API_LIMIT:g} were clamped, as the API asks")
    typer.echo(json.dumps({str(token): round(value, 4) for token, value in clamped(bias).items()}))


def _what(latent_set: LatentSet) -> str:
    live = [layer for layer, count in latent_set.n_live.items() if count]
    if live:
        return f"latents by their activation at layer {live[0]}"
    return f"layer {', '.join(str(layer) for layer in latent_set.layers)}"


def _load_for(latent_set: LatentSet, model: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    info = load_info(model)
    latent_set.check_model(info.d_model, info.num_layers)
    return load_model(model)
