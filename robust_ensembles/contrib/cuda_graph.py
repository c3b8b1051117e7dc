"""Training steps replayed as CUDA graphs, from the loss to the optimizer.

Networks as small as those of ensembles leave a GPU waiting for the processor, which needs longer to
launch a kernel than the kernel runs. A graph launches all kernels of a function at once.

`replayed_steps` replaces a net's own steps. `Replayed` is a function of tensors that reads them
from fixed memory, and a `Recorder` records it. `capture_rules` finds on any device, before a
capture is tried, what a graph cannot record.
"""

from __future__ import annotations

import gc
import math
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from skorch.callbacks import Callback
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .._system import LOGGER
from ..training.data import Batch
from ..training.epoch import EpochMeter
from ..training.step import TrainingStep

if TYPE_CHECKING:
    from ..training.net import EnsembleNet

_aten = torch.ops.aten

# operations that torch does not tag, but that wait for the device or copy from the host
_WAITING = {
    _aten.lift_fresh.default: "makes a tensor of numbers that lie on the host",
    _aten._linalg_check_errors.default: "waits for the errors of a factorisation",
}

_READING = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.cpu}

# torch allows one capture at a time in a process
_CAPTURE = threading.Lock()

_OF_EPOCH = ("epoch", "epoch_seed")

# numbers of an optimizer's state that torch keeps on the host unless it is capturable
_COUNTS = {"step", "mu_product", "eta", "mu"}

Run = Callable[[], Any]


@contextmanager
def replayed_steps(net: EnsembleNet, recorder: Recorder | None = None) -> Iterator[ReplayedStep]:
    """Replay the training steps of a net within the context.

    Parameters
    ----------
    net : EnsembleNet
        Its modules, their parameters and the optimizer must be the same objects throughout.
    recorder : Recorder, default=None
        None is CUDA graphs.

    Yields
    ------
    step : ReplayedStep
    """
    device = torch.device(net.device)
    on_cuda = device.type == "cuda"
    before = [group.get("capturable", False) for group in net.optimizer_.param_groups]
    try:
        if on_cuda:
            _set_capturable(net.optimizer_, [True] * len(before))
        yield ReplayedStep(net, CudaGraphRecorder(device) if recorder is None else recorder)
    finally:
        if on_cuda:
            _set_capturable(net.optimizer_, before)


class ReplayedStep:
    """Replayed optimizer steps on full batches; the net runs all others. See `replayed_steps`."""

    def __init__(self, net: EnsembleNet, recorder: Recorder) -> None:
        self.net = net
        self._replayed = Replayed(self._compute, recorder)
        self._fields: list[str] = []
        self._names: list[str] = []
        self._read: set[str] = set()
        self._size: int | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # a copy of the net, made by a callback in the meantime, replays nothing
        return type(None), ()

    def takes(self, batch: Batch) -> bool:
        """Whether to use a replayed step for this batch.

        The first batch decides: if its step does not need the host, batches of its size are
        replayed.
        """
        if self._size is None:
            self._fields = [name for name, value in batch._asdict().items() if value is not None]
            reason = self._why_not(batch)
            self._size = 0 if reason else len(batch.x)
            if reason:
                LOGGER.warning("accelerate: 'cuda_graph' is not used, since %s", reason)
        return len(batch.x) == self._size

    def __call__(self, batch: Batch, seed: int, meter: EpochMeter) -> dict[str, Any]:
        """One optimizer step; the same as `EnsembleNet.train_step`, with this seed.

        Parameters
        ----------
        batch : Batch
        seed : int
            Of this step.
        meter : EpochMeter
            Receives the terms of the loss.

        Returns
        -------
        result : dict
            As skorch expects it.
        """
        if not self.net.module_.training:
            self.net._set_training(True)
        host = self.net.make_step(batch, seed)
        of_epoch = tuple(getattr(host, name) for name in sorted(self._read))
        on_device = torch.full((), seed, dtype=torch.int64, device=batch.x.device)
        tensors = [getattr(batch, name) for name in self._fields]
        key = (of_epoch, _optimizer_settings(self.net.optimizer_))
        row = self._replayed(*tensors, on_device, key=key)
        terms = dict(zip(self._names, row.unbind(), strict=True))
        meter.add(terms, len(batch.x))
        return {"loss": terms["loss"], "y_pred": None}

    def _compute(self, *tensors: Tensor) -> Tensor:
        """Compute the loss and its terms, and update the weights."""
        *fields, seed = tensors
        missing = dict.fromkeys(Batch._fields)
        batch = Batch(**{**missing, **dict(zip(self._fields, fields, strict=True))})  # type: ignore[arg-type]
        step = _WatchedStep(self.net.make_step(batch, seed), self._read)
        self.net.optimizer_.zero_grad()
        losses = self.net.losses(step)
        self.net.backward(losses["loss"])
        self.net.optimizer_.step()
        step.commit()
        self._names = list(losses)
        return torch.stack(list(losses.values())).detach()

    def _why_not(self, batch: Batch) -> str | None:
        for name, callback in self.net.callbacks_:
            if getattr(type(callback), "on_grad_computed", None) is not Callback.on_grad_computed:
                return f"the callback {name!r} looks at each step's gradients"
        optimizer = self.net.optimizer_
        if not (isinstance(optimizer, torch.optim.SGD) or "capturable" in optimizer.defaults):
            return f"the steps of {type(optimizer).__name__} need the host"
        try:
            self._try(batch)
        except NotCapturableError as error:
            return f"the loss needs the host: {error} ({place(error)})"
        except Exception as error:  # if it is a genuine one, the step itself raises it again
            reason = "the loss cannot do with a seed that lies on the device"
            return f"{reason}: {type(error).__name__}: {error} ({place(error)})"
        return None

    def _try(self, batch: Batch) -> None:
        """Compute the loss and its gradients on copies, under the rules of a capture."""
        device = batch.x.device
        seed = torch.zeros((), dtype=torch.int64, device=device)
        step = _WatchedStep(self.net.make_step(batch, seed), self._read)
        module, auxiliary = deepcopy((step.module, step.auxiliary))
        vars(step).update(module=module, auxiliary=auxiliary)
        owners = [module] if auxiliary is None else [module, auxiliary]
        for owner in owners:
            owner.train()
        weights = [p for owner in owners for p in owner.parameters() if p.requires_grad]
        with torch.random.fork_rng([device] if device.type == "cuda" else []), capture_rules():
            torch.autograd.grad(self.net.losses(step)["loss"], weights, allow_unused=True)


