"""condconv-serve: CondConv-EfficientNet image classifiers over HTTP, with their routing weights."""

import os

__version__ = "0.1.0"

# By itself TensorFlow uses oneDNN only on CPUs with AVX-512 VNNI or newer instructions. On others it is nearly twice as
# fast with it, too, and can't compute grouped convolutions without. It is read when TensorFlow is imported.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
