"""The training strategy of several processes that each run a share of every batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .._plain import digest_of_array
from .._strategy import SingleProcess
from ..modules import Ensemble
from .lockstep import Trained, check_same, in_lockstep
from .ranks import Ranks, share_tensors
from .sharding import gather_rows, sharded, sum_gradients, take_own_rows

T = TypeVar("T")


class DataParallel(SingleProcess):
    """Strategy of processes that distribute the rows of every batch.

    Parameters
    ----------
    ranks : Ranks
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    @property
    def is_single(self) -> bool:
        """False; see `SingleProcess`, as for all methods here."""
        return False

    @property
    def rank_stream(self) -> tuple[int, ...]:
        """The number of this process; empty for the first one, which draws as if it were alone."""
        return (self.ranks.rank,) if self.ranks.rank else ()

    def any_rank(self, flag: bool) -> bool:
        """Whether the flag is true in any process."""
        return self.ranks.any(flag)

    def broadcast_from_first(self, value: T) -> T:
        """The first process's value."""
        return self.ranks.share(value)

    def on_first_rank(self, act: Callable[[], T]) -> T:
        """The result of the first process, or its exception."""
        outcome: Any = None
        failure: Exception | None = None
        if self.ranks.rank == 0:
            try:
                outcome = act()
            except Exception as error:  # whatever it is, the others must not wait for a result
                failure = error
        outcome, failure = self.ranks.share((outcome, failure))
        if failure is not None:
            raise failure
        result: T = outcome
        return result

    def check_same(self, value: Any, explain: Callable[[Any, Any, int], str]) -> None:
        """Raise unless all processes have the same value."""
        check_same(value, explain, self.ranks)

    def check_same_batches(self, iterator: Any) -> None:
        """Raise unless all processes draw their batches from the same samples."""
        indices = digest_of_array(iterator.indices)
        self.check_same(indices, lambda *_: "train_split has chosen other samples")

    def in_lockstep(self, net: Trained) -> AbstractContextManager[None]:
        """Check that the processes can train a net together."""
        return in_lockstep(net, self.ranks)

    def share_weights(self, modules: Iterable[nn.Module]) -> None:
        """Overwrite weights and buffers with the first process's."""
        share_tensors(t for module in modules for t in module.state_dict().values())

    def share_buffers(self, module: nn.Module) -> None:
        """Overwrite buffers with the first process's.

        Those of batch normalisation are equal anyway.
        """
        share_tensors(
            buffer
            for layer in module.modules()
            if not isinstance(layer, _BatchNorm)
            for buffer in layer.buffers(recurse=False)
        )

    def shard(self, module: Ensemble) -> AbstractContextManager[None]:
        """Let each process run its own rows through the members."""
        return sharded(module, self.ranks)

    def gather_rows(self, own: Tensor) -> Tensor:
        """Rows of all processes."""
        return gather_rows(own)

    def take_own_rows(self, x: Tensor) -> Tensor:
        """Rows of this process."""
        return take_own_rows(x)

    def sum_gradients(self, module: nn.Module, auxiliary: nn.Module | None) -> None:
        """Add up the processes' gradients."""
        sum_gradients(module, auxiliary, self.ranks)
