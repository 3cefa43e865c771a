"""Statistics against scipy, closed forms and simulated coverage."""

import math

import numpy as np
import pytest
from scipy import stats as sp

from layerbook.claims import stats


def test_mean_interval_contains_the_t_interval_and_the_bootstrap():
    x = np.random.default_rng(0).exponential(size=12)
    i = stats.mean_interval(x)
    t = sp.t.interval(0.95, 11, loc=x.mean(), scale=sp.sem(x))
    assert i.low <= t[0] and i.high >= t[1]
    assert i.estimate == pytest.approx(x.mean()) and i.n == 12


@pytest.mark.parametrize("n", [5, 8])
def test_coverage_is_honest_at_few_units(n, monkeypatch):
    monkeypatch.setattr(stats, "RESAMPLES", 499)
    rng = np.random.default_rng(1)
    hits = boot = 0
    for _ in range(250):
        x = rng.normal(size=n)
        i = stats.mean_interval(x)
        hits += i.low <= 0 <= i.high
        low, high = stats._bootstrap(x, 0.95)
        boot += low <= 0 <= high
    assert hits / 250 >= 0.91  # binomial noise of 250 draws around 0.95
    assert boot < hits  # which is why the bootstrap does not stand alone


def test_the_interval_is_the_same_on_every_call():
    x = [0.1, 0.4, 0.2, 0.35, 0.3]
    assert stats.mean_interval(x) == stats.mean_interval(x)


def test_median_interval_are_order_statistics():
    x = np.arange(1.0, 21.0)
    i = stats.median_interval(x)
    assert (i.low, i.high) == (6.0, 15.0) and i.estimate == 10.5  # binomial(20, 1/2) quantiles
    with pytest.raises(ValueError, match="too few"):
        stats.median_interval(x[:5])


@pytest.mark.parametrize("bad", [[], [math.nan, 1, 2], [1, math.inf, 2], [[1, 2], [3, 4]]])
def test_unusable_values_are_refused(bad):
    with pytest.raises(ValueError):
        stats.mean_interval(bad)


def test_holm_against_the_definition():
    p = [0.01, 0.04, 0.03, 0.005]
    assert stats.holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert max(stats.holm([0.9, 0.8])) == 1.0


def test_p_greater_matches_the_t_test_and_is_never_smaller():
    x = np.random.default_rng(2).normal(0.3, 1, size=40)
    assert stats.p_greater(x, 0) >= sp.ttest_1samp(x, 0, alternative="greater").pvalue
    assert stats.p_greater([1.0, 1.0, 1.0], 0) == 0.0 and stats.p_greater([1.0, 1.0, 1.0], 2) == 1.0


def test_prediction_interval_has_a_floor_and_covers():
    low, high = stats.prediction_interval([1.0, 1.0, 1.0], 3, floor=0.05)
    assert (low, high) == pytest.approx((0.95, 1.05))
    rng, hits = np.random.default_rng(3), 0
    for _ in range(500):
        x, new = rng.normal(size=6), rng.normal(size=4).mean()
        low, high = stats.prediction_interval(x, 4, floor=0)
        hits += low <= new <= high
    assert 0.92 <= hits / 500 <= 0.98


def test_correlations_show_what_one_outlier_carries():
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=30), rng.normal(size=30)
    x[7] = y[7] = 50.0
    r = stats.correlations(x, y)
    assert r["pearson"] > 0.95 and abs(r["pearson_without_largest"]) < 0.4
    assert math.isnan(stats.correlations([1, 1, 1, 1], [1, 2, 3, 4])["pearson"])
