"""Comparisons against published figures, brute force, and each other."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr, ndtri
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from lenslib.comparison import (
    bootstrap_p,
    compare,
    compare_scores,
    delong,
    delong_interval,
    delong_test,
    holm,
    mcnemar,
    two_views_auc,
)
from lenslib.errors import InputError
from lenslib.metrics import classification_metrics
from lenslib.records import run_folder, write_run
from lenslib.resampling import Resampled

# Ovarian cancer and bowel obstruction, the worked example of DeLong et al. 1988 (Biometrics 44, 837), as the SAS/STAT
# User's Guide prints it (LOGISTIC procedure, "Comparing Receiver Operating Characteristic Curves"): albumin, total
# protein, Krebs-Goplerud score (there subtracted from 10), outcome; the 43 patients without missing values.
OVARIAN = """
3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0  1.6 5.6 5 1  3.8 5.7 5 1
3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1  4.3 7.0 4 1  3.6 6.7 4 0  2.3 4.4 6 1  4.2 7.6 4 0
4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1  3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1
4.3 6.5 4 1  3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0  3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1  3.5 6.2 5 1
2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1  3.3 5.7 6 1  3.7 6.9 5 1  3.6 6.6 5 1
"""


@pytest.fixture(scope="module")
def ovarian():
    table = np.array(OVARIAN.split(), dtype=float).reshape(43, 4)
    return table[:, 3].astype(int), {"albumin": table[:, 0], "protein": table[:, 1], "score": 10 - table[:, 2]}


def test_delong_gives_the_published_areas_and_intervals(ovarian):
    labels, tests = ovarian
    # the same page, "ROC Association Statistics": area, standard error, 95 % limits
    for name, area, error, low, high in (
        ("score", 0.7258, 0.1028, 0.5243, 0.9273),
        ("protein", 0.6478, 0.1000, 0.4518, 0.8439),
    ):
        found = delong_interval(labels, tests[name])
        assert found == pytest.approx({"value": area, "low": low, "high": high}, abs=6e-5)
        assert np.sqrt(delong(labels, tests[name])[1]) == pytest.approx(error, abs=6e-5)


def test_delong_gives_the_published_difference(ovarian):
    labels, tests = ovarian
    found = delong_test(labels, tests["protein"], tests["score"])
    # the same page, "ROC Contrast Estimation and Testing Results by Row", total protein - K-G score
    assert found["value"] == pytest.approx(-0.0780, abs=6e-5)
    assert (found["low"], found["high"]) == pytest.approx((-0.2830, 0.1271), abs=6e-5)
    assert found["z"] ** 2 == pytest.approx(0.5554, abs=6e-5)
    assert found["p"] == pytest.approx(0.4561, abs=6e-5)


def _placements(labels, scores):
    """AUCs and covariance from all pairs of images, as DeLong et al. define them."""
    right, wrong = scores[:, labels == 1], scores[:, labels == 0]
    wins = (right[:, :, None] > wrong[:, None]) + 0.5 * (right[:, :, None] == wrong[:, None])
    return wins.mean((1, 2)), np.cov(wins.mean(2)) / right.shape[1] + np.cov(wins.mean(1)) / wrong.shape[1]


@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_the_fast_delong_is_the_slow_one_with_ties_too(decimals):
    rng = np.random.default_rng(decimals)
    labels = rng.integers(0, 2, 90)
    scores = (rng.normal(size=(3, 90)) + labels * np.array([[0.3], [1], [2]])).round(decimals)
    aucs, covariance = delong(labels, scores)
    expected = _placements(labels, scores)
    np.testing.assert_allclose(aucs, expected[0])
    np.testing.assert_allclose(covariance, expected[1])
    np.testing.assert_allclose(aucs, [roc_auc_score(labels, own) for own in scores])


def test_delong_and_the_bootstrap_agree_on_the_published_example(ovarian):
    labels, tests = ovarian
    draws = Resampled(len(labels), seed=0, resamples=4000)
    differences = draws.auc(labels == 1, tests["protein"]) - draws.auc(labels == 1, tests["score"])
    found = delong_test(labels, tests["protein"], tests["score"])
    # two approximations of one distribution, from 12 and 31 patients: they agree to a tenth of the interval's width
    width = found["high"] - found["low"]
    assert np.percentile(differences, [2.5, 97.5]) == pytest.approx((found["low"], found["high"]), abs=0.1 * width)
    assert bootstrap_p(differences) == pytest.approx(found["p"], abs=0.1)


def test_delongs_interval_covers_the_truth_and_its_test_errs_as_often_as_it_says():
    rng, truth, held, claimed = np.random.default_rng(5), 0.8, 0, 0
    labels = np.repeat([1, 0], [100, 100])
    for _ in range(600):
        # binormal scores, of which the AUC is Phi(d / sqrt 2); two networks that share half of their noise
        shared, own = rng.normal(size=200), rng.normal(size=(2, 200))
        scores = (shared + own) / np.sqrt(2) + labels * np.sqrt(2) * ndtri(truth)
        interval = delong_interval(labels, scores[0])
        held += interval["low"] <= truth <= interval["high"]
        claimed += delong_test(labels, *scores)["p"] < 0.05
    # 570 expected, deviation 5; 30 expected, deviation 5
    assert 555 <= held <= 585
    assert 14 <= claimed <= 46


def test_classifiers_without_scatter():
    labels, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9])
    assert delong_test(labels, scores, scores**2)["p"] == 1
    assert delong_test(labels, scores, -scores)["p"] == 0
    # four of four, by Wilson
    low = binomtest(4, 4).proportion_ci(method="wilson").low
    assert delong_interval(labels, scores) == pytest.approx({"value": 1, "low": low, "high": 1})


def test_two_views_of_a_lens_are_told_apart_as_surely_as_they_differ():
    """Views that differ by little beside what lenses differ by: the pairs leave less doubt than strangers do, and the
    interval holds the truth."""
    rng, held = np.random.default_rng(4), 0
    for _ in range(60):
        lens, (a, b) = rng.normal(size=200), 0.3 * rng.normal(size=(2, 200))
        found = two_views_auc(lens + a + 0.4, lens + b)
        strangers = delong_interval(np.repeat([1, 0], 200), np.concatenate([lens + a + 0.4, lens + b]))
        assert found["value"] == pytest.approx(strangers["value"])
        assert found["high"] - found["low"] < 0.6 * (strangers["high"] - strangers["low"])
        # both are normal with deviation sqrt(1.09)
        held += found["low"] <= ndtr(0.4 / np.sqrt(2 * 1.09)) <= found["high"]
    assert held >= 53


@given(seed=st.integers(0, 2**31), power=st.sampled_from([1 / 3, 3, 5]), shift=st.floats(-3, 3))
@settings(max_examples=30, deadline=None)
def test_delong_knows_ranks_only_and_turns_with_its_arguments(seed, power, shift):
    rng = np.random.default_rng(seed)
    labels = np.append(rng.integers(0, 2, 40), [0, 0, 1, 1])
    # whole numbers, so that the curves below neither join nor part a tie
    first, second = rng.integers(-9, 10, (2, 44)) + 4.0 * labels
    found = delong_test(labels, first, second)
    bent = np.sign(first) * np.abs(first) ** power + shift
    assert delong_test(labels, bent, np.exp(second)) == pytest.approx(found)
    turned = delong_test(labels, second, first)
    assert (turned["value"], turned["low"], turned["p"]) == pytest.approx((-found["value"], -found["high"], found["p"]))
    # the other class positive, the scores upside down: the same areas
    assert delong_test(1 - labels, -first, -second) == pytest.approx(found)


@pytest.mark.parametrize(
    ("labels", "scores"),
    [([0, 1, 1], [1, 2, 3]), ([1, 1, 1], [1, 2, 3]), ([0, 0, 1, 2], [1, 2, 3, 4]), ([0, 0, 1, 1], [1, 2, np.nan, 4])],
)
def test_delong_refuses_what_it_cannot_judge(labels, scores):
    with pytest.raises(InputError):
        delong_interval(np.array(labels), np.array(scores, dtype=float))


# statsmodels, stats/tests/test_contingency_tables.py or test_nonparametric.py, test_mcnemar_exact: the two discordant
# counts and the exact p, there said to come from Vassar College's online calculator
@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [(121, 59, 0.000004), (70, 59, 0.378688), (80, 59, 0.089452), (30, 60, 0.00206), (10, 30, 0.002221), (10, 10, 1)],
)
def test_mcnemar_gives_the_figures_that_statsmodels_is_tested_with(only_first, only_second, p):
    # the concordant counts of that table, 101 and 33, say nothing
    first = np.repeat([True, False, True, False], [only_first, only_second, 101, 33])
    second = np.repeat([False, True, True, False], [only_first, only_second, 101, 33])
    found = mcnemar(first, second)
    assert found == {"only_first": only_first, "only_second": only_second, "p": pytest.approx(p, abs=6e-7)}


def test_mcnemar_without_a_disagreement_finds_none():
    assert mcnemar(np.array([True, False]), np.array([True, False]))["p"] == 1
    with pytest.raises(InputError, match="same images"):
        mcnemar(np.ones(3, bool), np.ones(4, bool))


# R package multtest, mt.rawp2adjp, as statsmodels quotes it (stats/tests/test_multi.py, pval0 and the column "Holm" of
# res_multtest1, which is in the order of the p-values)
RAW = [0.838541367553, 0.642193923795, 0.680845947633, 0.967833824309, 0.71626938238]
RAW += [0.177096952723, 5.23656777208e-5, 0.0202732688798, 0.00028140506198, 0.0149877310796]
ADJUSTED = [5.2365677720800005e-04, 2.5326455578199999e-03, 1.1990184863680001e-01, 1.4191288215860001e-01] + [1.0] * 6


def test_holm_gives_the_figures_of_r():
    found = holm(RAW)
    np.testing.assert_allclose(found[np.argsort(RAW)], ADJUSTED, rtol=1e-12)
    assert holm([0.04]) == pytest.approx([0.04])


def _simulated(seed, n=400, classes=3):
    """Labels, and the scores of a good, a middling and a blind network that share part of their errors."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    shared, scores = rng.normal(size=(n, classes)), []
    for strength in (1.6, 1.2, 0):
        logits = (shared + rng.normal(size=(n, classes))) / np.sqrt(2) + strength * np.eye(classes)[labels]
        scores.append(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))
    return labels, scores


