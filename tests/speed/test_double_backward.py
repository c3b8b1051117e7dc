import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from robust_ensembles._system import log_once
from robust_ensembles.speed import batch_norm as _fast_batch_norm
from robust_ensembles.speed import double_backward as _double_backward
from robust_ensembles.speed.aten import needed_gradients
from robust_ensembles.speed.double_backward import fast_double_backward

TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}


class Net(nn.Module):
    """Every kind of layer that is fast_double_backward, with pooling that expands its gradient."""

    def __init__(self, *, affine=True, tracked=True, momentum=0.1):
        super().__init__()
        options = {"affine": affine, "track_running_stats": tracked, "momentum": momentum}
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(8, **options),
            nn.Tanh(),
            nn.Conv2d(8, 4, (3, 2), padding=(2, 1), dilation=2, groups=2),
            nn.BatchNorm2d(4, **options),
            nn.LeakyReLU(0.1),
            nn.ReLU(inplace=True),
        )
        self.head = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, **options), nn.Linear(6, 3))

    def forward(self, x):
        return self.head(self.body(x).mean(dim=(2, 3)))


def two_nets(**options):
    torch.manual_seed(0)
    nets = nn.ModuleList([Net(**options) for _ in range(2)]).double()
    for layer in nets.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.affine:
            nn.init.uniform_(layer.weight, -1.0, 2.0)
    return nets


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 3, 7, 7, dtype=torch.float64, generator=generator), torch.arange(6) % 3


def penalised_step(nets, x, y):
    leaves = [x.clone().requires_grad_() for _ in nets]
    losses = sum(F.cross_entropy(net(leaf), y) for net, leaf in zip(nets, leaves, strict=True))
    a, b = torch.autograd.grad(losses, leaves, create_graph=True)
    loss = losses + F.cosine_similarity(a.flatten(1), b.flatten(1)).square().mean()
    loss.backward()
    return loss.detach(), [leaf.grad for leaf in leaves]


def assert_same_step(nets, x, y):
    ours = copy.deepcopy(nets)
    loss, by_x = penalised_step(nets, x, y)
    with fast_double_backward(ours):
        our_loss, our_by_x = penalised_step(ours, x, y)
    torch.testing.assert_close(our_loss, loss, **TOLERANCE)
    torch.testing.assert_close(our_by_x, by_x, **TOLERANCE)
    for (name, p), q in zip(nets.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, **TOLERANCE, msg=lambda m, n=name: f"{n}: {m}")
    torch.testing.assert_close(dict(ours.named_buffers()), dict(nets.named_buffers()), **TOLERANCE)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"affine": False}, {"tracked": False}, {"momentum": None}, {"momentum": 0.0}]
)
def test_a_step_with_an_input_gradient_penalty_is_that_of_torch(layout, training, options):
    nets = two_nets(**options).to(memory_format=layout)
    x, y = batch()
    for net in nets:
        net(2.0 * x + 1.0)  # running statistics other than the batch's
    nets.train(training)
    assert_same_step(nets, x.contiguous(memory_format=layout), y)


@pytest.mark.parametrize("slope", [0.0, 0.1, 1.5])
def test_rectifiers(slope):
    layer = nn.LeakyReLU(slope) if slope else nn.ReLU()
    x = torch.tensor([-2.0, -1e-310, -0.0, 0.0, 1e-310, 3.0], dtype=torch.float64)

    def derivatives():
        leaf = x.clone().requires_grad_()
        y = layer(leaf.square() * leaf.sign())
        (g,) = torch.autograd.grad(y.pow(3).sum(), leaf, create_graph=True)
        return y.detach(), g.detach(), *torch.autograd.grad(g.square().sum(), leaf)

    expected = derivatives()
    with fast_double_backward(layer):
        found = derivatives()
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)


def test_a_rectifier_of_another_kind_is_left_alone():
    class Own(nn.ReLU):
        def forward(self, x):
            return super().forward(x) + 1

    for layer in (Own(), nn.ReLU(inplace=True), nn.LeakyReLU(-0.1)):
        with fast_double_backward(layer):
            assert "forward" not in vars(layer)


def test_running_statistics_that_move_before_the_backward_pass():
    net, (x, y) = two_nets()[0].eval(), batch()
    ours = copy.deepcopy(net)
    leaf = x.clone().requires_grad_()
    expected = torch.autograd.grad(F.cross_entropy(net(leaf), y), [leaf, *net.parameters()])
    with fast_double_backward(ours):
        loss = F.cross_entropy(ours(leaf), y)
        ours.train()(leaf + 1.0)
    found = torch.autograd.grad(loss, [leaf, *ours.parameters()])
    torch.testing.assert_close(found, expected, **TOLERANCE)


