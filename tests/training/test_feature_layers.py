"""Features by the name of a layer, in networks of this package and of others."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from robust_ensembles.modules import MLP, LeNet5, ResNet20
from robust_ensembles.training import feature_layers, features, replaced_output, resolve_layers


def has_hooks(net):
    return any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def hooked(net, layer, x):
    """What a plain hook sees at the first call."""
    seen = []
    handle = net.get_submodule(layer).register_forward_hook(
        lambda _m, _x, output: seen.append(output.clone())
    )
    net(x)
    handle.remove()
    return seen[0]


class Failing(nn.Module):
    def forward(self, x):
        raise RuntimeError("on purpose")


class Functional(nn.Module):
    """ReLUs without a module."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.fc1 = nn.Linear(2 * 6 * 6, 5)
        self.fc2 = nn.Linear(5, 4)

    def forward(self, x):
        return self.fc2(F.relu(self.fc1(F.relu(self.conv(x)).flatten(1))))


class TwoConvolutions(nn.Module):
    """The network of torch's own tutorial, smaller."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 2, 3)
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(2, 3, 3)
        self.fc1 = nn.Linear(3, 5)
        self.fc2 = nn.Linear(5, 4)

    def forward(self, x):
        x = self.conv2(self.pool(F.relu(self.conv1(x)))).amax(dim=(2, 3))
        return self.fc2(F.relu(self.fc1(F.relu(x))))


class Recurrent(nn.Module):
    """One layer is called twice, another never; a third returns no row per sample."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 6)
        self.spare = nn.Linear(6, 6)
        self.total = nn.Flatten(0)
        self.split = Split()
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x, _ = self.split(self.body(self.body(x).tanh()))
        self.total(x)
        return self.head(x)


class Split(nn.Module):
    def forward(self, x):
        return x, x


RESNET18 = [
    "bn1",
    *(f"layer{s}.{b}{end}" for s in range(1, 5) for b in range(2) for end in (".bn1", "")),
    "fc",
]
VGG11 = [
    *(f"features.{i}" for i in (0, 3, 6, 8, 11, 13, 16, 18)),
    *(f"classifier.{i}" for i in (0, 3, 6)),
]
RESNET20 = [
    "stem.1",
    *(f"stages.{b}.{end}" for b in range(9) for end in ("bn1", "residual_sum")),
    "classifier",
]


def on_meta(factory):
    """Shapes without numbers: VGG's would take seconds."""
    with torch.device("meta"):
        return factory(num_classes=10)


NETWORKS = {
    "mlp": (lambda: MLP((6,), 4), (6,), ["features.0", "features.2", "classifier"]),
    "linear": (lambda: MLP((6,), 4, hidden_sizes=()), (6,), ["classifier"]),
    "lenet5": (
        lambda: LeNet5((1, 8, 8), 4),
        (1, 8, 8),
        ["features.0", "features.3", "features.7", "classifier"],
    ),
    "lenet5-embedding": (
        lambda: LeNet5((1, 8, 8), 4, embedding_size=3),
        (1, 8, 8),
        ["features.0", "features.3", "features.7", "embedding", "classifier"],
    ),
    "resnet20": (lambda: ResNet20((3, 8, 8), 4, width=2), (3, 8, 8), RESNET20),
    "resnet18": (lambda: on_meta(torchvision.models.resnet18), (3, 32, 32), RESNET18),
    "vgg11": (lambda: on_meta(torchvision.models.vgg11), (3, 32, 32), VGG11),
    "functional": (Functional, (1, 8, 8), ["conv", "fc1", "fc2"]),
    "two-convolutions": (TwoConvolutions, (1, 8, 8), ["conv1", "conv2", "fc1", "fc2"]),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_of_known_networks(name):
    build, shape, expected = NETWORKS[name]
    net = build()
    assert feature_layers(net) == expected
    assert resolve_layers([net, net], None, shape) == [expected, expected]
    assert not has_hooks(net)


def test_resnet20_has_dverges_twenty_layers():
    net = ResNet20((3, 8, 8), 4, width=2).eval()
    assert len(feature_layers(net)) == 20
    x = torch.rand(5, 3, 8, 8)
    for layer in feature_layers(net):
        assert features(net, layer, x).min() < 0, f"{layer} is past its activation"
    for block in ("stages.0", "stages.3", "stages.8"):
        before = features(net, f"{block}.residual_sum", x)
        torch.testing.assert_close(before.relu(), features(net, block, x))
    stem = net.stem[1](net.stem[0](x))
    torch.testing.assert_close(features(net, "stem.1", x), stem)


def test_resnet18_and_its_relus_in_place():
    net = torchvision.models.resnet18(num_classes=4).eval()
    assert net.relu.inplace
    x = torch.rand(2, 3, 32, 32, requires_grad=True)
    stem = net.bn1(net.conv1(x))
    found = features(net, "bn1", x)
    torch.testing.assert_close(found, stem)
    assert found.min() < 0
    (gradient,) = torch.autograd.grad(found.square().sum(), x)
    (expected,) = torch.autograd.grad(stem.square().sum(), x)
    torch.testing.assert_close(gradient, expected)
    with replaced_output(net, "bn1", lambda output: 2 * output):
        logits = net(x)
    rest = [m for name, m in net.named_children() if name not in ("conv1", "bn1", "fc")]
    torch.testing.assert_close(logits, net.fc(nn.Sequential(*rest)(2 * stem).flatten(1)))
    assert torch.autograd.grad(logits.sum(), x)[0].abs().max() > 0


def test_normalization_stands_for_its_convolution():
    inner = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.ReLU(), nn.Conv2d(2, 3, 3))
    net = nn.Sequential(inner, nn.ReLU(), nn.Flatten(), nn.Linear(48, 4), nn.LayerNorm(4))
    assert resolve_layers([net], None, (1, 8, 8)) == [["0.1", "0.3", "4"]]


