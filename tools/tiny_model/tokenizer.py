"""The embedded model's tokenizer: byte-level BPE in which nearly every word is one token.

Steering is fragile where words are split, so the merges are learned from the corpus' whole
vocabulary. The chat template writes the beginning-of-sequence token and the tokenizer adds none, so
a templated prompt has exactly one, whatever ``add_special_tokens`` says.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from saif_fast.tasks.embedded.corpus import FORMATS, draw_scene
from saif_fast.tasks.embedded.wordings import NEUTRAL, WORDINGS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
MAX_LENGTH = 1024
MAX_VOCABULARY = 4096
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}User: {{ message['content'] }}\n"
    "{% elif message['role'] == 'assistant' %}"
    "Assistant: {{ message['content'] }}{{ eos_token }}"
    "{% else %}{{ raise_exception('roles: expected user and assistant only') }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def build_tokenizer(scenes: int = 4000, seed: int = 0) -> PreTrainedTokenizerFast:
    """Learn the merges from ``scenes`` random scenes in every format and from all instructions."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    rng = random.Random(seed)
    texts = {f"User: {text}\nAssistant:" for text in NEUTRAL}
    texts |= {wording.text for wordings in WORDINGS.values() for wording in wordings}
    texts |= {f" {text}" for text in texts}
    for _ in range(scenes):
        scene = draw_scene(rng)
        texts |= {f" {reply(scene)}" for reply in FORMATS.values()}
        texts |= {scene.content, f" {scene.content}", f" {scene.plain()}"}
    # Count every word once; otherwise rare words would stay in pieces.
    pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces = {piece for text in texts for piece, _ in pre_tokenizer.pre_tokenize_str(text)}

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizer
    bpe.decoder = decoders.ByteLevel()
    decode = decoders.ByteLevel().decode
    bpe.train_from_iterator(
        (decode([piece]) for piece in sorted(pieces)),
        trainers.BpeTrainer(
            vocab_size=MAX_VOCABULARY,
            min_frequency=1,
            special_tokens=[PAD, BOS, EOS],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_LENGTH,
        chat_template=CHAT_TEMPLATE,
    )
