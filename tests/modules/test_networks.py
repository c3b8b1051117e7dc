import pickle

import pytest
import torch
from torch import nn

from robust_ensembles.modules import (
    MLP,
    CifarResNet,
    LeNet5,
    Normalize,
    ResNet20,
    ResNet26,
    ResNet32,
    ResNet44,
    ResNet56,
)

SHAPES = [(1, 28, 28), (3, 32, 32), (1, 8, 8), (3, 40, 36)]
NETWORKS = [MLP, LeNet5, ResNet20]


def n_parameters(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cls", NETWORKS)
def test_logits_have_one_column_per_class(cls, shape):
    net = cls(shape, 7)
    out = net(torch.rand(2, *shape))
    assert out.shape == (2, 7)
    assert isinstance(net.classifier, nn.Linear)
    assert list(net.modules())[-1] is net.classifier


@pytest.mark.parametrize("shape", [(20,), (5, 6), (2, 3, 4, 5)])
def test_mlp_takes_any_shape(shape):
    assert MLP(shape, 3)(torch.rand(4, *shape)).shape == (4, 3)


def test_mlp_sizes():
    assert n_parameters(MLP((10,), 3, hidden_sizes=(5,))) == 10 * 5 + 5 + 5 * 3 + 3
    linear = MLP((10,), 3, hidden_sizes=())
    assert n_parameters(linear) == 33
    x = torch.rand(2, 10)
    torch.testing.assert_close(linear(x), linear.classifier(x))


def test_lenet_has_the_published_layers():
    net = LeNet5((1, 28, 28), 10, embedding_size=64)
    weights = [
        tuple(m.weight.shape) for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))
    ]
    assert weights == [(20, 1, 5, 5), (50, 20, 5, 5), (500, 800), (64, 500), (10, 64)]
    assert isinstance(net.embedding, nn.Linear)
    assert LeNet5((1, 28, 28), 10).embedding is None


@pytest.mark.parametrize("size", [4, 5, 15, 16, 17])
def test_lenet_takes_sizes_around_the_padding_limit(size):
    net = LeNet5((2, size, size + 1), 3)
    assert net(torch.rand(1, 2, size, size + 1)).shape == (1, 3)


def test_lenet_refuses_tiny_images():
    with pytest.raises(ValueError, match=r"4 x 4 pixels or more, got 3 x 8"):
        LeNet5((1, 3, 8), 10)


@pytest.mark.parametrize(
    ("cls", "count"),
    [
        (ResNet20, 269_722),
        (ResNet26, 366_938),
        (ResNet32, 464_154),
        (ResNet44, 658_586),
        (ResNet56, 853_018),
    ],
)
def test_resnet_parameter_counts_on_cifar10(cls, count):
    assert n_parameters(cls((3, 32, 32), 10)) == count


def test_resnet_embedding_and_width():
    net = CifarResNet((3, 32, 32), 10, depth=8, width=4, embedding_size=9)
    assert tuple(net.embedding.weight.shape) == (9, 16)
    assert tuple(net.classifier.weight.shape) == (10, 9)
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_resnet_uses_kaiming_normal():
    torch.manual_seed(0)
    relu = CifarResNet((3, 8, 8), 2, depth=8, width=32).stages[-1].conv2.weight
    leaky = CifarResNet((3, 8, 8), 2, depth=8, width=32, activation="leaky_relu")
    fan_in = 128 * 9
    assert relu.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.02)
    std = leaky.stages[-1].conv2.weight.std().item()
    assert std == pytest.approx((2 / 1.01 / fan_in) ** 0.5, rel=0.02)


def test_resnet_shortcut_is_subsampled_and_zero_padded():
    net = CifarResNet((1, 8, 8), 2, depth=8, width=4)
    x = torch.rand(1, 4, 7, 7)
    out = net.stages[1]._shortcut(x)
    assert out.shape == (1, 8, 4, 4)
    torch.testing.assert_close(out[:, 2:6], x[:, :, ::2, ::2])
    assert out[:, :2].abs().sum() == 0
    assert out[:, 6:].abs().sum() == 0


@pytest.mark.parametrize("cls", NETWORKS)
def test_leaky_relu_is_in_effect(cls):
    net = cls((1, 8, 8), 3, activation="leaky_relu")
    slopes = [m.negative_slope for m in net.modules() if isinstance(m, nn.LeakyReLU)]
    assert slopes
    assert set(slopes) == {0.1}
    assert not any(isinstance(m, nn.ReLU) for m in net.modules())
    plain = cls((1, 8, 8), 3)
    plain.load_state_dict(net.state_dict())
    x = torch.randn(4, 1, 8, 8)
    assert not torch.allclose(net.eval()(x), plain.eval()(x))


@pytest.mark.parametrize("cls", [LeNet5, ResNet20])
def test_embedding_goes_through_the_activation(cls):
    net = cls((1, 8, 8), 3, embedding_size=6).eval()
    seen = []
    net.classifier.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    net.embedding.register_forward_hook(lambda _, __, out: seen.append(out))
    net(torch.randn(5, 1, 8, 8))
    torch.testing.assert_close(seen[1], seen[0].relu())