class Residual(nn.Module):
    """A shortcut convolves inside a container or, written last, as a child of the block."""

    def __init__(self, *, wrapped):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 3, 1)
        self.norm2 = nn.BatchNorm2d(3)
        shortcut = nn.Conv2d(1, 3, 1)
        self.shortcut = nn.Sequential(shortcut) if wrapped else shortcut

    def forward(self, x):
        return self.norm2(self.conv2(self.conv1(x).relu())) + self.shortcut(x)


def test_shortcuts_are_left_out():
    net = nn.Sequential(Residual(wrapped=True), nn.Flatten(), nn.Linear(12, 4))
    assert resolve_layers([net], None, (1, 2, 2)) == [["0.conv1", "0", "2"]]
    beside = nn.Sequential(Residual(wrapped=False), nn.Flatten(), nn.Linear(12, 4))
    assert "0.shortcut" not in feature_layers(beside)


def test_declared_and_named_layers_keep_their_order():
    nets = [MLP((6,), 4) for _ in range(2)]
    names = ["classifier", "features.1"]
    assert resolve_layers(nets, names, (6,)) == [names, names]
    assert resolve_layers(nets, tuple(names), (6,)) == [names, names]
    nets[0].feature_layers = tuple(names)
    assert resolve_layers(nets[:1], None, (6,)) == [names]
    assert resolve_layers(nets[:1], ["features.0"], (6,)) == [["features.0"]]


def test_lists_for_each_member():
    nets = [MLP((1, 8, 8), 4), LeNet5((1, 8, 8), 4)]
    nested = [["features.2"], ("features.3", "classifier")]
    expected = [["features.2"], ["features.3", "classifier"]]
    assert resolve_layers(nets, nested, (1, 8, 8)) == expected
    mlp, lenet5 = NETWORKS["mlp"][2], NETWORKS["lenet5"][2]
    assert resolve_layers(nets, None, (1, 8, 8)) == [mlp, lenet5]
    assert resolve_layers(nets, ["classifier"], (1, 8, 8)) == [["classifier"]] * 2


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([["classifier"]], "lists for 1 members, the ensemble has 2; give one list of names"),
        ([["classifier"]] * 3, "lists for 3 members, the ensemble has 2; give one list of names"),
        (["features.0", "clasifier"], r"member 0 \(LeNet5\).*'clasifier'.*mean 'classifier'"),
        (["features.7"], r"member 1 \(MLP\).*got 'features.7'"),
    ],
)
def test_wrong_names(layers, message):
    nets = [LeNet5((1, 8, 8), 4), MLP((1, 8, 8), 4)]
    with pytest.raises(ValueError, match=message):
        resolve_layers(nets, layers, (1, 8, 8))


@pytest.mark.parametrize("layers", [[], [[]], None])
def test_no_layer_at_all(layers):
    net = MLP((6,), 4) if layers is not None else nn.Flatten()
    with pytest.raises(ValueError, match="has no layer to take features from"):
        resolve_layers([net], layers, (6,))