@pytest.fixture
def judged(tmp_path):
    """Writes one run of a network's scores and returns its folder; what is given replaces what is usual."""

    def write(labels, scores, model, seed=0, digest="t" * 64, classes=None):
        place = {"profile": "test", "task": "classification", "recipe": "deeplense_1", "model": model, "seed": seed}
        names = classes or [f"class_{k}" for k in range(scores.shape[1])]
        folder = run_folder(tmp_path / "results", **place)
        write_run(
            folder,
            **place,
            parameters={"classes": names},
            metrics={},
            datasets={"test": digest},
            predictions={"labels": labels, "scores": scores.astype(np.float32)},
        )
        return folder

    return write


def test_the_table_of_pairs(judged):
    labels, scores = _simulated(1)
    folders = [judged(labels, own, model) for own, model in zip(scores, ("good", "middling", "blind"), strict=True)]
    table = compare([folders[2], folders[0] / "predictions.npz", folders[1]])
    assert list(zip(table["first"], table["second"], strict=True)) == [
        ("good", "middling"),
        ("good", "blind"),
        ("middling", "blind"),
    ]
    one_hot, own = np.eye(3)[labels], dict(zip(("good", "middling", "blind"), scores, strict=True))
    for _, row in table.iterrows():
        one, two = own[row["first"]], own[row["second"]]
        expected = roc_auc_score(one_hot, one) - roc_auc_score(one_hot, two)
        assert row["difference"] == pytest.approx(expected, abs=1e-5)  # the file holds single precision
        assert row["low"] < row["difference"] < row["high"]
        right, other = one.argmax(1) == labels, two.argmax(1) == labels
        assert row["only_first"] - row["only_second"] == right.sum() - other.sum()
        assert row["p_mcnemar"] == mcnemar(right, other)["p"]
    for test in ("p_bootstrap", "p_mcnemar"):
        np.testing.assert_array_equal(table[f"{test}_holm"], holm(table[test]))
    # a blind network is told from the others by every test
    assert (table.loc[1:, ["p_bootstrap_holm", "p_mcnemar_holm"]] < 0.01).all(axis=None)


