"""How a step runs: the private skorch net, batches, augmentation, random streams, checkpoints.

Where a step runs: `EnsembleNet.train_step` asks an estimator's objective for its terms, the
objective sees a `TrainingStep`. What makes it fast: `accelerated` in ``_acceleration.py``.
"""

from ..distributed import check_same, current_ranks, shared
from ..speed import TECHNIQUES, resolve_acceleration
from ._distillation import distill, repel
from ._features import captured_embedding, embedding_size, final_linear
from ._inference import log_proba, member_log_proba
from ._lock import locked
from ._memory import PerturbationMemory
from ._resume import Checkpoints, differences
from ._streaming import BadSampleError, StreamedX, split_item, to_tensor
from .augmentation import (
    AugmentationPipeline,
    BatchTransform,
    GaussianNoise,
    NoisyCopies,
    RandomCrop,
    RandomHorizontalFlip,
)
from .data import Batch, EnsembleDataset, MiniBatches, to_float
from .features import feature_layers, features, replaced_output, resolve_layers
from .net import EnsembleNet
from .random import (
    derive_seed,
    generator,
    preserve_global_rng,
    private_global_rng,
    seeded_global_rng,
)
from .step import Objective, TrainingStep, input_gradients

__all__ = [
    "TECHNIQUES",
    "AugmentationPipeline",
    "BadSampleError",
    "Batch",
    "BatchTransform",
    "Checkpoints",
    "EnsembleDataset",
    "EnsembleNet",
    "GaussianNoise",
    "MiniBatches",
    "NoisyCopies",
    "Objective",
    "PerturbationMemory",
    "RandomCrop",
    "RandomHorizontalFlip",
    "StreamedX",
    "TrainingStep",
    "captured_embedding",
    "check_same",
    "current_ranks",
    "derive_seed",
    "differences",
    "distill",
    "embedding_size",
    "feature_layers",
    "features",
    "final_linear",
    "generator",
    "input_gradients",
    "locked",
    "log_proba",
    "member_log_proba",
    "preserve_global_rng",
    "private_global_rng",
    "repel",
    "replaced_output",
    "resolve_acceleration",
    "resolve_layers",
    "seeded_global_rng",
    "shared",
    "split_item",
    "to_float",
    "to_tensor",
]
