"""CPC on text (van den Oord et al. 2018, arXiv 1807.03748).

A convolution over words and a mean make a latent of each sentence. A recurrent network sums up the
sentences so far, and from its state one matrix for each number of steps must pick out the sentence
so many steps ahead among all of the batch.

Default: passages of five sentences of the documentation of Python, numpy, scipy and scikit-learn,
latents of 128, a GRU of 128, 3 sentences ahead, two CPU cores.

Variants:
  file      your own text, one sentence a line: set --config.data.path.
  books     the paper's size for your own text: latents and GRU of 2,400, Adam 2e-4; batch 64.
            Published: MR 76.9, CR 80.1, Subj 91.2, MPQA 87.7, TREC 96.8 % (table 5, BookCorpus).
  transfer  beside one of them: tasks of sentences with classes, MR, TREC and others, at the end of
            a run: set --config.data.classify.
  debug     any of them in seconds.

Differences from the paper, whose authors released no code:
  - Words are byte-pair tokens trained on the text, so that none is unknown; the paper maps unknown
    words from word2vec.
  - The widths of the convolution and of the embeddings are not stated: 5 and 620 are chosen, 620
    being that of skip-thought vectors.
  - Transfer is of sentence latents by logistic regression, its penalty chosen on a tenth of the
    training rows and not by cross-validation. Without a file of classes its task is which of the
    four packages a sentence of the test part describes.
  - `books` has a batch of 64 in all; the paper has 64 on each of 8 GPUs.
  - The default multiplies scores by 4, with which learning starts sooner; `books` by 1, as the
    paper.

Command: python -m cl_jax.main --config=configs/cpc_text.py --workdir=runs/cpc_text
Reached: after 1,200 steps, a minute on one core, logistic regression on the latents of single
  sentences of held-out documents tells their package at 72.2 % (untrained 47.8 %); the sentence 1
  to 3 ahead is at place 387 of 2,560 (untrained 1,298), in the median.
"""

from ml_collections import ConfigDict

from cl_jax.training import defaults


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(arg, ("file", "books", "transfer", "debug"))
    config = defaults.get_config()
    config.data = ConfigDict(dict(name="passages", sentences=5, stride=1, length=32))
    config.views = ConfigDict(dict(passage=dict(kind="passage")))
    config.encoder = ConfigDict(
        dict(
            sentence=dict(name="sentences", width=128, embedding=64, kernel=3, dtype="float32"),
            context=dict(name="gru", width=128, dtype="float32"),
        )
    )
    config.method = ConfigDict(dict(name="cpc_text", steps=3, scale=4.0))
    config.optimizer = ConfigDict(
        dict(
            name="adamw",
            learning_rate=1e-3,
            learning_rate_scaling="none",
            schedule="constant",
            weight_decay=1e-4,
        )
    )
    config.batch_size, config.total_epochs = 64, 10.0
    config.evals.every_epochs = 5.0
    config.evals.protocols = ConfigDict(
        dict(steps_ahead=dict(among="all"), transfer=dict(feature="z", when="always"))
    )
    if "file" in chosen or "books" in chosen:
        config.data.path = ""
        config.evals.protocols = ConfigDict(dict(steps_ahead=dict(among="all")))
    if "books" in chosen:
        config.encoder.sentence.update(dict(width=2400, embedding=620, kernel=5))
        config.encoder.context.width = 2400
        config.data.vocab_size = 20000
        config.method.scale = 1.0
        config.optimizer.update(dict(learning_rate=2e-4, weight_decay=0.0))
        config.total_epochs = 5.0
    if "transfer" in chosen:
        config.data.classify = ""
        config.evals.protocols.transfer = ConfigDict(dict(feature="z", when="final"))
    if "debug" in chosen:
        config.data.update(dict(limit=64, vocab_size=600, packages=("numpy", "optax")))
        config.encoder.sentence.update(dict(width=8, embedding=8))
        config.encoder.context.width = 8
        config.batch_size, config.total_epochs, config.log_steps = 16, 1.0, 2
        config.evals.update(dict(every_epochs=1.0, batch_size=32))
    return config
