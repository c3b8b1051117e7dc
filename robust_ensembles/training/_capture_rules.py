"""What a CUDA graph cannot record, found out on any device."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten

# operations that torch does not tag, but that wait for the device or copy from the host
_WAITING = {
    _aten.lift_fresh.default: "makes a tensor of numbers that lie on the host",
    _aten._linalg_check_errors.default: "waits for the errors of a factorisation",
}
_READING = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.cpu}


class NotCapturableError(RuntimeError):
    """A computation that needs the host in the middle."""


@contextmanager
def capture_rules() -> Iterator[None]:
    """Raise for whatever a CUDA graph could not record, also on a CPU.

    A graph repeats kernels, not Python: nothing may read a value of a tensor (`item`, ``if`` on a
    tensor, a mask as an index), take numbers from the host, or change devices.

    Raises
    ------
    NotCapturableError
        At the first such operation; its traceback tells where.
    """
    with ExitStack() as stack:
        operations = stack.enter_context(_Operations())
        stack.enter_context(_Reads(operations))
        yield


def place(error: BaseException) -> str:
    """File and line of Python that an error comes from, outside of torch.

    Parameters
    ----------
    error : BaseException

    Returns
    -------
    place : str
        Such as ``"_balls.py:125"``.
    """
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.suffix == ".py" and path != Path(__file__) and "torch" not in path.parts:
            return f"{path.name}:{frame.lineno}"
    return "unknown"


class _Operations(TorchDispatchMode):
    """Looks at each operation, those of backward passes included."""

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
    """Sees what never becomes an operation, and lets pass what only a CPU waits for."""

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
            # checks its labels on a CPU; where the number of classes is given, not on CUDA
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
    # indices are tagged for the sake of masks alone
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