def layer_call(layer):
    """A layer as a function of its input and parameters, for gradcheck."""
    names = [name for name, _ in layer.named_parameters()]

    def call(x, *values):
        with fast_double_backward(layer):
            return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    return call, [p.detach().clone().requires_grad_() for p in layer.parameters()]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm2d(2), (3, 2, 2, 2)),
        (nn.BatchNorm2d(2, affine=False), (3, 2, 2, 2)),
        (nn.BatchNorm2d(2).eval(), (3, 2, 2, 2)),
        (nn.BatchNorm2d(2, affine=False).eval(), (3, 2, 2, 2)),
        (nn.BatchNorm1d(3), (5, 3)),
        (nn.BatchNorm1d(2), (3, 2, 4)),
        (nn.Conv2d(2, 2, 2, padding=1), (2, 2, 3, 3)),
        (nn.Conv2d(4, 2, 2, stride=2, dilation=2, groups=2, bias=False), (1, 4, 4, 5)),
        (nn.Conv2d(1, 2, (3, 1), padding="same", dilation=(2, 1)), (2, 1, 4, 3)),
        (nn.Conv2d(1, 2, 2, padding="valid"), (2, 1, 3, 3)),
        (nn.Conv1d(2, 4, 3, stride=2, padding=2, groups=2), (2, 2, 5)),
        (nn.Conv3d(1, 2, 2, padding=(0, 1, 0), dilation=(1, 2, 1)), (1, 1, 2, 3, 2)),
        (nn.BatchNorm3d(2), (2, 2, 2, 1, 2)),
    ],
    ids=lambda value: str(value).replace(" ", ""),
)
def test_first_and_second_derivatives_of_a_layer(layer, shape):
    torch.manual_seed(0)
    layer = copy.deepcopy(layer).double()
    for buffer in layer.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    call, parameters = layer_call(layer)
    assert type(call(x, *parameters).grad_fn).__name__ in (
        "FastBatchNormBackward",
        "_ConvBackward",
    )
    assert gradcheck(call, (x, *parameters))
    assert gradgradcheck(call, (x, *parameters), gen_non_contig_grad_outputs=True)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize(
    "layer", [nn.Conv2d(3, 2, 2), nn.BatchNorm2d(3).eval()], ids=["conv", "bn"]
)
def test_no_parameter_gradient_is_computed_for_an_input_gradient(monkeypatch, layer, create_graph):
    masks = []

    def noted(ctx, n):
        masks.append(needed_gradients(ctx, n))
        return masks[-1]

    for module in (_double_backward, _fast_batch_norm):
        monkeypatch.setattr(module, "needed_gradients", noted)
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    with fast_double_backward(layer):
        y = layer(x).square().sum()
    torch.autograd.grad(y, x, create_graph=create_graph, retain_graph=True)
    assert masks == [(True, False, False)]
    y.backward(inputs=list(layer.parameters()))
    assert masks[1:] == [(False, True, True)]


def test_without_the_private_function_everything_is_computed(monkeypatch):
    monkeypatch.delattr(torch._C, "_will_engine_execute_node")
    assert_same_step(two_nets(), *batch())


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_the_module_is_as_before():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 2, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(4, 4, 3),
        nn.BatchNorm2d(4),
    )
    seen = []
    net[3].register_forward_hook(lambda *_: seen.append(True))
    names = list(net.state_dict())
    x = torch.randn(2, 3, 5, 5, requires_grad=True)
    with fast_double_backward(net), fast_double_backward(net):
        assert ["forward" in vars(layer) for layer in net] == [False, False, True, True]
        assert list(net.state_dict()) == names
        y = net(x)
    assert seen == [True]
    assert not any("forward" in vars(layer) for layer in net)
    torch.testing.assert_close(y, copy.deepcopy(net)(x))


def test_layers_of_another_kind_are_told_once(caplog):
    log_once.cache_clear()
    net = nn.Sequential(nn.ConvTranspose2d(3, 4, 2), nn.Conv2d(4, 4, 3), nn.ReLU())
    with caplog.at_level("INFO", "robust_ensembles"):
        for _ in range(2):
            with fast_double_backward(net):
                pass
    assert [record.name for record in caplog.records] == ["robust_ensembles"]
    assert "ConvTranspose2d" in caplog.text
    assert "fast double backward" in caplog.text


def fail_inside(net):
    with fast_double_backward(net):
        raise KeyError


def test_the_module_is_as_before_after_an_error():
    layer = nn.Conv2d(3, 4, 3)
    with pytest.raises(KeyError):
        fail_inside(layer)
    assert "forward" not in vars(layer)


@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_another_layout_than_the_input(training):
    layer = nn.BatchNorm2d(4).double().train(training)
    generator = torch.Generator().manual_seed(0)
    x, g, v = torch.randn(3, 5, 4, 3, 2, dtype=torch.float64, generator=generator)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    g.requires_grad_()

    def second_derivatives(layer):
        by_x, by_weight = torch.autograd.grad(layer(x), (x, layer.weight), g, create_graph=True)
        total = (by_x * v).sum() + by_weight.square().sum()
        return torch.autograd.grad(total, (x, g, layer.weight))

    expected = second_derivatives(copy.deepcopy(layer))
    with fast_double_backward(layer):
        torch.testing.assert_close(second_derivatives(layer), expected, **TOLERANCE)


def test_third_derivatives_are_refused():
    layer = nn.BatchNorm2d(3)
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    with fast_double_backward(layer):
        y = layer(x).pow(3).sum()
    (g,) = torch.autograd.grad(y, x, create_graph=True)
    (h,) = torch.autograd.grad(g.pow(3).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        h.sum().backward()


def test_one_value_per_channel_is_refused_as_by_torch():
    layer = nn.BatchNorm1d(3)
    x = torch.randn(1, 3, requires_grad=True)
    with (
        fast_double_backward(layer),
        pytest.raises(ValueError, match="more than 1 value per channel"),
    ):
        layer(x)