class _WatchedStep(TrainingStep):
    """A step that records which numbers of its epoch the loss depends on.

    They are on the host, so a recording made with them is valid for that epoch only.
    """

    def __init__(self, step: TrainingStep, read: set[str]) -> None:
        vars(self).update(vars(step), _read=read)

    def __getattribute__(self, name: str) -> Any:
        if name in _OF_EPOCH:
            vars(self)["_read"].add(name)
        return super().__getattribute__(name)


def _optimizer_settings(optimizer: torch.optim.Optimizer) -> tuple[Any, ...]:
    """Host values that a recorded step depends on: learning rates etc., and trainable weights."""
    settings: list[Any] = []
    for group in optimizer.param_groups:
        for name, value in group.items():
            if name == "params":
                settings.append(tuple(p.requires_grad for p in value))
            else:
                # each replay reads a tensor's present value
                settings.append((name, id(value) if isinstance(value, Tensor) else repr(value)))
    return tuple(settings)


def _set_capturable(optimizer: torch.optim.Optimizer, flags: Sequence[bool]) -> None:
    """Let an optimizer count its steps on the device of its weights or, by default, on the host.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        One without the option is left unchanged.
    flags : sequence of bool
        For each parameter group.
    """
    # torch warns of capturable steps that are not captured; here all but the first ones are
    optimizer._warned_capturable_if_run_uncaptured = True
    for group, flag in zip(optimizer.param_groups, flags, strict=True):
        if "capturable" not in group:
            continue
        group["capturable"] = flag
        for weight in group["params"]:
            state = optimizer.state.get(weight, {})
            beside = flag or group.get("fused", False)
            for name in _COUNTS & state.keys():
                if isinstance(state[name], Tensor):
                    state[name] = state[name].to(weight.device if beside else "cpu")


