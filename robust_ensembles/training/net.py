"""The skorch net of an estimator: it runs epochs and steps, and predicts.

A fit calls `EnsembleNet.train_epochs`, whose list of contexts shows everything that applies during
training. `EnsembleNet.train_step` is one step, in order. The estimator's objective returns the
terms of the loss from a `TrainingStep`; the strategy coordinates processes. Predictions are also
made here, in batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from skorch import NeuralNetClassifier
from skorch.callbacks import EpochTimer, PassthroughScoring, PrintLog
from torch import Tensor, nn

from .._strategy import SingleProcess, current_strategy
from ..attacks.engine.forward import Minibatches
from ..modules import Ensemble, RawInput
from ..speed import accelerated, make_optimizer, mixed_precision, opt_in
from ..state.checkpoints import Checkpoints, checkpointed
from .augmentation import AugmentationPipeline
from .data import Batch, MiniBatches, StreamedX, death_of_a_reader_explained
from .epoch import EpochMeter, LastGood, explained_out_of_memory
from .random import derive_seed, preserve_global_rng, reseed_global_rng
from .step import Objective, TrainingStep
from .termination import drop_unfinished_epoch, stopped_by_sigterm, stopped_early

# batch size of predictions
_BATCH_SIZE = 512

Components = tuple[Ensemble, nn.Module | None]


class EnsembleNet(NeuralNetClassifier):
    """skorch net of an ensemble and the auxiliary module of its method.

    The members and the auxiliary module share one optimizer, with a parameter group for each:
    the same as one optimizer each, as long as the losses are summed and each reaches its own
    member only. Cached predictions are off (`use_caching=False`), so that a robust scorer inside
    `EpochScoring` gets predictions of the samples it requests.

    Parameters
    ----------
    module : type
        `Ensemble`; the instance comes from the builder given to `build`.
    *args, **kwargs
        See `skorch.NeuralNetClassifier`.
    input_shape : tuple of int
        Shape of one sample.
    clip_values : tuple of two floats or None
    seed : int
        Seed of all random streams of the fit.
    augmentation : AugmentationPipeline
    lr_milestones : tuple of int
        Numbers of finished epochs after which the learning rate is multiplied by 0.1.
    paired : bool, default=False
        Whether each step gets a second, independent batch of inputs, `Batch.x_target`.
    techniques : frozenset of str, default=frozenset()
        Acceleration techniques, see `resolve_acceleration`.
    precision : {"float32", "bfloat16"}, default="float32"
        Precision of the members' arithmetic in training; weights and losses are not affected.
    """

    def __init__(
        self,
        module: type[Ensemble],
        *args: Any,
        input_shape: tuple[int, ...],
        clip_values: tuple[float, float] | None,
        seed: int,
        augmentation: AugmentationPipeline,
        lr_milestones: tuple[int, ...] = (),
        paired: bool = False,
        techniques: frozenset[str] = frozenset(),
        precision: str = "float32",
        **kwargs: Any,
    ) -> None:
        super().__init__(module, *args, use_caching=False, **kwargs)
        self.input_shape = input_shape
        self.clip_values = clip_values
        self.seed = seed
        self.augmentation = augmentation
        self.lr_milestones = lr_milestones
        self.paired = paired
        self.techniques = techniques
        self.precision = precision
        self.objective_: Objective | None = None
        self.last_good_: LastGood | None = None
        # replaces `train_step` if a technique has its own steps
        self.replayed_: Any = None

    @property
    def strategy(self) -> SingleProcess:
        """The strategy of this net's training: one process, or several together."""
        return current_strategy()

    @property
    def trained_modules(self) -> list[nn.Module]:
        """The ensemble, and the auxiliary module if there is one."""
        return [getattr(self, f"{name}_") for name in self._modules]

    @property
    def _default_callbacks(self) -> list[tuple[str, Any]]:
        callbacks = [
            ("epoch_timer", EpochTimer()),
            # the columns train_loss_best etc., which Checkpoint monitors
            ("train_loss", PassthroughScoring("train_loss", on_train=True)),
            ("valid_loss", PassthroughScoring("valid_loss")),
            ("valid_acc", PassthroughScoring("valid_acc", lower_is_better=False)),
        ]
        return [*callbacks, ("print_log", PrintLog())] if self.verbose else callbacks

    def build(self, builder: Callable[[], Components]) -> EnsembleNet:
        """Initialise everything, with the members and the auxiliary module from `builder`."""
        self.builder_ = builder
        try:
            self.initialize()
        finally:
            del self.builder_
        self.strategy.share_weights(self.trained_modules)
        self._set_training(False)
        return self

    def initialize_module(self) -> EnsembleNet:
        """Set the modules made by the builder; called by skorch."""
        self.module_, auxiliary = self.builder_()
        self.has_auxiliary_ = auxiliary is not None
        if auxiliary is not None:
            self.auxiliary_ = auxiliary
        return self

    def initialize_optimizer(self, triggered_directly: bool | None = None) -> EnsembleNet:
        """Make one optimizer with a parameter group per member; called by skorch."""
        owners = [*self.module_, *([self.auxiliary_] if self.has_auxiliary_ else [])]
        trainable = [[p for p in owner.parameters() if p.requires_grad] for owner in owners]
        groups = [{"params": parameters} for parameters in trainable if parameters]
        options = {"lr": self.lr, **self.get_params_for("optimizer")}
        self.optimizer_: Any = make_optimizer(self.optimizer, groups, options, self.techniques)
        return self

    def train_epochs(
        self,
        dataset: Any,
        y: NDArray[np.int64],
        *,
        epochs: int,
        objective: Objective,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        """Train for a number of epochs.

        Parameters
        ----------
        dataset : EnsembleDataset
        y : ndarray of shape (n_samples,)
            Its class indices, for a stratified split.
        epochs : int
        objective : callable
            Only kept during the call: it belongs to the estimator that owns this net, and a cycle
            would keep both in memory until the garbage collector runs.
        checkpoints : Checkpoints, default=None
            A new net resumes from them, if there are any, and adds to them; only kept during the
            call.

        Raises
        ------
        KeyboardInterrupt
            If the user interrupts. `EarlyStopping` also raises it, but that one is caught here.
        SystemExit
            At the next batch after SIGTERM.
        TrainingMemoryError
            With the weights of the finished epochs restored.
        """
        self.notify("on_train_begin", X=dataset, y=y)
        if checkpoints is not None:
            epochs = checkpoints.resume(self, epochs)
        self.objective_ = objective
        self.last_good_ = LastGood(self.trained_modules, self.optimizer_)
        try:
            with (
                self.strategy.in_lockstep(self),
                stopped_by_sigterm(self),
                checkpointed(self, checkpoints),
                preserve_global_rng(),
                accelerated(self.techniques, self.trained_modules, self.optimizer_),
                self.replaying() as self.replayed_,
            ):
                self.fit_loop(dataset, y, epochs=epochs)
        except KeyboardInterrupt:
            if not stopped_early(self):
                raise
            if checkpoints is not None:
                checkpoints.save(self, finished=True)
        finally:
            self.objective_ = self.last_good_ = self.replayed_ = None
            self._set_training(False)
            drop_unfinished_epoch(self)
            self.notify("on_train_end", X=dataset, y=y)

    def replaying(self) -> AbstractContextManager[Any]:
        """Context that yields the replacement of `train_step`, or None."""
        if "cuda_graph" not in self.techniques:
            return nullcontext()
        context: AbstractContextManager[Any] = opt_in("cuda_graph").replayed_steps(self)
        return context

    def get_iterator(self, dataset: Any, training: bool = False) -> MiniBatches:
        """Batches of a data set on the device; called by skorch."""
        return MiniBatches(
            dataset,
            batch_size=self.batch_size,
            device=torch.device(self.device),
            dtype=next(self.module_.parameters()).dtype,
            seed=self.seed,
            augmentation=self.augmentation if training else None,
            paired=self.paired and training,
        )

    def run_single_epoch(
        self,
        iterator: MiniBatches | None,
        training: bool,
        prefix: str,
        step_fn: Callable[..., dict[str, Any]],
        **fit_params: Any,
    ) -> None:
        """One pass over the batches; every term of the objective becomes a column of history."""
        if iterator is None:
            return
        epoch = len(self.history) - 1
        meter = EpochMeter(prefix, epoch, immediate=torch.device(self.device).type == "cpu")
        iterator.epoch = epoch
        self.strategy.check_same_batches(iterator)
        assert self.last_good_ is not None
        with (
            explained_out_of_memory(iterator),
            self.last_good_.protect(meter, training=training),
        ):
            self._begin_epoch(epoch, training)
            with death_of_a_reader_explained(), closing(iter(iterator)) as batches:
                for number, batch in enumerate(batches):
                    pair = batch.x, batch.y
                    self.notify("on_batch_begin", batch=pair, training=training)
                    step = step_fn(batch, number=number, meter=meter)
                    self.notify("on_batch_end", batch=pair, training=training, **step)
            meter.write(self.history)
            if training:
                self.last_good_.check(epoch)
                self.strategy.share_buffers(self.module_)

    def _begin_epoch(self, epoch: int, training: bool) -> None:
        if not training:
            return
        # for layers that only use the global generator, such as dropout
        reseed_global_rng(derive_seed(self.seed, "layers", epoch, *self.strategy.rank_stream))
        for group in self.optimizer_.param_groups:
            # an interrupted epoch is repeated
            if epoch in self.lr_milestones and group.get("decayed_in") != epoch:
                group.update(lr=0.1 * group["lr"], decayed_in=epoch)
        self.epoch_seed_ = derive_seed(self.seed, "method", epoch)
        self.attack_seeds_ = np.random.default_rng(derive_seed(self.seed, "attack", epoch))

    def train_step(self, batch: Batch, *, number: int, meter: EpochMeter) -> dict[str, Any]:
        """One optimizer step: the objective's terms, their sum, gradients, new weights."""
        if self.replayed_ is not None and self.replayed_.takes(batch):
            return self.replayed_(batch, self._next_seed(), meter)
        step: TrainingStep

        def closure() -> Tensor:
            nonlocal step
            self.optimizer_.zero_grad()
            self._set_training(True)
            step = self.make_step(batch, self._next_seed())
            losses = self.losses(step)
            meter.add(losses, len(batch.x))
            self.backward(losses["loss"])
            self.notify(
                "on_grad_computed",
                named_parameters=list(self.get_all_learnable_params()),
                batch=(batch.x, batch.y),
                training=True,
            )
            return losses["loss"]

        loss = self.optimizer_.step(closure)
        step.commit()
        return {"loss": loss.detach(), "y_pred": None}

    def make_step(self, batch: Batch, seed: Any) -> TrainingStep:
        """The `TrainingStep` on a batch, for the objective."""
        return TrainingStep(
            module=self.module_,
            auxiliary=self.auxiliary_ if self.has_auxiliary_ else None,
            batch=batch,
            clip_values=self.clip_values,
            seed=seed,
            epoch=len(self.history) - 1,
            epoch_seed=self.epoch_seed_,
        )

    def losses(self, step: TrainingStep) -> dict[str, Tensor]:
        """The objective's terms by name, preceded by their sum, ``loss``.

        They may be computed several times on one step: it caches its crafted inputs, and no state
        is written before `TrainingStep.commit`.
        """
        if self.objective_ is None:
            raise RuntimeError("this net is trained by its estimator: call the estimator's fit")
        narrow = step.module if self.precision == "bfloat16" else ()
        with mixed_precision(narrow), self.strategy.shard(step.module):
            terms = self.objective_(step)
        return {"loss": torch.stack(list(terms.values())).sum(), **terms}

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss, over the rows of all processes, to those of the weights."""
        weights = [p for group in self.optimizer_.param_groups for p in group["params"]]
        # by the weights only: otherwise leaves that a method differentiates by get gradients too
        loss.backward(inputs=weights)
        self.strategy.sum_gradients(self.module_, self.auxiliary_ if self.has_auxiliary_ else None)

    def _next_seed(self) -> int:
        return int(self.attack_seeds_.integers(2**62))

    def validation_step(self, batch: Batch, *, number: int, meter: EpochMeter) -> dict[str, Any]:
        """Loss and accuracy of the deployed mean probability on one batch."""
        self._set_training(False)
        with torch.no_grad(), self.strategy.shard(self.module_):
            y_pred = self.module_(batch.x)
            loss = self.criterion_(y_pred, batch.y)
            accuracy = (y_pred.argmax(dim=1) == batch.y).to(y_pred.dtype).mean()
        meter.add({"loss": loss, "acc": accuracy}, len(batch.x))
        return {"loss": loss, "y_pred": y_pred}

    def as_module(self) -> RawInput:
        """The ensemble as a module that takes raw X, in eval mode."""
        return RawInput(self.module_, self.input_shape, self.clip_values).eval()

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Mean probabilities, (n_samples, n_classes)."""
        proba: NDArray[np.float64] = np.exp(log_proba(self.as_module(), X))
        return proba

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        """Class indices, (n_samples,)."""
        return self.predict_proba(X).argmax(axis=1)


def member_log_proba(module: RawInput, X: ArrayLike) -> NDArray[np.float64]:
    """Log-probabilities of every member on raw X.

    Parameters
    ----------
    module : RawInput
    X : array-like of shape (n_samples, ...), or StreamedX

    Returns
    -------
    log_proba : ndarray of shape (n_members, n_samples, n_classes)
        Normalised in float64.

    Raises
    ------
    ValueError
        If a member's outputs are NaN or infinite.
    """
    device = next(module.parameters()).device
    passes = Minibatches(_BATCH_SIZE)

    def answers(x: Tensor) -> tuple[Tensor, ...]:
        logits = module.member_logits(x.to(device)).cpu().double()
        return (torch.log_softmax(logits, dim=-1).movedim(0, 1),)

    with torch.inference_mode():
        parts = [passes.map(answers, x)[0] for x in _batches(X)]
    result: NDArray[np.float64] = torch.cat(parts).movedim(1, 0).numpy()
    unknown = np.asarray(np.isnan(result).any(axis=(0, 2)))
    if unknown.any():
        raise ValueError(
            f"the members' outputs are NaN or infinite for {unknown.sum()} of {len(unknown)} "
            f"samples, the first of which is X[{unknown.argmax()}]; X is far from what they were "
            "trained on, or their weights are not finite"
        )
    return result


def log_proba(module: RawInput, X: ArrayLike) -> NDArray[np.float64]:
    """Log mean probability on raw X, (n_samples, n_classes)."""
    return module.combiner.predicted_log_proba(member_log_proba(module, X))


def _batches(X: Any) -> Iterable[Tensor]:
    if isinstance(X, StreamedX):
        return X.in_order(_BATCH_SIZE)
    if isinstance(X, Tensor):
        return X.split(_BATCH_SIZE)
    array = np.asarray(X)
    starts = range(0, len(array), _BATCH_SIZE)
    # copies: X may be a read-only memory map
    return (torch.from_numpy(array[i : i + _BATCH_SIZE].copy()) for i in starts)
