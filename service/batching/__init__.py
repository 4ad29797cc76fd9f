"""Dynamic batching: rows of many requests ride together, whoever sent them. Knows rows and futures, nothing else."""

from service.batching.batcher import Batcher, RowResult, ending_at
from service.batching.policy import Priority
from service.batching.queue import Admission

__all__ = ["Admission", "Batcher", "Priority", "RowResult", "ending_at"]
