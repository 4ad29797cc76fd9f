"""Dynamic batching: rows of many requests ride together, whoever sent them. Knows rows and futures, nothing else."""

from service.batching.batcher import Batcher, RowResult
from service.batching.policy import rows_to_take
from service.batching.queue import Admission, RowQueue

__all__ = ["Admission", "Batcher", "RowQueue", "RowResult", "rows_to_take"]
