"""Training of an ensemble: the skorch net, batches, augmentation, features, random streams.

`EnsembleNet.train_step` calls an estimator's objective with a `TrainingStep`; it returns the terms
of the loss. Techniques for faster steps are in `robust_ensembles.speed`, files in
`robust_ensembles.state`.
"""

from ..speed import TECHNIQUES, resolve_acceleration
from ..state.checkpoints import Checkpoints, differences
from ..state.folder import locked
from .augmentation import (
    AugmentationPipeline,
    BatchTransform,
    GaussianNoise,
    NoisyCopies,
    RandomCrop,
    RandomHorizontalFlip,
)
from .data import (
    BadSampleError,
    Batch,
    EnsembleDataset,
    MiniBatches,
    StreamedX,
    split_item,
    to_float,
    to_tensor,
)
from .features import (
    PerturbationMemory,
    captured_embedding,
    distill,
    embedding_size,
    feature_layers,
    features,
    final_linear,
    repel,
    replaced_output,
    resolve_layers,
)
from .net import EnsembleNet, log_proba, member_log_proba
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
    "split_item",
    "to_float",
    "to_tensor",
]
