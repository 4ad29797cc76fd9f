"""condconv-serve: CondConv-EfficientNet image classifiers over HTTP, with their routing weights."""

__version__ = "0.1.0"
