"""Fine-tuning a small network: what a run is given, what it tells, and how tests make it quick."""

from dataclasses import asdict

import numpy as np
import pytest

from condconv_serve.training import Augmentation

COUNTS = {"blue": 12, "green": 12, "red": 12}
EPOCHS = 10
GIVEN = {"name": "colours", "batch_size": 8, "learning_rate": 1e-2, "augmentation": Augmentation(mirror=False)}


def eagerly(test):
    """Let a test of a few steps trace nothing, which would take longer than the steps."""
    ignored = pytest.mark.filterwarnings("ignore:Even though the .tf.config.experimental_run_functions_eagerly")
    return pytest.mark.usefixtures("_eagerly")(ignored(test))


class Recorder:
    """Notes what a run tells of itself."""

    def __init__(self):
        self.epochs, self.steps, self.decoded, self.failures, self.began = [], [], [], [], None
        self.computed, self.warnings = [], []

    def decoding(self, done, total):
        self.decoded.append((done, total))

    def unreadable(self, failures, total):
        self.failures += failures

    def features(self, done, total):
        self.computed.append((done, total))

    def starting(self, start):
        self.began = asdict(start)

    def warning(self, text):
        self.warnings.append(text)

    def step(self, epoch, step, steps, loss):
        self.steps.append((epoch, step, steps))
        assert np.isfinite(loss)

    def epoch(self, epoch):
        self.epochs.append(epoch)


class Interrupting(Recorder):
    def step(self, epoch, step, steps, loss):
        super().step(epoch, step, steps, loss)
        if epoch == 2:
            raise KeyboardInterrupt


class Stopping(Recorder):
    def starting(self, start):
        super().starting(start)
        raise KeyboardInterrupt


def left_in(store):
    """Hidden files of the store but the lock's, which filelock leaves there or not."""
    return [file.name for file in store.glob(".*") if file.name != ".default.lock"]


def command(store, data, name, *more):
    return [
        *("models", "finetune", "small", "--data", str(data), "--name", name, "--model-store", str(store)),
        *("--epochs", str(EPOCHS), "--batch-size", "8", "--learning-rate", "0.01", "--no-mirror", "--json", *more),
    ]
