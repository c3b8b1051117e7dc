"""Networks: small ready-made ones, the ensemble module, and how members are built."""

from ._build import MODULES, build_members, default_module
from ._ensemble import Ensemble
from ._label_confusion import LabelConfusionModel
from ._lenet import LeNet5
from ._mlp import MLP
from ._normalize import Normalize
from ._raw_input import RawInput
from ._resnet import (
    CifarResNet,
    ResNet20,
    ResNet26,
    ResNet32,
    ResNet44,
    ResNet56,
)

__all__ = [
    "MLP",
    "MODULES",
    "CifarResNet",
    "Ensemble",
    "LabelConfusionModel",
    "LeNet5",
    "Normalize",
    "RawInput",
    "ResNet20",
    "ResNet26",
    "ResNet32",
    "ResNet44",
    "ResNet56",
    "build_members",
    "default_module",
]
