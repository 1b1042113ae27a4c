"""CALM, concept-aware language model (Zhou et al. 2021, arXiv 2011.07956).

A text-to-text transformer learns from the nouns and verbs of plain sentences: it writes a sentence
from them, restores their order where they were shuffled, and says which of two sentences is the
true one. In a second stage it writes the false sentences itself, and learns to restore and to tell
them.

Default: sentences of at most ten words of the documentation of Python, numpy, scipy, scikit-learn,
jax, flax and optax, a T5 of two and two layers of 64, two CPU cores. Stages: --stage=mix (the
first, alone by default), joint, finetune (sentences from concepts alone), scratch (the same from
random weights: what the stages before are worth), or all.

Variants:
  file   your own sentences, one a line, at --config.data.path; or CommonGen: a header with
         concepts, sentence and perhaps split.
  base   T5 base from random weights for your own sentences of at most 48 words, the authors' rates
         and batches (theirs are cut at 256 tokens).
         Published, from T5's weights: CommonsenseQA 63.3, OpenBookQA 60.9, PIQA 71.0, aNLI 63.2 %.
  debug  any of them in seconds.

Differences from the authors' code:
  - The network starts from random weights, with a tokenizer trained on the text; theirs continues
    from T5's.
  - A prompt is one token of its own and not a sentence of words; correcting a sentence in the
    second stage has the prompt of restoring an order in the first.
  - Nouns and verbs by a light tagger of rules (data/tagging.py), theirs by spaCy's model.
  - Each step trains all three tasks on a batch; theirs reads them line by line from one file.
  - Distractors are drawn token by token, not by beam search, and one that equals its sentence is
    left out of the discriminator's loss; theirs keeps it.
  - The tokens of the global batch are averaged; theirs of each device's.
  - The rate rises during the first epoch, and in the joint stage not at all; theirs rises for
    10,000 steps in both, which small data never reach.
  - `base` decays the scales of norms and not the table of relative positions. So does their code,
    whose exception for "LayerNorm.weight" matches no name of T5's.
  - Question answering of other data sets (CommonsenseQA and others) is not evaluated; METEOR and
    SPICE, which need Java and WordNet, neither.

Command: python -m cl_jax.main --config=configs/calm.py --workdir=runs/calm
Reached: eight minutes of one core for all stages, five of them the first. Asked which of two is
  true, the first stage finds the sentence likelier than its shuffled form at 81.2 % (untrained
  48.8 %), and likelier given its own concepts than another's at 97.9 % (50.8 %); 10.5 % are
  restored word for word, with 40.9 % of the tokens at their place, where copying reaches 49.8 %.
  Sentences from concepts, finetune and scratch: CIDEr 1.24 and .57, BLEU-4 .078 and .037, ROUGE-L
  .367 and .242, coverage 76.7 and 42.3 %. From random weights with as many steps as all stages
  together: CIDEr 1.08, coverage 58.7 %. The second stage adds nothing: fine-tuned from the first,
  CIDEr is 1.28.
"""

import copy

from ml_collections import ConfigDict

from cl_jax.training import defaults


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(arg, ("file", "base", "debug"))
    config = defaults.get_config()
    config.data = ConfigDict(
        dict(
            name="concepts",
            packages=("python", "numpy", "scipy", "sklearn", "jax", "flax", "optax"),
            length=16,
            concepts_length=10,
            longest=10,
        )
    )
    config.views = ConfigDict(
        dict(
            sentence=dict(kind="tokens"),
            concepts=dict(kind="tokens", field="concepts"),
            shuffled=dict(kind="tokens", field="shuffled"),
        )
    )
    config.encoder = ConfigDict(
        dict(name="encoder_decoder", width=64, depth=2, heads=4, length=16, dropout=0.0)
    )
    config.method = ConfigDict(dict(name="calm", joint=False))
    config.optimizer = ConfigDict(
        dict(
            name="adamw",
            learning_rate=5e-3,
            learning_rate_scaling="none",
            schedule="warmup_linear",
            warmup_epochs=1.0,
            weight_decay=0.01,
            clip_global_norm=1.0,
        )
    )
    config.batch_size, config.total_epochs = 32, 10.0
    config.evals = ConfigDict(
        dict(
            every_epochs=5.0,
            batch_size=256,
            baselines=True,
            best="",
            protocols=dict(concept_tasks=dict(), generation=dict(rows=512, when="final")),
        )
    )
    written = dict(method=dict(tasks=("concepts",)), total_epochs=5.0, evals=dict(every_epochs=5.0))
    config.stage_order = ("mix", "joint", "finetune", "scratch")
    config.previous = ""
    config.stages = ConfigDict(
        dict(
            mix=dict(),
            joint=dict(
                previous="../mix",
                method=dict(joint=True),
                optimizer=dict(learning_rate=5e-4, warmup_epochs=0.0),
                total_epochs=2.0,
                evals=dict(every_epochs=2.0),
            ),
            finetune=dict(
                previous="../joint",
                optimizer=dict(learning_rate=5e-4),
                **copy.deepcopy(written),
            ),
            scratch=copy.deepcopy(written),
        )
    )
    if "file" in chosen or "base" in chosen:
        config.data.path = ""
    if "base" in chosen:
        config.data.update(dict(length=64, concepts_length=48, longest=48, vocab_size=32000))
        config.encoder.update(
            dict(
                width=768, depth=12, heads=12, hidden=3072, length=64, dropout=0.1, dtype="bfloat16"
            )
        )
        config.optimizer.update(dict(learning_rate=5e-4, eps=1e-6, exclude_paths=("relative$",)))
        config.batch_size, config.total_epochs = 64, 2.0
        config.stages.joint.update(dict(total_epochs=3.0))
        config.stages.joint.optimizer.learning_rate = 5e-7
        for stage in (config.stages.finetune, config.stages.scratch):
            stage.total_epochs = 2.0
            stage.evals.every_epochs = 1.0
    if "debug" in chosen:
        config.data.update(dict(limit=64, vocab_size=600, length=16, packages=("numpy", "optax")))
        config.encoder.update(dict(width=16, depth=1, heads=2, length=16, dtype="float32"))
        config.batch_size, config.total_epochs, config.log_steps = 16, 1.0, 2
        config.evals.update(dict(every_epochs=1.0, batch_size=32))
        config.evals.protocols.generation.rows = 32
        config.stages.joint.total_epochs = 1.0
        for stage in (config.stages.finetune, config.stages.scratch):
            stage.total_epochs = 1.0
            stage.evals.every_epochs = 1.0
    return config
