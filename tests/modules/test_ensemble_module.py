import pytest
import torch
from torch import nn

from robust_ensembles.modules import MLP, Ensemble


def test_forward_is_the_log_of_the_mean_probability():
    ensemble = Ensemble([MLP((5,), 3) for _ in range(4)]).double()
    x = torch.randn(6, 5, dtype=torch.float64)
    mean = torch.stack([member(x).softmax(-1) for member in ensemble]).mean(0)
    torch.testing.assert_close(ensemble(x), mean.log(), rtol=1e-12, atol=1e-12)


def test_member_logits():
    members = [MLP((5,), 3), nn.Linear(5, 3)]
    ensemble = Ensemble(members)
    x = torch.randn(6, 5)
    logits = ensemble.member_logits(x)
    assert logits.shape == (2, 6, 3)
    torch.testing.assert_close(logits[1], members[1](x))


def test_it_is_a_sequence_of_its_members():
    members = [nn.Linear(2, 2) for _ in range(3)]
    ensemble = Ensemble(tuple(members))
    assert len(ensemble) == 3
    assert list(ensemble) == members
    assert ensemble[-1] is members[-1]
    assert len(list(ensemble.parameters())) == 6
    with pytest.raises(IndexError):
        ensemble[3]


def test_it_refuses_what_is_no_network():
    with pytest.raises(ValueError, match="members is empty"):
        Ensemble([])
    with pytest.raises(TypeError, match=r"members\[1\] must be an nn.Module"):
        Ensemble([nn.Linear(1, 1), MLP])