class Replayed:
    """A function of tensors, recorded once for each shape of its arguments.

    The first calls compute as usual, then the function is recorded and replayed from then on: its
    Python code does not run again. Tensors that it reads besides its arguments are read from the
    same memory as during recording, so they must be changed in place; host values keep their value
    at recording, unless they are in `key`. If a graph cannot be captured, the reason is logged and
    all calls compute as usual.

    Parameters
    ----------
    function : callable
        Takes tensors and returns a Tensor or a tuple of Tensors.
    recorder : Recorder
    buckets : bool, default=False
        Whether samples are independent of each other, so that a batch may be padded, by copies of
        its first sample, to the next power of two or to the largest batch so far, whichever is
        less. Otherwise every size is recorded separately.
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
            What else the recording depends on. A new key invalidates earlier recordings.

        Returns
        -------
        outputs : Tensor or tuple of Tensors
            Copies, which the next call does not overwrite.
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
    """Fixed memory for arguments of one shape, and the recording that uses it."""

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
        """Record again only after an ordinary call, so that ever-changing steps never are."""
        self.replay, self.n_warm_ups = None, max(self.n_warm_ups, 1)

    def _record(self) -> None:
        try:
            self.replay = self.recorder.record(self._run)
        except Exception as error:  # libraries raise their own
            LOGGER.warning("a CUDA graph was not captured, so steps run one by one: %s", error)
            self.n_warm_ups = math.inf

    def _run(self) -> Any:
        return self.function(*self.static)


def _fill(memory: Tensor, x: Tensor) -> None:
    """Copy an argument, and its first row into the remaining rows of the memory."""
    if memory.shape == x.shape:
        memory.copy_(x)
    else:
        memory[: len(x)].copy_(x)
        memory[len(x) :].copy_(x[:1].expand_as(memory[len(x) :]))


def _copies(outputs: Any, n: int | None) -> Any:
    """Copies of a Tensor or a tuple of Tensors; only the first n rows if n is given."""
    if isinstance(outputs, Tensor):
        return outputs[:n].clone() if outputs.ndim else outputs.clone()
    copies = [_copies(output, n) for output in outputs]
    return type(outputs)(*copies) if hasattr(outputs, "_fields") else tuple(copies)


class Recorder(ABC):
    """Records a computation on fixed memory."""

    # ordinary calls before the first recording: libraries allocate memory and choose kernels
    n_warm_ups: ClassVar[int] = 3

    @abstractmethod
    def warm_up(self, run: Run) -> Any:
        """Compute once, without recording."""

    @abstractmethod
    def record(self, run: Run) -> Run:
        """Return a function that repeats the computation; recording itself computes nothing."""


class CudaGraphRecorder(Recorder):
    """Records CUDA graphs.

    Parameters
    ----------
    device : torch.device
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # one stream for everything: libraries keep handles and workspaces for each stream
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
        """Run on the recorder's stream, after queued work and before later work."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            yield
        current.wait_stream(self.stream)


@contextmanager
def _same_stream_after() -> Iterator[None]:
    """Return to the present stream even if a capture fails, which torch may not do."""
    stream = torch.cuda.current_stream()
    try:
        yield
    finally:
        torch.cuda.set_stream(stream)


class EagerRecorder(Recorder):
    """Records nothing, recomputes, and checks the function against the rules of a capture.

    Replaces `CudaGraphRecorder` on a CPU, with the same behaviour except for speed.
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


class NotCapturableError(RuntimeError):
    """A computation needs the host before its end."""


@contextmanager
def capture_rules() -> Iterator[None]:
    """Raise for operations that a CUDA graph could not record, also on a CPU.

    A graph repeats kernels, not Python: nothing may read a value of a tensor (`item`, ``if`` on a
    tensor, a mask as an index), take numbers from the host, or change devices.

    Raises
    ------
    NotCapturableError
        At the first such operation; its traceback shows where.
    """
    with ExitStack() as stack:
        operations = stack.enter_context(_Operations())
        stack.enter_context(_Reads(operations))
        yield


def place(error: BaseException) -> str:
    """File and line of the Python code, outside torch, that an error comes from.

    Parameters
    ----------
    error : BaseException

    Returns
    -------
    place : str
        Such as ``"balls.py:125"``.
    """
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.suffix == ".py" and path != Path(__file__) and "torch" not in path.parts:
            return f"{path.name}:{frame.lineno}"
    return "unknown"


class _Operations(TorchDispatchMode):
    """Checks each operation, including those of backward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.paused = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self.paused:
            reason = _why_not(func, args, kwargs)
            if reason is not None:
                raise NotCapturableError(f"{func} {reason}")
        return func(*args, **kwargs)


class _Reads(TorchFunctionMode):
    """Checks calls that never become operations, and allows those that only a CPU waits for."""

    def __init__(self, operations: _Operations) -> None:
        super().__init__()
        self.operations = operations

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _READING:
            raise NotCapturableError(f"{func.__name__} moves a tensor to the host")
        if func is F.one_hot and len(args) + len(kwargs) > 1:
            # checks its labels on a CPU; not on CUDA if the number of classes is given
            return self._unwatched(func, args, kwargs)
        return func(*args, **kwargs)

    def _unwatched(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        before, self.operations.paused = self.operations.paused, True
        try:
            return func(*args, **kwargs)
        finally:
            self.operations.paused = before


def _why_not(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    if func in _WAITING:
        return _WAITING[func]
    if torch.Tag.data_dependent_output in func.tags:
        return "reads a value of a tensor"
    # torch tags indexing only because of masks
    if func.overloadpacket in (_aten.index, _aten.index_put, _aten.index_put_):
        if any(t.dtype in (torch.bool, torch.uint8) for t in _tensors(args[1])):
            return "has a mask as an index: the result's shape depends on values"
    elif torch.Tag.dynamic_output_shape in func.tags:
        return "has a result whose shape depends on values"
    devices = {t.device.type for t in _tensors([args, kwargs]) if t.ndim}
    if "device" in kwargs and kwargs["device"] is not None and devices:
        devices.add(torch.device(kwargs["device"]).type)
    return "mixes devices: " + ", ".join(sorted(devices)) if len(devices) > 1 else None


def _tensors(value: Any) -> Iterable[Tensor]:
    """All tensors in nested arguments."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return []
    return [tensor for entry in value for tensor in _tensors(entry)]
