"""How attacks run a module: frozen, in minibatches, in smaller ones where memory runs out."""

import pytest
import torch
from small_models import BOUNDED, linear, quick, random, uniform
from torch import nn

from robust_ensembles.attacks import FAB, PGD, CarliniWagnerL2, TargetedAPGD, is_broken
from robust_ensembles.attacks.engine.forward import Minibatches, frozen


@pytest.mark.parametrize("mode", ["eval", "train_frozen_stats", "train"])
def test_craft_modes(mode):
    x = uniform(6, 5, dtype=torch.float32)
    module = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 2)).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with frozen(module, mode):
        module(x)
        during = module[0](x)
    after = module.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    statistics = {"0.running_mean", "0.running_var", "0.num_batches_tracked"}
    assert moved == (statistics if mode == "train" else set())
    uses_batch = during.mean(dim=0).abs().max() < 1e-5
    assert bool(uses_batch) == (mode != "eval")
    assert module.training


def test_modes_of_parts_are_put_back():
    """Eval inside train stays eval, and train inside eval stays train."""
    module = nn.Sequential(nn.Sequential(nn.Dropout()).eval(), nn.Dropout().eval(), nn.Linear(2, 2))
    module[2].bias.requires_grad_(False)
    before = [part.training for part in module.modules()]
    with frozen(module):
        assert not any(part.training for part in module.modules())
        assert not any(p.requires_grad for p in module.parameters())
    assert [part.training for part in module.modules()] == before
    assert [p.requires_grad for p in module.parameters()] == [True, False]


class Cramped(nn.Module):
    """Runs out of memory above a number of samples."""

    def __init__(self, n_samples, error, n_classes=3):
        super().__init__()
        self.n_samples, self.error, self.batches = n_samples, error, []
        self.layers = nn.Sequential(nn.Flatten(), linear(random(128, n_classes) / 128**0.5))

    def forward(self, x):
        self.batches.append(len(x))
        if len(x) > self.n_samples:
            raise self.error
        return self.layers(x)


OUT_OF_MEMORY = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory"),
    "cpu": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
}


every_error = pytest.mark.parametrize("error", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY)


class TestOutOfMemory:
    @pytest.mark.parametrize("cls", [*BOUNDED, CarliniWagnerL2])
    def test_smaller_batches(self, cls, caplog):
        attack = quick(cls, 4, eps=0.1)
        module, x = Cramped(100, OUT_OF_MEMORY["cuda"]), uniform(24, 2, 8, 8)
        y = module(x).argmax(dim=1)
        expected = attack(module, x, y)
        module.n_samples, module.batches = 7, []
        torch.testing.assert_close(attack(module, x, y), expected, rtol=0, atol=1e-9)
        assert module.batches[:4] == [1, 24, 12, 6]  # a single sample is tried first
        assert max(module.batches[3:]) <= 6
        messages = [r.getMessage() for r in caplog.records]
        assert len(messages) == 2
        assert "going on with 6" in messages[-1]

    @every_error
    def test_who_says_it(self, error):
        module, x = Cramped(3, error), uniform(5, 2, 8, 8)
        PGD(eps=1e-9, n_steps=1)(module, x, module.layers(x).argmax(dim=1))
        assert module.batches[:4] == [1, 5, 2, 2]

    @every_error
    def test_not_even_one_sample(self, error):
        module, x = Cramped(0, error), uniform(5, 2, 8, 8)
        with pytest.raises(RuntimeError, match=r"memory"):
            PGD()(module, x, torch.zeros(5, dtype=torch.int64))
        assert module.batches == [1]

    def test_other_errors_go_up_at_once(self):
        module, x = Cramped(1, RuntimeError("boom")), uniform(5, 2, 8, 8)
        with pytest.raises(RuntimeError, match="boom"):
            PGD()(module, x, torch.zeros(5, dtype=torch.int64))
        assert module.batches == [1, 5]

    def test_training_batches_stay_whole(self):
        """Their statistics are those of all samples."""
        module, x = Cramped(3, OUT_OF_MEMORY["cuda"]), uniform(5, 2, 8, 8)
        y = torch.zeros(5, dtype=torch.int64)
        with pytest.raises(torch.OutOfMemoryError):
            PGD().craft(module, x, y, box=None, seed=0)


class TestMinibatches:
    def test_parts_in_order(self):
        x, y, sizes = torch.arange(10.0), torch.arange(10), []

        def function(x, y):
            sizes.append(len(x))
            return x * 2, y + 1

        doubled, more = Minibatches(4).map(function, x, y)
        assert sizes == [4, 4, 2]
        assert torch.equal(doubled, 2 * x)
        assert torch.equal(more, y + 1)

    @pytest.mark.parametrize("size", [None, 3])
    def test_no_samples(self, size):
        (found,) = Minibatches(size).map(lambda x: (x[:, :2],), torch.zeros(0, 4))
        assert found.shape == (0, 2)

    def test_survivors_of_many_batches_share_one(self):
        """Late in an attack few samples are left, and small batches are slow."""
        module = Cramped(100, OUT_OF_MEMORY["cuda"])
        x = uniform(24, 2, 8, 8)
        y = module(x).argmax(dim=1)
        module.batches = []
        attack = PGD(eps=0.05, n_steps=10, batch_size=5)
        broken = is_broken(module, attack(module, x, y), y)
        left = (~broken).nonzero().squeeze(1)
        assert len((left // 5).unique()) > 1
        assert module.batches[:6] == [1, 5, 5, 5, 5, 4]
        assert module.batches[-4:-1] == [len(left)] * 3


def test_walks_towards_several_classes_go_side_by_side():
    x = uniform(4, 2, 8, 8)
    # two wrong classes; nine: one, then eight more of all four samples
    for n_classes, sizes in ((3, {4}), (10, {4, 32})):
        module = Cramped(100, OUT_OF_MEMORY["cuda"], n_classes)
        y = module(x).argmax(dim=1)
        for attack in (TargetedAPGD(eps=1e-6, n_steps=2), FAB(eps=1e-6, n_steps=2)):
            module.batches = []
            attack(module, x, y)
            assert set(module.batches[1:]) == sizes
