"""One fit on all GPUs of a host, or on several hosts; on CPUs where there are no GPUs.

Started once for each GPU, here two of them, by::

    torchrun --nproc-per-node=2 examples/data_parallel.py

and on each of several hosts by::

    torchrun --nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 \
        examples/data_parallel.py

Every process runs all of this. The result is that of ``python`` alone without `data_parallel`.
"""

from __future__ import annotations

import torch.distributed as dist

from robust_ensembles import CEATEnsembleClassifier
from robust_ensembles.attacks import PGD
from robust_ensembles.datasets import load_digits_images
from robust_ensembles.metrics import get_robust_scorer
from robust_ensembles.parallel import data_parallel


def main() -> None:
    X, y = load_digits_images()
    clf = CEATEnsembleClassifier(
        attack=PGD(eps=0.1, n_steps=5), max_epochs=5, lr=0.01, random_state=0, verbose=1
    )
    with data_parallel():
        clf.fit(X[:1500], y[:1500])
        first = dist.get_rank() == 0
    # all processes have the same ensemble: one of them is enough for what comes now
    if first:
        scorer = get_robust_scorer("pgd20_linf_0.1")
        print(f"accuracy {clf.score(X[1500:], y[1500:]):.3f}")
        print(f"under attack {scorer(clf, X[1500:], y[1500:]):.3f}")
        clf.save("digits-ceat.ensemble")


if __name__ == "__main__":
    main()
