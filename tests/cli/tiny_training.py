"""Trainings that take no time."""

NETWORK = ["--set", "module=mlp", "--set", "module__hidden_sizes=(16,)"]
TINY = [*NETWORK, "--set", "lr=0.01", "--device", "cpu"]


def train(command, line, *more):
    status, out, err = command(line, *TINY, "--quiet", *more)
    assert status == 0, err
    return out, err
