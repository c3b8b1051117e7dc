"""The whole training step, loss to optimizer, as a function of tensors that can be replayed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from skorch.callbacks import Callback
from torch import Tensor

from ..attacks.engine.noise import Seed
from ..training._capture_rules import NotCapturableError, capture_rules, place
from ..training._meter import EpochMeter
from ..training._replay import CudaGraphRecorder, Recorder, Replayed
from ..training.data import Batch
from ..training.step import Objective, TrainingStep

if TYPE_CHECKING:
    from ..training.net import EnsembleNet

_LOGGER = logging.getLogger("robust_ensembles")
_OF_EPOCH = ("epoch", "epoch_seed")
# numbers of an optimizer's state that torch keeps on the host, unless they are to be captured
_COUNTS = {"step", "mu_product", "eta", "mu"}

MakeStep = Callable[[Batch, Seed], TrainingStep]


@contextmanager
def replayed_steps(
    net: EnsembleNet,
    make_step: MakeStep,
    objective: Objective,
    recorder: Recorder | None = None,
) -> Iterator[ReplayedStep | None]:
    """Replay the training steps of a net, for as long as the context lasts.

    Parameters
    ----------
    net : EnsembleNet
        Its modules, their parameters and the optimizer must be the same objects throughout.
    make_step : callable
        From a batch and a seed to the step that an objective sees.
    objective : callable
        From a step to the terms of the loss.
    recorder : Recorder, default=None
        None is CUDA graphs if `net.techniques` has ``"cuda_graph"``, else nothing is replayed.

    Yields
    ------
    step : ReplayedStep or None
        None if nothing is replayed.
    """
    if recorder is None and "cuda_graph" in net.techniques:
        recorder = CudaGraphRecorder(torch.device(net.device))
    if recorder is None:
        yield None
        return
    on_cuda = torch.device(net.device).type == "cuda"
    before = [group.get("capturable", False) for group in net.optimizer_.param_groups]
    try:
        if on_cuda:
            _set_capturable(net.optimizer_, [True] * len(before))
        yield ReplayedStep(net, make_step, objective, recorder)
    finally:
        if on_cuda:
            _set_capturable(net.optimizer_, before)


class ReplayedStep:
    """Optimizer steps on full batches; the others are left to the net. See `replayed_steps`."""

    def __init__(
        self, net: EnsembleNet, make_step: MakeStep, objective: Objective, recorder: Recorder
    ) -> None:
        self.net, self.make_step, self.objective = net, make_step, objective
        self._replayed = Replayed(self._compute, recorder)
        self._fields: list[str] = []
        self._names: list[str] = []
        self._read: set[str] = set()
        self._size: int | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # a copy of the net, made meanwhile by a callback, replays nothing
        return type(None), ()

    def takes(self, batch: Batch) -> bool:
        """Whether this batch is for a replayed step.

        The first batch decides: others of its size are, if its step needs no help of the host.
        """
        if self._size is None:
            self._fields = [name for name, value in batch._asdict().items() if value is not None]
            reason = self._why_not(batch)
            self._size = 0 if reason else len(batch.x)
            if reason:
                _LOGGER.warning("accelerate: 'cuda_graph' is not used, since %s", reason)
        return len(batch.x) == self._size

    def __call__(self, batch: Batch, seed: int, meter: EpochMeter) -> dict[str, Any]:
        """One optimizer step; the same as `EnsembleNet.train_step`, with this seed.

        Parameters
        ----------
        batch : Batch
        seed : int
            Of this step.
        meter : EpochMeter
            Gets the terms of the loss.

        Returns
        -------
        result : dict
            As skorch expects it.
        """
        if not self.net.module_.training:
            self.net._set_training(True)
        host = self.make_step(batch, seed)
        of_epoch = tuple(getattr(host, name) for name in sorted(self._read))
        on_device = torch.full((), seed, dtype=torch.int64, device=batch.x.device)
        tensors = [getattr(batch, name) for name in self._fields]
        key = (of_epoch, _optimizer_settings(self.net.optimizer_))
        row = self._replayed(*tensors, on_device, key=key)
        terms = dict(zip(self._names, row.unbind(), strict=True))
        meter.add(terms, len(batch.x))
        return {"loss": terms["loss"], "y_pred": None}

    def _compute(self, *tensors: Tensor) -> Tensor:
        """The loss and its terms, after which the weights have moved."""
        *fields, seed = tensors
        missing = dict.fromkeys(Batch._fields)
        batch = Batch(**{**missing, **dict(zip(self._fields, fields, strict=True))})  # type: ignore[arg-type]
        optimizer = self.net.optimizer_
        optimizer.zero_grad()
        terms = self.objective(_WatchedStep(self.make_step(batch, seed), self._read))
        loss = torch.stack(list(terms.values())).sum()
        loss.backward(inputs=[p for group in optimizer.param_groups for p in group["params"]])
        optimizer.step()
        self._names = ["loss", *terms]
        return torch.stack([loss, *terms.values()]).detach()

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
        step = _WatchedStep(self.make_step(batch, seed), self._read)
        module, auxiliary = deepcopy((step.module, step.auxiliary))
        vars(step).update(module=module, auxiliary=auxiliary)
        owners = [module] if auxiliary is None else [module, auxiliary]
        for owner in owners:
            owner.train()
        weights = [p for owner in owners for p in owner.parameters() if p.requires_grad]
        with torch.random.fork_rng([device] if device.type == "cuda" else []), capture_rules():
            loss = torch.stack(list(self.objective(step).values())).sum()
            torch.autograd.grad(loss, weights, allow_unused=True)


class _WatchedStep(TrainingStep):
    """A step that notes which numbers of its epoch the loss depends on.

    They lie on the host, so what was recorded with them is good for that epoch only.
    """

    def __init__(self, step: TrainingStep, read: set[str]) -> None:
        vars(self).update(vars(step), _read=read)

    def __getattribute__(self, name: str) -> Any:
        if name in _OF_EPOCH:
            vars(self)["_read"].add(name)
        return super().__getattribute__(name)


def _optimizer_settings(optimizer: torch.optim.Optimizer) -> tuple[Any, ...]:
    """What a recorded step takes from the host: rates and the like, and which weights move."""
    settings: list[Any] = []
    for group in optimizer.param_groups:
        for name, value in group.items():
            if name == "params":
                settings.append(tuple(p.requires_grad for p in value))
            else:
                # a tensor is read by each replay where it lies
                settings.append((name, id(value) if isinstance(value, Tensor) else repr(value)))
    return tuple(settings)


def _set_capturable(optimizer: torch.optim.Optimizer, flags: Sequence[bool]) -> None:
    """Let an optimizer count its steps beside its weights or, as by default, on the host.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        One without the option is left alone.
    flags : sequence of bool
        For each parameter group.
    """
    # torch warns of capturable steps that are not captured; ours are, but for the first ones
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
