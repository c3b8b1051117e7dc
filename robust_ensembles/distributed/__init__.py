"""Several processes that train one ensemble together, each on a share of every batch."""

from .lockstep import check_same_batches, in_lockstep, share_buffers, share_weights
from .ranks import (
    Ranks,
    any_rank,
    check_same,
    current_ranks,
    on_first_rank,
    own_stream,
    shared,
    together,
)
from .sharding import part, sharded, sum_gradients, whole

__all__ = [
    "Ranks",
    "any_rank",
    "check_same",
    "check_same_batches",
    "current_ranks",
    "in_lockstep",
    "on_first_rank",
    "own_stream",
    "part",
    "sharded",
    "share_buffers",
    "share_weights",
    "shared",
    "sum_gradients",
    "together",
    "whole",
]