def test_one_against_the_rest_is_corrected_for_so_many_questions(judged):
    labels, (good, middling, blind) = _simulated(1)
    names = {"good": good, "middling": middling, "blind": blind}
    every, own = (compare_scores(labels, names, resamples=600, against=one) for one in (None, "blind"))
    assert list(zip(own["first"], own["second"], strict=True)) == [("blind", "good"), ("blind", "middling")]
    # the same pairs the other way round, of two p-values and not of three
    turned = every[every["second"] == "blind"].reset_index(drop=True)
    np.testing.assert_allclose(own["difference"], -turned["difference"])
    np.testing.assert_allclose(own[["low", "high"]], -turned[["high", "low"]])
    assert own["only_first"].tolist() == turned["only_second"].tolist()
    np.testing.assert_allclose(own["p_mcnemar_holm"], holm(turned["p_mcnemar"]))


def test_the_paired_interval_is_narrower_than_that_of_strangers(judged):
    labels, (good, middling, _) = _simulated(2, n=2000)
    row = compare([judged(labels, good, "good"), judged(labels, middling, "middling")]).iloc[0]
    alone = [classification_metrics(labels, own, "abc", resamples=500)["macro_auc"] for own in (good, middling)]
    strangers = np.hypot(*(metric["high"] - metric["low"] for metric in alone))
    # they share half of their noise, so that a good part of the scatter is common to both
    assert row["high"] - row["low"] < 0.9 * strangers


