"""CPC on sound (van den Oord et al. 2018, arXiv 1807.03748).

Strided convolutions turn a window of a recording into latents. A recurrent network sums up the
latents so far, and from its state one matrix for each number of steps must pick out the latent so
many steps ahead among all latents of the batch.

Default: the embedded `vowels`, ten words in six voices, windows of half a second, a latent each 10
ms by four convolutions of 64 channels with layer norm, a GRU of 64, 6 steps ahead, two CPU cores.

Variants:
  folder   your own recordings: set --config.data.path to a folder of WAV, FLAC or Ogg files, whose
           sub-folders are the labels. Network and window as in the default, at 8 kHz.
  fsdd     the Free Spoken Digit Dataset: set --config.data.path to its folder `recordings`. Digits
           and speakers from the files' names, recordings 0 to 4 of each are the test part.
  speech   the paper's setting on a folder of speech: 16 kHz, windows of 20,480 samples, five
           convolutions of 512 channels without norm, a GRU of 256, 12 steps ahead, batch 64, Adam
           2e-4. Published: 97.4 % of 251 speakers, 64.6 % of 41 phones (table 1, LibriSpeech-100,
           a classifier on each context by itself).
  debug    any of them in seconds.

Differences from the paper, whose authors released no code:
  - Probes read the mean context of a window; the paper's read each context, and phones need
    alignments that are not part of the data.
  - The convolutions' padding is not stated; 3, 2, 1, 1, 1 is that of reimplementations.
  - Negatives are the latents of the whole batch on all devices; theirs are those of one GPU, 8
    recordings.
  - Steps count alike in the loss, over the times from which all of them exist; the paper does not
    say.

Command: python -m cl_jax.main --config=configs/cpc_audio.py --workdir=runs/cpc_audio
Reached: after 372 steps, half a minute on one core, logistic regression on the mean context tells
100 % of the words (untrained 75.6 %) and 90.6 % of the speakers (56.8 %). The latent 1 to 6 steps
ahead is picked out of its recording at 32, 21, 17, 16, 14 and 13 % of the times (untrained 2 %).
With `fsdd`, after 672 steps: 86.0 % of the digits (untrained 49.0 %), 96.0 % of the speakers (82.0
%), one seed each.
"""

from ml_collections import ConfigDict

from cl_jax.training import defaults


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(arg, ("folder", "fsdd", "speech", "debug"))
    config = defaults.get_config()
    config.data = ConfigDict(dict(name="vowels"))
    config.views = ConfigDict(dict(window=dict(kind="audio", samples=4000, level="rms")))
    config.encoder = ConfigDict(
        dict(
            wave=dict(
                name="conv1d",
                channels=64,
                kernels=(10, 8, 4, 4),
                strides=(5, 4, 2, 2),
                padding=(3, 2, 1, 1),
                norm="layer",
                dtype="float32",
            ),
            context=dict(name="gru", width=64, dtype="float32"),
        )
    )
    config.method = ConfigDict(dict(name="cpc_audio", steps=6))
    config.optimizer = ConfigDict(
        dict(
            name="adamw",
            learning_rate=1e-3,
            learning_rate_scaling="none",
            schedule="constant",
            weight_decay=1e-4,
        )
    )
    config.batch_size, config.total_epochs = 16, 4.0
    config.evals.protocols = ConfigDict(
        dict(
            words=dict(name="logistic", label="label"),
            speakers=dict(name="logistic", label="speaker"),
            steps_ahead=dict(),
        )
    )
    if "folder" in chosen or "fsdd" in chosen:
        config.data = ConfigDict(dict(name="audio", path="", sample_rate=8000))
    if "fsdd" in chosen:
        config.data.pattern = r"(?P<label>\d)_(?P<speaker>[a-z]+)_\d+"
        config.data.test_pattern = r"_[0-4]\.wav$"
        config.total_epochs = 4.0
    if "speech" in chosen:
        config.data = ConfigDict(dict(name="audio", path="", sample_rate=16000))
        config.views = ConfigDict(dict(window=dict(kind="audio", samples=20480)))
        config.encoder = ConfigDict(
            dict(wave=dict(name="conv1d", dtype="float32"), context=dict(name="gru"))
        )
        config.method.steps = 12
        config.optimizer.update(dict(learning_rate=2e-4, weight_decay=0.0))
        config.batch_size, config.total_epochs = 64, 700.0  # about 300,000 updates
        config.evals.every_epochs = 100.0
    if "folder" in chosen or "speech" in chosen:
        del config.evals.protocols.speakers
    if "debug" in chosen:
        config.data.limit = 64
        config.views.window.samples = 600
        config.encoder.wave.update(
            dict(channels=8, kernels=(10, 8), strides=(5, 4), padding=(3, 2))
        )
        config.encoder.context.width = 8
        config.method.steps = 2
        config.batch_size, config.total_epochs, config.log_steps = 16, 1.0, 2
        config.evals.update(dict(every_epochs=1.0, batch_size=32))
    return config
