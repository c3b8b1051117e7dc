"""--eps and --norm: given once, in the units of the pixels, and told on."""

import pytest
from tiny_training import train

from robust_ensembles._cli.main import _parser
from robust_ensembles._cli.threat import words_of
from robust_ensembles._cli.train import make_estimator, training_attack
from robust_ensembles.attacks import FGSM, PGD


def estimator_of(words):
    line = f"train digits -o m.st {words}"
    return make_estimator(_parser("x").parse_args(line.split()))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--method vanilla", None),
        ("--method gal", None),
        ("--method ceat", PGD(n_steps=10, step_size=2 / 255)),
        ("--method adversarial --eps 0.1", PGD(eps=0.1, n_steps=10, step_size=0.1 / 4)),
        ("--method adversarial --set attack=None", PGD(n_steps=10, step_size=2 / 255)),
        (
            "--method adversarial --set attack=None --eps 0.1",
            PGD(eps=0.1, n_steps=10, step_size=0.1 / 4),
        ),
        ("--method gal --set attack=pgd2 --eps 0.1", PGD(eps=0.1, n_steps=2)),
        ("--method gal --set attack=pgd2_linf_0.1", PGD(eps=0.1, n_steps=2)),
        ("--method gal --set attack=fgsm --set attack__eps=0.1", FGSM(eps=0.1)),
        ("--method gal --set attack=pgd2_l2_0.5", PGD(eps=0.5, norm="l2", n_steps=2)),
        ("--method gal --set attack=pgd2_l2 --eps 2", PGD(eps=2, norm="l2", n_steps=2)),
        (
            "--method ceat --set attack__norm=l2 --eps 2",
            PGD(eps=2, norm="l2", n_steps=10, step_size=0.5),
        ),
        ("--method vanilla --set clip_values=(0,1)", None),
    ],
)
def test_the_attack_in_training(words, expected):
    attack = training_attack(estimator_of(words))
    assert type(attack) is type(expected)
    if expected is not None:
        assert attack.get_params() == pytest.approx(expected.get_params())
    # what the class itself takes for None has not become another attack
    assert training_attack(estimator_of("--method adversarial")).eps == 8 / 255


BAD = [
    ("gal --set attack=pgd2_linf_0.1 --eps 0.2", "has a radius, and so has --eps 0.2"),
    ("gal --set attack=None --eps 0.1", "give it attacks to train on with --set attack=pgd10"),
    ("gal --set attack=pgd2_l2", "an attack in l2 needs --eps"),
    ("ceat --set attack__norm=l2", "an attack in l2 needs --eps"),
    ("ceat --set attack__eps=8", "did you mean 8/255"),
    ("ceat --eps 8", "--eps: eps=8 is more than X can change"),
    ("gal --set attack=pgd2_linf_8", "did you mean 8/255"),
    ("ceat --set attack__eps=-1", "eps must be a finite number >= 0"),
    ("ceat --eps 0", "--eps 0: attacks in training need a radius of more than 0"),
    ("ceat --set clip_values=(0,255)", "the commands give pixels from 0 to 1"),
    ("ceat --set clip_values=None", "the commands give pixels from 0 to 1"),
    ("ceat --set attack__clip_values=(0,2)", "the commands give pixels from 0 to 1"),
    ("ceat --set verbose=5", "epochs are shown unless --quiet"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=[words for words, _ in BAD])
def test_a_radius_that_cannot_be_meant(words, message):
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        estimator_of(f"--method {words}")
    assert message in str(raised.value)


@pytest.mark.parametrize("command_line", ["train digits --method ceat -o m.st", "evaluate m.st d"])
@pytest.mark.parametrize("eps", ["nan", "-0.1", "inf", "1e999"])
def test_a_radius_that_is_no_number_from_0(capsys, command_line, eps):
    with pytest.raises(SystemExit):
        _parser("x").parse_args([*command_line.split(), "--eps", eps])
    assert "must be a number from 0, such as 8/255" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--norm l2", "--norm l2 needs --eps, such as --eps 0.5"),
        ("--norm l2 --attacks cw40_l2_0.5", "--norm l2 needs --eps"),
        ("--attacks pgd5_l2", "--eps 0.0313725 is a radius in linf, not in l2"),
        ("--attacks pgd5_linf --norm l2 --eps 1", "--eps 1 is a radius in l2, not in linf"),
        ("--attacks pgd5_linf_8", "--attacks pgd5_linf_8: eps=8 is more than X can change"),
        ("--attacks transfer_pgd5_l2 --surrogate s.st", "is a radius in linf, not in l2"),
    ],
)
@pytest.mark.parametrize("command_line", ["evaluate", "report --path r.json"])
def test_a_radius_of_another_norm(command, command_line, line, message):
    name, *more = command_line.split()
    status, _, err = command(f"{name} none.st none.npz {' '.join(more)} {line}")  # not yet read
    assert status == 2
    assert message in err


@pytest.mark.parametrize(
    "words",
    ["", "--norm l2 --eps 2", "--attacks fgsm pgd5_l2_0.5 transfer_pgd5 --surrogate s.st"],
)
def test_a_radius_that_can_be_meant(command, words):
    _, _, err = command(f"evaluate none.st none.npz {words}")
    assert "none.npz does not exist" in err


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        (None, "--eps 8/255"),
        (PGD(eps=8 / 255), "--eps 8/255"),
        (PGD(eps=4 / 255), "--eps 4/255"),
        (PGD(eps=0.1), "--eps 0.1"),
        (PGD(eps=1 / 3 - 1e-9), f"--eps {1 / 3 - 1e-9!r}"),
        (PGD(eps=8 / 255, norm="l2"), f"--eps {8 / 255!r} --norm l2"),
        (PGD(eps=2, norm="l2"), "--eps 2.0 --norm l2"),
    ],
)
def test_words_for_evaluate(attack, expected):
    assert " ".join(words_of(attack)) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--method adversarial --set attack=pgd1_l2_0.5", "--eps 0.5 --norm l2"),
        ("--method adversarial --set attack=None --eps 0.1", "--eps 0.1"),
        ("--method vanilla", "--eps 8/255"),
    ],
)
def test_the_next_command_attacks_in_the_same_ball(command, npz, words, expected):
    out, _ = train(command, f"train data.npz --epochs 1 -o m.st {words}")
    line = out.splitlines()[-1].strip()
    assert line.endswith(f"evaluate m.st data.npz --attacks fgsm pgd20 autoattack {expected}")
    line = line.removeprefix("python -m robust_ensembles ").replace("pgd20 autoattack ", "")
    status, shown, err = command(line)
    assert status == 0, err
    eps, *norm = expected.removeprefix("--eps ").split(" --norm ")
    threat = {"8/255": "0.03137 (8/255)", "0.1": "0.1 (25.5/255)", "0.5": "0.5"}[eps]
    assert shown.splitlines()[2] == f"{(norm or ['linf'])[0]}, eps {threat} for pixels from 0 to 1"
