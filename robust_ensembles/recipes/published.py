"""The published settings: every value once, with its source.

A `Block` holds constructor parameters, ``name: (value, tag)``; ``module__x``, ``optimizer__x``
and ``attack__x`` are arguments of the network, the optimizer and PGD. Blocks are joined with
``|``, where the later one wins. Tags: P printed in a paper, C read in released code, M from
memory of the original paper, I our inference.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from ..training import GaussianNoise, NoisyCopies, RandomCrop, RandomHorizontalFlip

Tag: TypeAlias = Literal["P", "C", "M", "I"]
Block: TypeAlias = dict[str, tuple[Any, Tag]]


def _p(**values: Any) -> Block:
    """Values printed in a paper."""
    return {name: (value, "P") for name, value in values.items()}


def _c(**values: Any) -> Block:
    """Values read in released code."""
    return {name: (value, "C") for name, value in values.items()}


def _m(**values: Any) -> Block:
    """Values remembered from the original paper."""
    return {name: (value, "M") for name, value in values.items()}


def _i(**values: Any) -> Block:
    """Values inferred by us."""
    return {name: (value, "I") for name, value in values.items()}


def _printed(block: Block) -> Block:
    """Settings of released code that a paper states too."""
    return {name: (value, "P") for name, (value, _) in block.items()}


def _inferred(block: Block) -> Block:
    """Settings transferred to a data set that they were not published for."""
    return {name: (value, "I") for name, (value, _) in block.items()}


# ---------------------------------------------------------------- parts that several recipes share

_CIFAR_SCALE = _c(
    module__normalize=((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
)
_LEAKY = _c(module__activation="leaky_relu")
_FLIP = [RandomHorizontalFlip()]
_CROP_FLIP = [RandomCrop(4), RandomHorizontalFlip()]
_CROP_FLIP_NOISE = [*_CROP_FLIP, GaussianNoise(0.045)]
_DECAY_200 = _c(max_epochs=200, lr_milestones=[100, 150])

# the optimizer in the code of GAL, TRS and CLDL: one for all members, or one for each
_ADAM = _c(
    optimizer="adam", lr=1e-3, optimizer__weight_decay=1e-4, optimizer__eps=1e-7, batch_size=128
)
_SGD = _c(
    optimizer="sgd", lr=0.1, optimizer__momentum=0.9, optimizer__weight_decay=1e-4, batch_size=128
)
_AT_CIFAR = _c(attack__eps=8 / 255, attack__step_size=2 / 255, attack__n_steps=10)

# ------------------------------------------------- training settings: <source>, <source>_<data set>

# CLDL's code, "LSD": a 64-d embedding in the networks of all methods. On MNIST, its decay after
# 100 epochs is never reached, and its random crop does not move the image.
_CLDL_LENET = _c(module="lenet5", module__embedding_size=64) | _ADAM | _c(augmentation=_FLIP)
_CLDL = {
    "mnist": _CLDL_LENET | _c(module__normalize=(0.1307, 0.3081), max_epochs=20),
    "fashion-mnist": _CLDL_LENET
    | _c(module__normalize=(0.2854, 0.3527), max_epochs=30, lr_milestones=[10, 20]),
    "cifar10": _p(module="resnet20", module__embedding_size=64)
    | _CIFAR_SCALE
    | _ADAM
    | _printed(_DECAY_200)
    | _p(augmentation=_CROP_FLIP),
}
# settings that CLDL's code uses only for GAL and CLDL on CIFAR-10
_CLDL_SMOOTH = _CLDL["cifar10"] | _LEAKY | _c(augmentation=_CROP_FLIP_NOISE)

# NCEn: leaky ReLU in all methods, no normalisation, no weight decay; its epochs are twice as
# long, since they also include a noisy copy of the data
_NCEN_ALL = _p(module="resnet20", optimizer="adam", lr=1e-3, batch_size=64) | _LEAKY
_NCEN = {
    "fashion-mnist": _NCEN_ALL
    | _p(max_epochs=40, lr_milestones=[15, 30])
    | _c(augmentation=[RandomCrop(4), NoisyCopies(0.15)]),
    "cifar10": _NCEN_ALL
    | _p(max_epochs=60, lr_milestones=[15, 30, 45])
    | _c(augmentation=[RandomHorizontalFlip(), RandomCrop(4), NoisyCopies(0.045)]),
}

# CEAT: adversarial training in every method, the same on CIFAR-10 and CIFAR-100. The paper does not
# state attack, batch size, weight decay or augmentation.
_CEAT_ALL = (
    _p(module="resnet20")
    | _i(batch_size=128, optimizer__weight_decay=1e-4, augmentation=_CROP_FLIP)
    | _inferred(_AT_CIFAR)
)
_CEAT_ADAM = _CEAT_ALL | _p(
    optimizer="adam", lr=1e-3, max_epochs=150, lr_milestones=[90, 120], attack_target="ensemble"
)
_CEAT_SGD = _CEAT_ALL | _p(
    optimizer="sgd", lr=0.01, optimizer__momentum=0.9, max_epochs=120, lr_milestones=[75, 95]
)
_CEAT_ENSEMBLE = _CEAT_SGD | _p(attack_target="ensemble")
_CEAT_MEMBER = _CEAT_SGD | _p(attack_target="member")

# DVERGE's code, and its variants in FASTEN and LAFED
_DVERGE_NET = _c(module="resnet20", augmentation=_CROP_FLIP) | _CIFAR_SCALE | _DECAY_200
_DVERGE_SGD = _DVERGE_NET | _SGD
_DVERGE_ADAM = _DVERGE_NET | _ADAM
# the name of another recipe: the vanilla ensemble of the same data set
_DVERGE_BASELINE = _c(pretrained="vanilla")

# ADP's code. Its shift by up to 10% of the width is, except for the filling of the border, a crop
# with 3 pixels of padding. It subtracts the mean image, which is omitted here.
_ADP_ALL = _c(
    module="resnet20", optimizer="adam", lr=1e-3, optimizer__weight_decay=1e-4, batch_size=64
) | _i(augmentation=[RandomCrop(3), RandomHorizontalFlip()])
_ADP_MNIST = _ADP_ALL | _c(max_epochs=40, lr_milestones=[15, 30])
_ADP_CIFAR = _ADP_ALL | _DECAY_200

# TRS's code
_TRS_DECAY = _c(max_epochs=120, lr_milestones=[40, 80])
_TRS_LENET = _c(module="lenet5", module__normalize=(0.5, 0.5), augmentation=_FLIP) | _TRS_DECAY
_TRS_CIFAR = _c(module="resnet20", augmentation=_CROP_FLIP) | _CIFAR_SCALE | _ADAM | _TRS_DECAY

# ------------------------------------------------------------------- hyper-parameters: <METHOD>...

_ADP = _c(alpha=2.0, beta=0.5)
_GAL = _c(lam=0.5)
# not stated by CEAT: GAL uses leaky ReLU and noise elsewhere
_GAL_CEAT = _GAL | _inferred(_LEAKY) | _i(augmentation=_CROP_FLIP_NOISE)
_GPMR_FASHION = _p(lambda_div=0.1, lambda_eq=10.0)
_GPMR_CIFAR = _p(lambda_div=0.04, lambda_eq=10.0)
_DVERGE = _c(eps=0.07, step_size=0.007, n_steps=10)
_DVERGE_MNIST = _c(eps=0.35, step_size=0.035, n_steps=10)
_DVERGE_CLDL = _c(eps=8 / 255, step_size=2 / 255, n_steps=10)  # from scratch
_TRS_MNIST = _c(scale=5.0, coeff=2.0, lamda=2.0, delta_init=0.1, delta_final=0.2)
_TRS = _c(scale=1.0, coeff=20.0, lamda=2.5, delta_init=0.01, delta_final=0.03)
_TRS_CLDL = _c(scale=5.0, coeff=2.0, lamda=2.0, inner_max=False)
_NCEN_FASHION = _p(lambda_cos=0.02, lambda_norm=0.02)
_NCEN_CIFAR = _p(lambda_cos=0.06, lambda_norm=0.04)
_LAFED = _DVERGE | _c(smoothing=0.05)
_LAFED_CIFAR100 = _DVERGE | _i(smoothing=0.05)
_FASTEN = _c(eps=0.06, step_size=0.06, n_steps=1, eps_init=8 / 255, beta=3.0)
_CEAT = _p(lam=1.0, mu=5.0)

# ---------------------------------------------------------------------------- the recipes

PUBLISHED: dict[str, dict[str, dict[str, Block]]] = {
    "vanilla": {
        "mnist": {"cldl": _CLDL["mnist"]},
        "fashion-mnist": {"cldl": _CLDL["fashion-mnist"], "ncen": _NCEN["fashion-mnist"]},
        "cifar10": {"dverge": _DVERGE_SGD, "cldl": _CLDL["cifar10"], "ncen": _NCEN["cifar10"]},
        "cifar100": {"lafed": _DVERGE_SGD},
    },
    "adversarial": {
        # attacks: Madry et al. for MNIST, ours for Fashion-MNIST; CLDL published none
        "mnist": {
            "cldl": _CLDL["mnist"] | _m(attack__eps=0.3, attack__step_size=0.01, attack__n_steps=40)
        },
        "fashion-mnist": {
            "cldl": _CLDL["fashion-mnist"]
            | _i(attack__eps=0.1, attack__step_size=0.01, attack__n_steps=20)
        },
        "cifar10": {
            "dverge": _DVERGE_SGD | _AT_CIFAR,
            "cldl": _CLDL["cifar10"] | _AT_CIFAR,
            "ceat": _CEAT_ENSEMBLE,
        },
        "cifar100": {"lafed": _DVERGE_SGD | _AT_CIFAR},
    },
    "adp": {
        "mnist": {"adp": _ADP_MNIST | _ADP, "cldl": _CLDL["mnist"] | _ADP},
        "fashion-mnist": {"cldl": _CLDL["fashion-mnist"] | _ADP},
        "cifar10": {
            "adp": _ADP_CIFAR | _ADP,
            "dverge": _DVERGE_ADAM | _ADP,
            "cldl": _CLDL["cifar10"] | _ADP,
            "ceat": _CEAT_ADAM | _ADP,
        },
        "cifar100": {"adp": _ADP_CIFAR | _ADP, "ceat": _CEAT_ADAM | _ADP},
    },
    "gal": {
        "mnist": {"cldl": _CLDL["mnist"] | _GAL},
        "fashion-mnist": {
            "cldl": _CLDL["fashion-mnist"] | _GAL,
            "ncen": _NCEN["fashion-mnist"] | _GAL,
        },
        "cifar10": {
            "dverge": _DVERGE_ADAM | _LEAKY | _c(augmentation=_CROP_FLIP_NOISE) | _GAL,
            "cldl": _CLDL_SMOOTH | _GAL,
            "ncen": _NCEN["cifar10"] | _GAL,
            "ceat": _CEAT_ADAM | _GAL_CEAT,
        },
        "cifar100": {"ceat": _CEAT_ADAM | _GAL_CEAT},
    },
    "gpmr": {
        "fashion-mnist": {"ncen": _NCEN["fashion-mnist"] | _GPMR_FASHION},
        "cifar10": {"ncen": _NCEN["cifar10"] | _GPMR_CIFAR},
        "cifar100": {"ncen": _inferred(_NCEN["cifar10"] | _GPMR_CIFAR)},
    },
    "dverge": {
        "mnist": {
            "trs": _TRS_LENET | _SGD | _c(lr=1e-3) | _DVERGE_MNIST,
            "cldl": _CLDL["mnist"] | _DVERGE_CLDL,
        },
        "fashion-mnist": {"cldl": _CLDL["fashion-mnist"] | _DVERGE_CLDL},
        "cifar10": {
            "dverge": _DVERGE_SGD | _DVERGE_BASELINE | _DVERGE,
            "cldl": _CLDL["cifar10"] | _DVERGE_CLDL,
            "ceat": _CEAT_MEMBER | _DVERGE,
        },
        "cifar100": {
            "lafed": _DVERGE_SGD | _DVERGE_BASELINE | _DVERGE,
            "ceat": _CEAT_MEMBER | _DVERGE,
        },
    },
    "trs": {
        "mnist": {
            "trs": _TRS_LENET | _ADAM | _TRS_MNIST,
            "cldl": _CLDL["mnist"] | _TRS_CLDL,
        },
        "fashion-mnist": {"cldl": _CLDL["fashion-mnist"] | _TRS_CLDL},
        "cifar10": {
            "trs": _TRS_CIFAR | _TRS,
            "cldl": _CLDL["cifar10"] | _TRS_CLDL,
            "ceat": _CEAT_ADAM | _TRS,
        },
        "cifar100": {"ceat": _CEAT_ADAM | _inferred(_TRS)},
    },
    "cldl": {
        "mnist": {"cldl": _CLDL["mnist"] | _p(gamma=3.0, alpha=4.0, beta=4.0)},
        "fashion-mnist": {"cldl": _CLDL["fashion-mnist"] | _p(gamma=3.0, alpha=2.0, beta=4.0)},
        "cifar10": {"cldl": _CLDL_SMOOTH | _p(gamma=4.0, alpha=2.0, beta=4.0)},
        # gamma must grow with the number of classes
        "cifar100": {"cldl": _inferred(_CLDL_SMOOTH) | _i(gamma=6.5, alpha=2.0, beta=4.0)},
    },
    "ncen": {
        "fashion-mnist": {"ncen": _NCEN["fashion-mnist"] | _NCEN_FASHION},
        "cifar10": {"ncen": _NCEN["cifar10"] | _NCEN_CIFAR},
        "cifar100": {"ncen": _inferred(_NCEN["cifar10"] | _NCEN_CIFAR)},
    },
    "lafed": {
        "cifar10": {
            "lafed": _DVERGE_SGD | _DVERGE_BASELINE | _LAFED,
            "ceat": _CEAT_MEMBER | _LAFED,
        },
        "cifar100": {
            "lafed": _DVERGE_SGD | _DVERGE_BASELINE | _LAFED_CIFAR100,
            "ceat": _CEAT_MEMBER | _LAFED_CIFAR100,
        },
    },
    "fasten": {
        "cifar10": {
            "fasten": _DVERGE_SGD | _DVERGE_BASELINE | _FASTEN,
            "ceat": _CEAT_MEMBER | _FASTEN,
        },
        "cifar100": {
            "fasten": _inferred(_DVERGE_SGD | _DVERGE_BASELINE | _FASTEN),
            "ceat": _CEAT_MEMBER | _inferred(_FASTEN),
        },
    },
    "ceat": {
        "cifar10": {"ceat": _CEAT_ENSEMBLE | _CEAT},
        "cifar100": {"ceat": _CEAT_ENSEMBLE | _CEAT},
    },
}
"""Blocks by method, data set and source, the default source first."""
