"""Functions of tensors that read them from fixed memory, so that a CUDA graph can replay them.

Networks as small as those of ensembles leave a GPU waiting for the processor, which needs longer to
launch a kernel than the kernel runs. A graph launches all kernels of a function at once.
"""

from __future__ import annotations

import gc
import logging
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor

from ._capture_rules import capture_rules

_LOGGER = logging.getLogger("robust_ensembles")
# torch allows one capture at a time in a process
_CAPTURE = threading.Lock()

Run = Callable[[], Any]


class Recorder(ABC):
    """How a computation on fixed memory is recorded."""

    # calls that really compute before the first recording: libraries allocate and choose kernels
    n_warm_ups: ClassVar[int] = 3

    @abstractmethod
    def warm_up(self, run: Run) -> Any:
        """Compute once, without recording."""

    @abstractmethod
    def record(self, run: Run) -> Run:
        """What computes the same again each time that it is called; recording computes nothing."""


class EagerRecorder(Recorder):
    """Records nothing, computes anew and holds the function to the rules of a capture.

    On a CPU it stands in for `CudaGraphRecorder`, in all but speed.
    """

    def warm_up(self, run: Run) -> Any:
        """Compute once."""
        return run()

    def record(self, run: Run) -> Run:
        """The same computation, under `capture_rules`."""

        def replay() -> Any:
            with capture_rules():
                return run()

        return replay


class CudaGraphRecorder(Recorder):
    """Records CUDA graphs.

    Parameters
    ----------
    device : torch.device
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # one stream for everything: libraries keep handles and workspaces for each
        self.stream = torch.cuda.Stream(device)

    def warm_up(self, run: Run) -> Any:
        """Compute once on the stream that will be captured."""
        with self._beside():
            return run()

    def record(self, run: Run) -> Run:
        """Capture a graph; its memory lives as long as the function returned."""
        graph = torch.cuda.CUDAGraph()
        # an autograd graph in a dead reference cycle would tie the capture to other streams
        gc.collect()
        with (
            _CAPTURE,
            torch.cuda.device(self.device),
            _same_stream_after(),
            torch.cuda.graph(graph, stream=self.stream),
        ):
            outputs = run()

        def replay() -> Any:
            with self._beside():
                graph.replay()
            return outputs

        return replay

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """Work on the recorder's stream, after what is queued and before what follows."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            yield
        current.wait_stream(self.stream)


@contextmanager
def _same_stream_after() -> Iterator[None]:
    """Go back to the present stream even where a capture fails, which torch may not do."""
    stream = torch.cuda.current_stream()
    try:
        yield
    finally:
        torch.cuda.set_stream(stream)


class Replayed:
    """A function of tensors, recorded once for each shape of its arguments.

    The first calls compute as usual, then the function is recorded, and replayed from then on: no
    line of its Python runs again. What it reads beside its arguments is read where it lay while
    recording: tensors must be changed in place, and what lies on the host stays as it was, unless
    it is in `key`. Where a graph cannot be captured, the reason is logged and all calls compute as
    usual.

    Parameters
    ----------
    function : callable
        From tensors to a Tensor or a tuple of Tensors.
    recorder : Recorder
    buckets : bool, default=False
        Whether samples are independent of each other, so that a batch may be padded, by copies of
        its first sample, to the next power of two or to the largest batch so far, whichever is
        less. Else every size is recorded by itself.
    """

    def __init__(
        self, function: Callable[..., Any], recorder: Recorder, *, buckets: bool = False
    ) -> None:
        self.function, self.recorder, self.buckets = function, recorder, buckets
        self._slots: dict[Hashable, _Slot] = {}
        self._key: Hashable = None
        self._largest = 0

    def __call__(self, *inputs: Tensor, key: Hashable = None) -> Any:
        """Results of the function.

        Parameters
        ----------
        *inputs : Tensors
            The first has the samples on its first axis. With `buckets`, so has every other one
            that has as many rows.
        key : hashable, default=None
            What else the recording depends on. A new key makes those before it invalid.

        Returns
        -------
        outputs : Tensor or tuple of Tensors
            Copies, which the next call leaves alone.
        """
        if key != self._key:
            for slot in self._slots.values():
                slot.forget()
            self._key = key
        n = len(inputs[0])
        size = self._bucket(n) if self.buckets else n
        shapes = [(size, *x.shape[1:]) if x.ndim and len(x) == n else x.shape for x in inputs]
        signature = tuple((s, x.dtype, x.device) for s, x in zip(shapes, inputs, strict=True))
        if signature not in self._slots:
            static = [x.new_empty(shape) for x, shape in zip(inputs, shapes, strict=True)]
            self._slots[signature] = _Slot(self.function, self.recorder, static)
        outputs = self._slots[signature](inputs)
        return _copies(outputs, n if size != n else None)

    def _bucket(self, n: int) -> int:
        self._largest = max(self._largest, n)
        return min(1 << max(n - 1, 0).bit_length(), self._largest)


class _Slot:
    """Fixed memory for arguments of one shape, and what was recorded on it."""

    def __init__(
        self, function: Callable[..., Any], recorder: Recorder, static: list[Tensor]
    ) -> None:
        self.function, self.recorder, self.static = function, recorder, static
        self.n_warm_ups: float = recorder.n_warm_ups
        self.replay: Run | None = None

    def __call__(self, inputs: Sequence[Tensor]) -> Any:
        for memory, x in zip(self.static, inputs, strict=True):
            _fill(memory, x)
        if self.replay is None and not self.n_warm_ups:
            self._record()
        if self.replay is not None:
            return self.replay()
        self.n_warm_ups -= 1
        return self.recorder.warm_up(self._run)

    def forget(self) -> None:
        """Record anew after a call as usual, so that what changes all the time never is."""
        self.replay, self.n_warm_ups = None, max(self.n_warm_ups, 1)

    def _record(self) -> None:
        try:
            self.replay = self.recorder.record(self._run)
        except Exception as error:  # libraries raise their own
            _LOGGER.warning("a CUDA graph was not captured, so steps run one by one: %s", error)
            self.n_warm_ups = math.inf

    def _run(self) -> Any:
        return self.function(*self.static)


def _fill(memory: Tensor, x: Tensor) -> None:
    """Copy an argument, and its first row into the rows that it lacks."""
    if memory.shape == x.shape:
        memory.copy_(x)
    else:
        memory[: len(x)].copy_(x)
        memory[len(x) :].copy_(x[:1].expand_as(memory[len(x) :]))


def _copies(outputs: Any, n: int | None) -> Any:
    """Copies of a Tensor or of all in a tuple, of their first n rows only if n is given."""
    if isinstance(outputs, Tensor):
        return outputs[:n].clone() if outputs.ndim else outputs.clone()
    copies = [_copies(output, n) for output in outputs]
    return type(outputs)(*copies) if hasattr(outputs, "_fields") else tuple(copies)