def test_of_two_classes_delong_stands_beside_the_bootstrap(judged):
    labels, (good, middling, _) = _simulated(3, n=600, classes=2)
    row = compare([judged(labels, good, "good"), judged(labels, middling, "middling")], resamples=4000).iloc[0]
    expected = delong_test(labels, good[:, 1], middling[:, 1])
    assert row["p_delong"] == pytest.approx(expected["p"], rel=1e-3)
    width = expected["high"] - expected["low"]
    assert (row["low"], row["high"]) == pytest.approx((expected["low"], expected["high"]), abs=0.08 * width)


def test_networks_that_are_alike_are_seldom_told_apart(judged):
    """Under no difference, the Holm-adjusted table makes a false claim in at most 5 % of experiments."""
    rng, labels, claims = np.random.default_rng(4), np.repeat([0, 1], 150), 0
    draws = Resampled(300, seed=0, resamples=500)
    for _ in range(100):
        raw = rng.normal(size=(3, 300)) + 1.2 * labels
        aucs = [draws.auc(labels == 1, own) for own in raw]
        p = [bootstrap_p(aucs[a] - aucs[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
        claims += holm(p).min() < 0.05
    # at most 5 expected, deviation 2.2
    assert claims <= 12


def test_a_long_table_can_still_tell_networks_apart(judged):
    labels, (good, _, blind) = _simulated(9)
    folders = [judged(labels, blind, "blind", seed=seed) for seed in range(11)]
    table = compare([judged(labels, good, "good"), *folders])
    assert len(table) == 66
    assert (table.loc[table["first"] == "good", "p_bootstrap_holm"] < 0.05).all()
    assert (table.loc[table["first"] != "good", "p_bootstrap_holm"] == 1).all()


def test_the_same_network_twice_makes_no_difference(judged):
    labels, (good, *_) = _simulated(5)
    row = compare([judged(labels, good, "net"), judged(labels, good, "net", seed=1)]).iloc[0]
    assert (row["first"], row["second"]) == ("net seed 0", "net seed 1")
    assert (row["difference"], row["low"], row["high"]) == (0, 0, 0)
    assert (row["p_bootstrap"], row["p_mcnemar"]) == (1, 1)


@given(order=st.permutations(range(3)))
@settings(max_examples=6, deadline=None)
def test_how_classes_are_numbered_does_not_matter(tmp_path_factory, order):
    labels, scores = _simulated(6, n=150)

    def table(renumber):
        folder = tmp_path_factory.mktemp("runs")
        for model, own in zip(("good", "middling"), scores, strict=False):
            place = {"profile": "test", "task": "classification", "recipe": "r", "model": model, "seed": 0}
            renumbered = np.empty_like(own)
            renumbered[:, renumber] = own
            write_run(
                run_folder(folder, **place),
                **place,
                parameters={"classes": ["a", "b", "c"]},
                metrics={},
                datasets={"test": "t"},
                predictions={"labels": np.array(renumber)[labels], "scores": renumbered},
            )
        return compare([run_folder(folder, "test", "classification", "r", m, 0) for m in ("good", "middling")])

    pd.testing.assert_frame_equal(table(list(order)), table([0, 1, 2]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"digest": "u" * 64}, "test set"),
        ({"classes": ["class_0", "class_2", "class_1"]}, "classes"),
        ({"labels": lambda labels: labels[::-1].copy()}, "labels"),
        ({"labels": lambda labels: labels[:-1], "scores": lambda scores: scores[:-1]}, "labels"),
        ({"scores": lambda scores: np.where(scores > 0.9, np.nan, scores)}, "not finite"),
        ({"scores": lambda scores: scores * 2}, "sum to one"),
    ],
)
def test_answers_to_different_questions_are_refused(judged, change, said):
    labels, (good, middling, _) = _simulated(7)
    given = dict(change)
    labels_then = given.pop("labels", lambda labels: labels)(labels)
    scores_then = given.pop("scores", lambda scores: scores)(middling)
    with pytest.raises(InputError, match=said):
        compare([judged(labels, good, "good"), judged(labels_then, scores_then, "middling", **given)])


def test_a_run_alone_twice_or_altered_is_refused(judged):
    labels, (good, middling, _) = _simulated(8)
    one, two = judged(labels, good, "good"), judged(labels, middling, "middling")
    with pytest.raises(InputError, match="two or more"):
        compare([one])
    with pytest.raises(InputError, match="each once"):
        compare([one, two, one])
    shutil.copy(one / "predictions.npz", two / "predictions.npz")
    with pytest.raises(InputError, match="altered"):
        compare([one, two])
    record = json.loads((one / "record.json").read_text())
    (one / "record.json").unlink()
    assert record["model"] == "good"
    with pytest.raises(InputError, match="record.json: missing"):
        compare([one / "predictions.npz", two])