@pytest.mark.parametrize("name", ["spare", "total", "split"])
def test_unusable_layers(name):
    net = Recurrent()
    assert resolve_layers([net], None, (6,)) == [["body", "head"]]
    match = rf"does not call '{name}', or what it returns.*usable are \['body', 'head'\]"
    with pytest.raises(ValueError, match=match):
        resolve_layers([net], ["head", name], (6,))


def test_resolving_leaves_no_trace():
    net = ResNet20((1, 8, 8), 4, width=2).double()
    net.stages[0].eval()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    before = torch.get_rng_state()
    resolve_layers([net], None, (1, 8, 8))
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes
    assert all(p.requires_grad for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_resolving_cleans_up_after_an_error():
    net = nn.Sequential(nn.Linear(6, 5), Failing(), nn.Linear(5, 4))
    with pytest.raises(RuntimeError, match="on purpose"):
        resolve_layers([net], None, (6,))
    assert not has_hooks(net)
    assert net.training
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("name", ["mlp", "lenet5-embedding", "resnet20", "functional"])
def test_features_are_what_a_hook_sees(name):
    build, shape, layers = NETWORKS[name]
    net = build().eval()
    x = torch.rand(3, *shape)
    for layer in layers:
        assert torch.equal(features(net, layer, x), hooked(net, layer, x))
    assert torch.equal(features(net, layers[-1], x), net(x))
    assert not has_hooks(net)


def test_features_do_not_run_later_layers():
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), Failing())
    x = torch.rand(3, 6)
    torch.testing.assert_close(features(net, "1", x), net[1](net[0](x)))
    with pytest.raises(RuntimeError, match="on purpose"):
        features(net, "2", x)
    assert not has_hooks(net)
    with pytest.raises(RuntimeError, match="on purpose"):
        net(x)  # the hook that leaves early is gone


def test_features_of_the_first_call():
    net = Recurrent()
    x = torch.rand(3, 6)
    assert torch.equal(features(net, "body", x), net.body(x))


def test_features_of_a_layer_out_of_reach():
    net = Recurrent()
    with pytest.raises(RuntimeError, match="forward pass of Recurrent did not reach 'spare'"):
        features(net, "spare", torch.rand(3, 6))
    assert not has_hooks(net)


def test_features_are_differentiable():
    net = MLP((6,), 4).double()
    x = torch.rand(3, 6, dtype=torch.float64, requires_grad=True)
    found = features(net, "features.2", x).square().sum()
    expected = net.features[2](net.features[0](x).relu()).square().sum()
    parameters = [x, *net.features.parameters()]
    gradients = torch.autograd.grad(found, parameters)
    for a, b in zip(gradients, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(a, b)
        assert a.abs().max() > 0


def test_replaced_output():
    net = MLP((6,), 4)
    x, other = torch.rand(3, 6), torch.rand(3, 64, requires_grad=True)
    before = net(x)
    with replaced_output(net, "features.2", lambda own: 0.25 * own + 0.75 * other):
        found = net(x)
    own = net.features[2](net.features[0](x).relu())
    expected = net.classifier((0.25 * own + 0.75 * other).relu())
    torch.testing.assert_close(found, expected)
    assert torch.equal(net(x), before)
    assert not has_hooks(net)
    sources = [other, *net.parameters()]
    gradients = torch.autograd.grad(found.square().sum(), sources)
    expected_gradients = torch.autograd.grad(expected.square().sum(), sources)
    for a, b in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(a, b)
        assert a.abs().max() > 0


def test_replaced_residual_sum():
    net = ResNet20((1, 8, 8), 4, width=2).eval()
    x = torch.rand(3, 1, 8, 8)
    with replaced_output(net, "stages.8.residual_sum", torch.ones_like):
        found = net(x)
    torch.testing.assert_close(found, net.classifier(torch.ones(3, 8)))


def test_replaced_at_every_call():
    net = Recurrent()
    x = torch.rand(3, 6)
    with replaced_output(net, "body", lambda own: own + 1):
        found = net(x)
    expected = net.head(net.body((net.body(x) + 1).tanh()) + 1)
    torch.testing.assert_close(found, expected)


def test_replacement_ends_with_an_error():
    net = MLP((6,), 4)
    x = torch.rand(3, 6)
    before = net(x)
    with pytest.raises(RuntimeError, match="on purpose"), replaced_output(net, "classifier", -1):
        raise RuntimeError("on purpose")
    with (
        pytest.raises(RuntimeError, match="on purpose"),
        replaced_output(net, "classifier", Failing()),
    ):
        net(x)
    assert not has_hooks(net)
    assert torch.equal(net(x), before)
