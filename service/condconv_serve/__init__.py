"""condconv-serve: CondConv-EfficientNet image classifiers over HTTP, with their routing weights."""

import os

__version__ = "0.1.0"

# TensorFlow's default is oneDNN only on CPUs with AVX-512 VNNI or newer instructions. On other CPUs oneDNN makes it
# nearly twice as fast, too, and grouped convolutions need it. TensorFlow reads this when it is imported.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
