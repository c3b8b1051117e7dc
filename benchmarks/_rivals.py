"""The same attacks by other libraries, as functions of a module, images and labels.

All take log mean probabilities for logits, in eval mode, and batches of one size.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Maker = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Setting:
    """What all contenders share.

    Parameters
    ----------
    eps : float
        Radius in the maximum norm.
    n_steps : int
    step_size : float
    batch_size : int
    n_queries : int
        Of Square in AutoAttack.
    """

    eps: float
    n_steps: int = 20
    step_size: float = 0.0
    batch_size: int = 256
    n_queries: int = 1000


def pgd(setting: Setting) -> dict[str, Maker]:
    """Projected gradient descent from a random start."""
    return {
        "plain loop": _batched(lambda *data: _plain(setting, *data, momentum=False), setting),
        "torchattacks": _batched(lambda *data: _torchattacks("PGD", setting, *data), setting),
        "foolbox": _batched(lambda *data: _foolbox("LinfPGD", setting, *data), setting),
        "ART": lambda *data: _art("ProjectedGradientDescent", setting, *data, num_random_init=1),
    }


def mim(setting: Setting) -> dict[str, Maker]:
    """The momentum iterative method."""
    momentum = "LinfMomentumIterativeFastGradientMethod"
    return {
        "plain loop": _batched(lambda *data: _plain(setting, *data, momentum=True), setting),
        "torchattacks": _batched(lambda *data: _torchattacks("MIFGSM", setting, *data), setting),
        "foolbox": _batched(
            lambda *data: _foolbox(momentum, setting, *data, random_start=False), setting
        ),
        "ART": lambda *data: _art("MomentumIterativeMethod", setting, *data),
    }


def autoattack(setting: Setting) -> dict[str, Maker]:
    """The standard version, with the number of Square's queries of the setting."""
    return {"pyautoattack": lambda *data: _pyautoattack(setting, *data)}


def load(name: str) -> Any:
    """A library to compare with."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{error}; install what is compared with: pip install robust-ensembles[benchmark]"
        ) from error


def _batched(make: Maker, setting: Setting) -> Maker:
    def attack(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        parts = zip(x.split(setting.batch_size), y.split(setting.batch_size), strict=True)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return torch.cat([make(module, *part) for part in parts])

    return attack


def _plain(setting: Setting, module: nn.Module, x: Tensor, y: Tensor, *, momentum: bool) -> Tensor:
    """The loop of the codes that defences were released in."""
    eps, accumulated = setting.eps, torch.zeros_like(x)
    x_adv = x if momentum else (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(setting.n_steps):
        x_adv = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(module(x_adv), y), x_adv)
        if momentum:
            gradient = gradient / gradient.abs().mean(dim=(1, 2, 3), keepdim=True)
            accumulated = gradient = accumulated + gradient
        x_adv = x_adv.detach() + setting.step_size * gradient.sign()
        x_adv = (x + (x_adv - x).clamp(-eps, eps)).clamp(0, 1)
    return x_adv


def _torchattacks(kind: str, setting: Setting, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    attack = getattr(load("torchattacks"), kind)(
        module, eps=setting.eps, alpha=setting.step_size, steps=setting.n_steps
    )
    made: Tensor = attack(x, y)
    return made


def _foolbox(
    kind: str, setting: Setting, module: nn.Module, x: Tensor, y: Tensor, **params: Any
) -> Tensor:
    foolbox = load("foolbox")
    attack = getattr(foolbox.attacks, kind)(
        abs_stepsize=setting.step_size, steps=setting.n_steps, **params
    )
    target = foolbox.PyTorchModel(module, bounds=(0, 1), device=x.device)
    made: Tensor = attack(target, x, y, epsilons=setting.eps)[1]
    return made


def _art(
    kind: str, setting: Setting, module: nn.Module, x: Tensor, y: Tensor, **params: Any
) -> Tensor:
    classifier = load("art.estimators.classification").PyTorchClassifier(
        module,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(x.shape[1:]),
        nb_classes=module(x[:1]).shape[1],
        clip_values=(0.0, 1.0),
        device_type="cpu" if x.device.type == "cpu" else "gpu",
    )
    attack = getattr(load("art.attacks.evasion"), kind)(
        classifier,
        eps=setting.eps,
        eps_step=setting.step_size,
        max_iter=setting.n_steps,
        batch_size=setting.batch_size,
        verbose=False,
        **params,
    )
    made = attack.generate(x.cpu().numpy(), y.cpu().numpy())
    return torch.from_numpy(made).to(x)


def _pyautoattack(setting: Setting, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    attack = load("pyautoattack").AutoAttack(
        module, norm="Linf", eps=setting.eps, seed=0, version="standard", device=x.device
    )
    attack.square.n_queries = setting.n_queries
    with torch.random.fork_rng():
        made: Tensor = attack.run_standard_evaluation(x, y, batch_size=setting.batch_size)[0]
    return made
