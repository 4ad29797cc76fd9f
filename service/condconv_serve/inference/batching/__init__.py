"""Dynamic batching: rows of many requests are computed together. Knows rows, keys and futures, nothing else."""

from condconv_serve.inference.batching.batcher import Batcher, RowResult
from condconv_serve.inference.batching.key_queue import QueuedRow, Receiver
from condconv_serve.inference.batching.policy import Priority
from condconv_serve.inference.batching.queue import Admission

__all__ = ["Admission", "Batcher", "Priority", "QueuedRow", "Receiver", "RowResult"]