@pytest.mark.parametrize("cls", NETWORKS)
def test_nothing_is_in_place_and_double_backward_works(cls):
    net = cls((1, 8, 8), 3).double()
    assert not any(getattr(m, "inplace", False) for m in net.modules())
    x = torch.rand(3, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    before = x.detach().clone()
    (grad,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
    grad.square().sum().backward()
    assert torch.equal(x.detach(), before)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize("cls", NETWORKS)
def test_normalising_inside_equals_outside(cls):
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    inside = cls((3, 8, 8), 4, normalize=(mean, std)).double().eval()
    outside = cls((3, 8, 8), 4).double().eval()
    outside.load_state_dict({k: v for k, v in inside.state_dict().items() if "normalize" not in k})
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    m = inside.normalize.mean.view(1, 3, 1, 1)
    s = inside.normalize.std.view(1, 3, 1, 1)
    torch.testing.assert_close(inside(x), outside((x - m) / s), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cls", NETWORKS)
def test_networks_pickle(cls):
    net = cls((1, 8, 8), 3).eval()
    x = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(pickle.loads(pickle.dumps(net))(x), net(x))


def test_normalize_values():
    x = torch.rand(2, 3, 4, 5)
    out = Normalize((0.0, 0.5, 1.0), 2)(x)
    for c, mean in enumerate((0.0, 0.5, 1.0)):
        torch.testing.assert_close(out[:, c], (x[:, c] - mean) / 2)
    features = torch.rand(2, 3)
    torch.testing.assert_close(
        Normalize(0.5, (1, 2, 4))(features)[:, 2], (features[:, 2] - 0.5) / 4
    )
    assert set(Normalize(0.5, 1).state_dict()) == {"mean", "std"}
    assert "mean=[0.5]" in repr(Normalize(0.5, 1))


@pytest.mark.parametrize(
    ("mean", "std", "error", "match"),
    [
        (0, 0, ValueError, "std must be above 0"),
        (0, (1.0, -1.0), ValueError, "std must be above 0"),
        (float("nan"), 1, ValueError, "mean must hold one or more finite"),
        ((), 1, ValueError, "mean must hold one or more finite"),
        ((0, 0), (1, 1, 1), ValueError, "mean has 2 channels and std has 3"),
        ("a", 1, TypeError, "mean must be a number"),
        (None, 1, TypeError, "mean must be a number"),
    ],
)
def test_normalize_refuses(mean, std, error, match):
    with pytest.raises(error, match=match):
        Normalize(mean, std)


@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (3,)])
def test_normalize_refuses_other_channels(shape):
    with pytest.raises(ValueError, match="has 3 channels, but its input has shape"):
        Normalize((0, 0, 0), 1)(torch.rand(shape))


@pytest.mark.parametrize("cls", NETWORKS)
@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"activation": "gelu"}, ValueError, r"one of \['relu', 'leaky_relu'\]; got 'gelu'"),
        ({"activation": None}, ValueError, "activation must be one of"),
        ({"n_classes": 0}, ValueError, "n_classes must be a whole number above 0"),
        ({"n_classes": 2.5}, TypeError, "n_classes must be a whole number above 0"),
        ({"n_classes": True}, TypeError, "n_classes"),
        ({"input_shape": 8}, TypeError, "input_shape must be a tuple"),
        ({"input_shape": ()}, ValueError, "input_shape is empty"),
        ({"input_shape": (1, 0, 8)}, ValueError, "each entry of input_shape"),
        ({"normalize": 0.5}, ValueError, r"None or a pair \(mean, std\)"),
        ({"normalize": ((0, 0, 0), 1)}, ValueError, "normalize has 3 channels, the input has 1"),
    ],
)
def test_networks_refuse(cls, kwargs, error, match):
    with pytest.raises(error, match=match):
        cls(**{"input_shape": (1, 8, 8), "n_classes": 3, **kwargs})


@pytest.mark.parametrize("cls", [LeNet5, ResNet20])
def test_image_networks_refuse_flat_inputs(cls):
    with pytest.raises(ValueError, match=f"{cls.__name__} takes images"):
        cls((64,), 3)
    with pytest.raises(ValueError, match="embedding_size"):
        cls((1, 8, 8), 3, embedding_size=0)


@pytest.mark.parametrize("depth", [2, 18, 21])
def test_resnet_refuses_depth(depth):
    with pytest.raises(ValueError, match=r"6 n \+ 2"):
        CifarResNet((3, 8, 8), 3, depth=depth)


def test_mlp_refuses_hidden_sizes():
    with pytest.raises(TypeError, match="hidden_sizes must be a tuple"):
        MLP((3,), 2, hidden_sizes=8)
    with pytest.raises(ValueError, match="each of hidden_sizes"):
        MLP((3,), 2, hidden_sizes=(0,))
    with pytest.raises(ValueError, match="activation"):
        MLP((3,), 2, hidden_sizes=(), activation="x")
