"""Networks: small architectures, the ensemble module, and the construction of members."""

from .build import MODULES, build_members, default_module
from .ensemble import Ensemble, RawInput
from .label_confusion import LabelConfusionModel
from .layers import Normalize
from .lenet import LeNet5
from .mlp import MLP
from .resnet import CifarResNet, ResNet20, ResNet26, ResNet32, ResNet44, ResNet56

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
