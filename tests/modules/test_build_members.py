import functools

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from robust_ensembles.modules import (
    MLP,
    MODULES,
    CifarResNet,
    LeNet5,
    ResNet20,
    build_members,
    default_module,
)

IMAGE = {"input_shape": (1, 8, 8), "n_classes": 10}
FLAT = {"input_shape": (4,), "n_classes": 3}


class Net(nn.Module):
    """A user's network, which knows nothing of the package."""

    def __init__(self, n_out=7, dropout=0.0):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.LazyLinear(n_out))

    def forward(self, x):
        return self.layers(x)


class Child(MLP):
    """A subclass that passes its arguments on."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


class Returns(nn.Module):
    """Returns what a function makes of the batch."""

    def __init__(self, result):
        super().__init__()
        self.result = result

    def forward(self, x):
        return self.result(x)


@pytest.mark.parametrize(
    ("shape", "cls"),
    [
        ((20,), MLP),
        ((5, 5), MLP),
        ((1, 3, 3), MLP),
        ((1, 8, 8), LeNet5),
        ((1, 28, 28), LeNet5),
        ((3, 64, 31), LeNet5),
        ((3, 32, 32), ResNet20),
        ((3, 40, 36), ResNet20),
    ],
)
def test_default_module(shape, cls):
    assert default_module(shape) is cls


def test_names_build():
    assert {"mlp", "lenet5", "resnet20", "resnet56"} <= set(MODULES)
    assert all(name == cls.__name__.lower() for name, cls in MODULES.items())
    for name, cls in MODULES.items():
        (net,) = build_members(name.upper(), None, n_members=1, **IMAGE)
        assert type(net) is cls


def test_members_are_different_networks():
    members = build_members(None, {"hidden_sizes": (8,)}, n_members=3, **FLAT)
    assert [type(m) for m in members] == [MLP] * 3
    weights = [m.classifier.weight for m in members]
    assert weights[0].shape == (3, 8)
    assert not torch.equal(weights[0], weights[1])


def test_mixed_list():
    instance = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    modules = ["lenet5", None, MLP, Child, instance, lambda n_classes: Net(n_classes)]
    members = build_members(modules, None, n_members=6, **IMAGE)
    assert [type(m).__name__ for m in members] == [
        "LeNet5",
        "LeNet5",
        "MLP",
        "Child",
        "Sequential",
        "Net",
    ]
    assert members[4] is not instance
    assert torch.equal(members[4][1].weight, instance[1].weight)


def test_a_list_of_parameters_goes_with_a_list_of_modules():
    members = build_members(
        [MLP, CifarResNet, nn.Flatten()],
        [{"hidden_sizes": (3,)}, {"depth": 8, "width": 2}, None],
        n_members=3,
        input_shape=(1, 2, 5),
        n_classes=10,
    )
    assert members[0].classifier.in_features == 3
    assert members[1].classifier.in_features == 8


def test_torchvision_factory():
    (net,) = build_members(resnet18, None, n_members=1, input_shape=(3, 32, 32), n_classes=10)
    assert net.fc.out_features == 10
    assert net.training


def test_partial_keeps_what_it_has_bound():
    bound = functools.partial(resnet18, num_classes=7)
    with pytest.raises(ValueError, match=r"member 0 \(ResNet\) returns 7 classes, y has 10"):
        build_members(bound, None, n_members=1, input_shape=(3, 32, 32), n_classes=10)
    (net,) = build_members(functools.partial(MLP, hidden_sizes=(5,)), None, n_members=1, **FLAT)
    assert net.classifier.in_features == 5


def test_in_channels_is_offered():
    def factory(in_channels, num_classes):
        return nn.Sequential(nn.Conv2d(in_channels, 4, 3), nn.Flatten(), nn.LazyLinear(num_classes))

    (net,) = build_members(factory, None, n_members=1, **IMAGE)
    assert net[0].in_channels == 1


def test_the_mode_and_the_statistics_are_left_alone():
    net = ResNet20((1, 8, 8), 10)
    net.stem.eval()
    (copied,) = build_members(net, None, n_members=1, **IMAGE)
    assert copied.training
    assert not copied.stem[1].training
    assert copied.stages[0].bn1.training
    assert copied.stages[0].bn1.num_batches_tracked == 0


def test_other_dtypes():
    (net,) = build_members(MLP((4,), 3).double(), None, n_members=1, **FLAT)
    assert net.classifier.weight.dtype == torch.float64


def test_unknown_name_gives_the_nearest():
    with pytest.raises(ValueError, match=r"'mlp', 'lenet5'.*Did you mean 'resnet20'"):
        build_members("resnet-20", None, n_members=1, **IMAGE)
    with pytest.raises(ValueError, match=r"module must be one of .*; got 'xyzzy'"):
        build_members("xyzzy", None, n_members=1, **IMAGE)


@pytest.mark.parametrize(
    ("module", "params", "error", "match"),
    [
        (nn.Linear(4, 3), None, ValueError, "one instance of Linear for n_members=2"),
        ([MLP], None, ValueError, "lists 1 networks for n_members=2"),
        ([nn.Linear(4, 3)] * 2, None, ValueError, "same network instance twice"),
        ([MLP, nn.Linear(4, 3)], {"hidden_sizes": ()}, ValueError, "cannot apply to an instance"),
        (MLP, [{}, {}], ValueError, "goes with a list of modules"),
        ([MLP, MLP], [{}], ValueError, "module_params lists 1 entries"),
        ([MLP, MLP], [{}, 3], TypeError, r"module_params\[1\] must be a dict"),
        (MLP, 3, TypeError, "module_params must be a dict"),
        (3, None, TypeError, "module must be None, a name"),
        (dict, None, TypeError, "dict returned a dict, not an nn.Module"),
        (MLP, {"hiden_sizes": ()}, TypeError, r"MLP could not be built.*hiden_sizes.*module__name"),
        (nn.Linear, None, TypeError, "Linear could not be built"),
        (MLP, {"activation": "x"}, ValueError, "activation must be one of"),
        (MLP, {"n_classes": 5}, ValueError, r"member 0 \(MLP\) returns 5 classes, y has 3"),
        ([MLP, Net], None, ValueError, r"member 1 \(Net\) returns 7 classes, y has 3"),
        ("lenet5", None, ValueError, "LeNet5 takes images"),
    ],
)
def test_build_members_refuses(module, params, error, match):
    with pytest.raises(error, match=match):
        build_members(module, params, n_members=2, **FLAT)


@pytest.mark.parametrize(
    ("result", "match"),
    [
        (lambda x: (x, x), "returns tuple in evaluation mode"),
        (lambda x: x.long(), "returns torch.int64"),
        (lambda x: x.sum(), r"returns shape \(\) for a batch of 2"),
        (lambda x: x[:1], r"returns shape \(1, 3\)"),
        (lambda x: x[:, None], r"returns shape \(2, 1, 3\)"),
    ],
)
def test_wrong_outputs(result, match):
    with pytest.raises(ValueError, match=match):
        build_members(Returns(result), None, n_members=1, input_shape=(3,), n_classes=3)


def test_forward_that_does_not_fit():
    with pytest.raises(ValueError, match=r"member 0 \(Conv2d\).*input_shape=\(4,\)") as info:
        build_members(nn.Conv2d(1, 1, 1), None, n_members=1, **FLAT)
    assert isinstance(info.value.__cause__, (RuntimeError, ValueError))


def test_a_factory_must_build_new_networks():
    net = MLP((4,), 3)
    with pytest.raises(ValueError, match="returned the same network"):
        build_members(lambda: net, None, n_members=2, **FLAT)


def test_wrong_sizes():
    with pytest.raises(ValueError, match="n_members"):
        build_members(None, None, n_members=0, **FLAT)
    with pytest.raises(TypeError, match="input_shape"):
        build_members(None, None, n_members=1, input_shape=4, n_classes=3)
