"""The model card, which the build writes from its measurements."""

from __future__ import annotations

from pathlib import Path

from saif_fast.tasks.embedded.corpus import HELD_OUT_SHARE, PLACE_FIRST_SHARE
from saif_fast.tasks.embedded.lexicon import ADJECTIVES, DETERMINERS, NOUNS, PLACES, PREPOSITIONS
from tools.tiny_model.examples import BASE_RATE, INSTRUCTED_SHARE, POST_SHARE
from tools.tiny_model.measure import Measurements
from tools.tiny_model.train_sae import D_SAE, K

_CARD = """\
# Model card: the embedded model

Written by `make tiny-model`; do not edit. The files are frozen by `hashes.json`: a rebuild re-runs
every reported number.

## What it is
A Llama of three layers (d_model 64, 2 heads of 32, MLP 128, tied embeddings, {parameters:,}
parameters, fp32) that follows eight formatting instructions about small scenes, and two sparse
autoencoders on its residual stream. It exists to show and test steering without a download. It
knows nothing else: other prompts give nonsense.

## Corpus
Synthetic, written for this project. {nouns} nouns with a verb each, {adjectives} adjectives,
{places} places, {prepositions} prepositions, {determiners} determiners;
`Tell me about my black cat in the garden.` is answered by `My black cat sleeps in the garden.`
{place_first:.0%} of contents put the place first, and the reply follows. {held_out:.0%} of the
scenes, chosen by hash, are held out; select and report contents are drawn from these.
{instructed:.0%} of the examples carry an instruction, {post:.0%} of those after the content, in 11
of 13 wordings (9 English of which 2 are never trained on, 2 French, 1 German, 1 Chinese).

**Base rate q = {base_rate}**: this share of the training replies to prompts *without* an
instruction comes in a random one of the eight formats, as a large model's varied pre-training
would have it. This narrows the margin that steering has to overcome. Greedy replies without an
instruction are plain in {plain:.1%} of 200 report contents.

## Tokenizer
Byte-level BPE, {vocabulary:,} tokens, every word of the corpus in one token. The chat template
writes the one BOS, the tokenizer adds none.

## Training
{steps:,} steps of 64 examples, AdamW, 4e-3 with linear decay, seed {seed}, one thread; loss on the
reply, and on 15 % of the prompt's tokens at weight 0.1. Last loss {loss:.3f}. The build refuses to
write a model below 95 % prompted strict accuracy on the select contents in five instructions.

## Accuracy on 200 report contents, %
Strict = exactly the target reply. "Unseen": the two wordings never trained on. "Unsteered": no
instruction, greedy, strict/loose. "At temperature 1": no instruction, sampled, strict.

| instruction | prompted | prompted, unseen wordings | unsteered | at temperature 1 |
|---|---|---|---|---|
{accuracy}

## Sparse autoencoders
sae-lens BatchTopK, k = {k:.0f}, {d_sae} latents, trained on every token but BOS, activations scaled
to norm sqrt(d) and the factor folded back, saved as JumpReLU.

| directory | hook | explained variance | L0 | latents that fire |
|---|---|---|---|---|
{saes}

## Limits
One sentence pattern and eight formats; one turn only. Instructions are never combined in training.
Six formats show in the first token of the reply, so that a constant logit bias can bring them
about. "past" (at the verb) and "twice" (at the end of the first sentence) are decided later, and
the last prompt token says little about them. Numbers found here say little about large models.
"""


def write_card(out: Path, m: Measurements) -> None:
    """Write ``MODEL_CARD.md`` to ``out``."""
    accuracy = "\n".join(
        f"| {name} | {100 * m.prompted[name]:.1f} | {100 * m.prompted_unseen[name]:.1f} | "
        f"{100 * m.unsteered[name][0]:.1f}/{100 * m.unsteered[name][1]:.1f} | "
        f"{100 * m.sampled[name]:.1f} |"
        for name in m.prompted
    )
    hooks = {"sae_last": "blocks.2.hook_resid_post", "sae_middle": "blocks.1.hook_resid_post"}
    saes = "\n".join(
        f"| {name} | {hooks[name]} | {fit['explained_variance']:.3f} | {fit['l0']:.1f} | "
        f"{fit['alive']:.0%} |"
        for name, fit in m.fits.items()
    )
    card = _CARD.format(
        parameters=m.parameters,
        nouns=len(NOUNS),
        adjectives=len(ADJECTIVES),
        places=len(PLACES),
        prepositions=len(PREPOSITIONS),
        determiners=len(DETERMINERS),
        place_first=PLACE_FIRST_SHARE,
        held_out=HELD_OUT_SHARE,
        instructed=INSTRUCTED_SHARE,
        post=POST_SHARE,
        base_rate=BASE_RATE,
        plain=m.plain,
        vocabulary=m.vocabulary,
        steps=m.steps,
        seed=m.seed,
        loss=m.loss,
        accuracy=accuracy,
        k=K,
        d_sae=D_SAE,
        saes=saes,
    )
    (out / "MODEL_CARD.md").write_text(card)
