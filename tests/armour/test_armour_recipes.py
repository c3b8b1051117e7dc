"""Recipes by names and with overrides of any kind."""

import strange
from endings import ends_well
from hypothesis import strategies as st
from sklearn.base import clone

from robust_ensembles import recipes

NAMES = st.one_of(
    st.sampled_from([*recipes.METHODS, "CEAT", "trs "]),
    st.sampled_from([*recipes.DATASETS, "FMNIST", "cifar_10"]),
    st.sampled_from(recipes.SOURCES),
    st.text(max_size=8),
    strange.NONSENSE,
)
_KEYS = ["lr", "max_epochs", "lr_milestones", "attack__eps", "module__width", "nonsense", "a__b"]
_KEYS += ["attack", "pretrained", "optimizer__momentum", "source__a", "__", "n_estimators"]


def test_recipes(explore):
    def check(method, dataset, source, overrides):
        ended = ends_well(recipes.get, method, dataset, source=source, **overrides)
        if ended:
            estimator = ended.value
            assert type(estimator) in recipes.METHODS.values()
            assert type(clone(estimator)) is type(estimator)
            assert repr(estimator)

    explore(
        check,
        method=st.one_of(st.sampled_from(list(recipes.METHODS)), NAMES),
        dataset=st.one_of(st.sampled_from(recipes.DATASETS), NAMES),
        source=st.one_of(st.none(), NAMES),
        overrides=st.dictionaries(st.sampled_from(_KEYS), strange.NONSENSE, max_size=2),
    )
