"""SimCSE (Gao et al. 2021, arXiv 2104.08821).

A sentence passes the encoder twice, each time under another dropout mask, and must pick out its own
second pass among those of the batch: dropout is all the augmentation. With labelled pairs the
second is an entailment, or another wording, and its contradiction a further negative.

Default: sentences about the embedded `scenes` with another wording of each and a contradiction (the
  supervised form), a transformer of two layers, one CPU core.

Variants:
  unsupervised  two passes of the same sentence in the place of pairs. From a random start it learns
                little, as the paper expects of it.
  file          your own sentences, at --config.data.path; scored pairs at --config.data.sts.
  small         beside file: a transformer of two layers of 128 in place of four of 256, for a CPU;
                one epoch, a hundredth of the sentences held out. The tasks of `transfer` are
                measured of the untrained network too.
  prose         the documentation of Python and numpy, unsupervised; no scored pairs.
  bert          the authors' size and setting for your own sentences: BERT base, batch 64, AdamW
                3e-5, one epoch, measured ten times an epoch; with --config.method.weights=FOLDER
                and --config.data.tokenizer_path=FOLDER/vocab.txt from the weights of a BERT of
                Hugging Face, else from random ones. Published: 76.25 average Spearman of seven STS
                sets (table 5), from BERT's weights.
  supervised    beside file or bert: lines of a sentence, an entailment and a contradiction, the
                loss and evaluation after the head; with bert, batch 512, AdamW 5e-5, three epochs.
                Published: 81.57.
  pairs         beside file: lines of a sentence and another wording of it, such as two captions of
                one picture; the evaluation after the head.
  transfer      beside one of them: tasks of sentences with classes (MR, CR, SUBJ, MPQA, SST2, TREC,
                MRPC) at the end of a run: set --config.data.classify.
  cls, avg      [CLS] or the mean over tokens as the sentence.
  mlm           the masked language model's loss with weight 0.1.
  debug         any of them in seconds.

Differences from the authors' code:
  - Devices share gradient through the gathered rows; their exchange makes the gradient smaller by
    the number of devices.
  - The tokenizer is trained on the text where no vocab.txt is given.
  - Scored sentences are cut at the length of training too.
  - Masked tokens are averaged over the global batch; theirs over each device's. They are of the
    first view's sentences; theirs are of all two or three.
  - `bert` trains on nine tenths of the sentences and holds the others out (`test_share`); theirs
    trains on all.
  - `bert` is evaluated ten times an epoch, and keeps the checkpoint that is best on dev pairs with
    --config.evals.best=sts_dev/spearman; theirs is evaluated every 125 steps and keeps the best on
    those of STS-B. `small` is evaluated at its end alone, where there is nothing to choose.

Command: python -m cl_jax.main --config=configs/simcse.py --workdir=runs/simcse
Reached: Spearman of cosine and gold similarity 0.896 (untrained 0.120, shared words 0.274), in 45 s
  of one core; 0.890 after the first epoch, 14 s of training. `unsupervised`: 0.348 (untrained
  0.167).
"""

from ml_collections import ConfigDict

from cl_jax.training import defaults

VARIANTS = (
    "unsupervised",
    "file",
    "prose",
    "bert",
    "small",
    "supervised",
    "pairs",
    "transfer",
    "cls",
    "avg",
    "mlm",
    "debug",
)


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(arg, VARIANTS)
    config = defaults.get_config()
    config.data = ConfigDict(dict(name="text", length=20))
    config.encoder = ConfigDict(
        dict(name="transformer", width=96, depth=2, heads=4, length=20, pool="avg", dropout=0.1)
    )
    config.method = ConfigDict(dict(name="simcse", temperature=0.05))
    config.optimizer = ConfigDict(
        dict(
            name="adamw",
            learning_rate=1e-3,
            learning_rate_scaling="none",
            schedule="warmup_linear",
            warmup_epochs=0.2,
            clip_global_norm=1.0,
        )
    )
    config.batch_size = 64
    config.total_epochs = 2.0
    config.evals = ConfigDict(
        dict(
            every_epochs=1.0,
            batch_size=512,
            feature="z",
            baselines=True,
            best="",
            protocols=dict(sts=dict(), geometry=dict()),
        )
    )
    pair = dict(first=dict(kind="tokens"), positive=dict(kind="tokens", field="tokens_b"))
    config.views = ConfigDict(pair | dict(negative=dict(kind="tokens", field="tokens_c")))
    unsupervised = {"unsupervised", "file", "prose", "bert"} & set(chosen)
    if unsupervised:
        config.views = ConfigDict(dict(both=dict(kind="tokens", copies=2)))
        config.evals.feature = "h"
    if "file" in chosen or "bert" in chosen:
        config.data = ConfigDict(dict(name="text", path="", sts="", length=32, vocab_size=8000))
        config.encoder.update(dict(width=256, depth=4, length=32))
    if "small" in chosen:
        config.encoder.update(dict(width=128, depth=2))
        config.data.test_share = 0.01
        config.optimizer.warmup_epochs = 0.02
        config.total_epochs = 1.0
    if "prose" in chosen:
        config.data = ConfigDict(
            dict(name="text", embedded="prose", length=32, vocab_size=4000, train_size=12000)
        )
        config.encoder.length = 32
        config.evals.protocols = ConfigDict(dict(geometry=dict()))
    if "bert" in chosen:
        config.data.update(dict(vocab_size=30522, tokenizer_path=""))
        config.encoder.update(dict(width=768, depth=12, heads=12, pool="cls", dtype="bfloat16"))
        config.optimizer.update(dict(learning_rate=3e-5, warmup_epochs=0.0))
        config.total_epochs = 1.0
        config.evals.every_epochs = 0.1  # or there is no checkpoint to choose from
        config.method.weights = ""
    if "supervised" in chosen:
        config.views = ConfigDict(pair | dict(negative=dict(kind="tokens", field="tokens_c")))
        config.evals.feature = "z"
        if "bert" in chosen:
            config.batch_size, config.total_epochs = 512, 3.0
            config.optimizer.learning_rate = 5e-5
    if "pairs" in chosen:
        config.views = ConfigDict(pair)
        config.evals.feature = "z"
    for pool in {"cls", "avg"} & set(chosen):
        config.encoder.pool = pool
    if "transfer" in chosen:
        config.data.classify = ""
        when = "always" if "small" in chosen else "final"
        config.evals.protocols.transfer = ConfigDict(dict(when=when))
    if "mlm" in chosen:
        config.method.mlm_weight = 0.1
    if "debug" in chosen:
        config.data.update(dict(train_size=64, test_size=32, limit=64))
        config.encoder.update(dict(width=16, depth=1, heads=2, dtype="float32"))
        config.batch_size = 16
        config.total_epochs = 1.0
        config.log_steps = 2
        config.evals.update(dict(every_epochs=1.0, batch_size=32))
    return config
