"""Statistics against scipy, against enumeration and against simulated truth."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from mech_interp import statistics as stats
from mech_interp.errors import InputError

# --- bootstrap ----------------------------------------------------------------------------------


def test_percentile_interval_agrees_with_scipy() -> None:
    values = np.random.default_rng(1).gamma(2.0, size=60)
    ours = stats.bootstrap_mean(values, n_resamples=20_000, expand=False)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(2)
    ).confidence_interval
    # the Monte Carlo error of a 2.5 % quantile from 20,000 draws is about 1.5 % of the width
    tolerance = 0.05 * (theirs.high - theirs.low)
    assert ours.interval == pytest.approx((theirs.low, theirs.high), abs=tolerance)
    assert ours.value == pytest.approx(values.mean())
    assert (ours.n, ours.n_groups) == (60, 60)


def test_expanded_tail_is_the_published_one() -> None:
    values = np.random.default_rng(3).normal(size=10)
    tail = scipy.stats.norm.cdf(-math.sqrt(10 / 9) * scipy.stats.t.ppf(0.975, 9))
    expanded = stats.bootstrap_mean(values, n_resamples=2000, seed=5)
    plain = stats.bootstrap_mean(values, n_resamples=2000, seed=5, expand=False, level=1 - 2 * tail)
    assert expanded.interval == pytest.approx(plain.interval)


def test_clusters_are_resampled_whole() -> None:
    # eight groups of 50 copies: the prompts carry no more information than the eight group values
    centres = np.random.default_rng(4).normal(size=8)
    values, groups = np.repeat(centres, 50), np.repeat(np.arange(8), 50)
    clustered = stats.bootstrap_mean(values, groups, seed=1)
    bare = stats.bootstrap_mean(centres, seed=1)
    assert clustered.interval == pytest.approx(bare.interval)
    naive = stats.bootstrap_mean(values, seed=1)
    assert clustered.interval is not None
    assert naive.interval is not None
    assert np.diff(clustered.interval) > 4 * np.diff(naive.interval)


@pytest.mark.parametrize("n_groups", [10, 30])
def test_coverage_on_clustered_data(n_groups: int) -> None:
    generator = np.random.default_rng(7)
    covered, runs = 0, 400
    for run in range(runs):
        sizes = generator.integers(2, 6, n_groups)
        groups = np.repeat(np.arange(n_groups), sizes)
        values = 0.4 + generator.normal(size=n_groups)[groups] + generator.normal(size=groups.size)
        interval = stats.bootstrap_mean(values, groups, n_resamples=400, seed=run).interval
        assert interval is not None
        covered += interval[0] <= 0.4 <= interval[1]
    rate = stats.wilson(covered, runs)
    assert rate.interval is not None
    assert rate.value >= 0.92  # the plain percentile interval covers 0.90 with ten groups
    assert rate.interval[1] >= 0.93


def test_few_groups_give_no_interval_but_a_reason() -> None:
    estimate = stats.bootstrap_mean([1.0, 2.0, 3.0] * 5, ["a", "b", "c"] * 5)
    assert estimate.interval is None
    assert "3 groups" in estimate.reason
    assert "8" in estimate.reason
    assert stats.bootstrap_mean(np.arange(7.0)).interval is None
    assert stats.bootstrap_mean(np.arange(8.0)).interval is not None


def test_no_zero_width_interval() -> None:
    for values in ([1.0] * 20, [0.1 + 0.2] * 20, list(0.3 + 1e-17 * np.arange(20))):
        estimate = stats.bootstrap_mean(values)
        assert estimate.interval is None
        assert "same value" in estimate.reason
    assert stats.bootstrap_statistic(np.median, [2.0] * 20).interval is None


def test_ratio_is_of_means_and_resampled_together() -> None:
    generator = np.random.default_rng(8)
    below = generator.uniform(1, 5, 40)
    exact = stats.bootstrap_ratio(0.5 * below, below)
    # a constant ratio has no spread although both parts vary: separate resampling would show some
    assert exact.value == pytest.approx(0.5)
    assert exact.interval is None
    above = 0.5 * below + generator.normal(size=40) * 0.1
    ratio = stats.bootstrap_ratio(above, below, n_resamples=4000)
    assert ratio.value == pytest.approx(above.mean() / below.mean())
    residual = (above - ratio.value * below) / below.mean()
    width = 2 * 1.96 * residual.std(ddof=1) / math.sqrt(40)  # delta method
    assert ratio.interval is not None
    assert ratio.interval[1] - ratio.interval[0] == pytest.approx(width, rel=0.15)


def test_ratio_refused_below_three_standard_errors() -> None:
    noise = np.array([1.0, -1.0] * 10)
    error = stats.group_standard_error(noise)
    above, below = noise + 3.05 * error, noise + 2.95 * error
    assert stats.bootstrap_ratio(np.ones(20), above).value == pytest.approx(1 / above.mean())
    with pytest.raises(stats.UnstableRatioError, match="three standard errors"):
        stats.bootstrap_ratio(np.ones(20), below)
    with pytest.raises(stats.UnstableRatioError):
        stats.bootstrap_ratio([1.0], [0.0])
    assert stats.bootstrap_ratio([1.0], [2.0]).value == 0.5


def test_group_standard_error_matches_plain_for_singletons() -> None:
    values = np.random.default_rng(9).normal(size=25)
    assert stats.group_standard_error(values) == pytest.approx(scipy.stats.sem(values))
    table = np.stack([values, 2 * values], 1)
    assert stats.group_standard_errors(table) == pytest.approx(scipy.stats.sem(table))
    assert math.isnan(stats.group_standard_error([1.0, 2.0], ["a", "a"]))


def test_columns_equal_one_at_a_time() -> None:
    generator = np.random.default_rng(10)
    values, below = generator.normal(size=(24, 3, 2)), generator.normal(3, 1, size=24)
    groups = [f"g{i % 12}" for i in range(24)]
    table = stats.bootstrap_columns(values, below, groups=groups, seed=3)
    assert table.value.shape == (3, 2)
    for site in np.ndindex(3, 2):
        one = stats.bootstrap_ratio(values[(slice(None), *site)], below, groups, seed=3)
        many = table.at(*site)
        assert many.value == pytest.approx(one.value)
        assert many.interval == pytest.approx(one.interval)


def test_missing_sites_count_only_prompts_that_have_them() -> None:
    generator = np.random.default_rng(11)
    values = generator.normal(size=(20, 2))
    below = generator.normal(4, 0.5, size=20)
    full = values.copy()
    values[10:, 1] = np.nan
    with pytest.raises(InputError, match="not finite"):
        stats.bootstrap_columns(values)
    table = stats.bootstrap_columns(values, below, allow_missing=True)
    assert table.n.tolist() == [20, 10]
    assert table.value[1] == pytest.approx(full[:10, 1].mean() / below[:10].mean())
    assert table.at(1).interval is not None
    values[5:, 1] = np.nan
    assert "5 groups" in stats.bootstrap_columns(values, allow_missing=True).at(1).reason


def test_statistic_bootstrap_agrees_with_mean() -> None:
    generator = np.random.default_rng(12)
    values, groups = generator.normal(size=60), np.repeat(np.arange(20), 3)
    ours = stats.bootstrap_statistic(np.mean, values, groups=groups, n_resamples=4000)
    closed = stats.bootstrap_mean(values, groups, n_resamples=4000)
    assert ours.interval == pytest.approx(closed.interval, abs=0.05)
    assert stats.bootstrap_statistic(np.mean, values, groups=groups, n_resamples=200) == (
        stats.bootstrap_statistic(np.mean, values, groups=groups, n_resamples=200)
    )


# --- rates --------------------------------------------------------------------------------------


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@settings(max_examples=60, deadline=None)
def test_wilson_agrees_with_scipy(case: tuple[int, int]) -> None:
    successes, n = case
    oracle = scipy.stats.binomtest(successes, n).proportion_ci(method="wilson")
    estimate = stats.wilson(successes, n)
    assert estimate.interval == pytest.approx((oracle.low, oracle.high), abs=1e-12)
    assert estimate.interval is not None
    assert estimate.interval[0] < estimate.interval[1]


# --- tests over sites ---------------------------------------------------------------------------


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_sign_flip_equals_enumeration(alternative: stats.multiplicity.Alternative) -> None:
    effects = np.array([0.4, 1.1, -0.2, 0.9, 0.7, 0.3, -0.4, 0.2])
    patterns = np.array(list(itertools.product([1, -1], repeat=8)))
    reference, observed = patterns @ effects, effects.sum()
    if alternative == "two-sided":
        p = np.mean(np.abs(reference) >= abs(observed) - 1e-12)
    else:
        sign = 1 if alternative == "greater" else -1
        p = np.mean(sign * reference >= sign * observed - 1e-12)
    result = stats.sign_flip_test(effects, alternative=alternative)
    assert result.exact
    assert result.p == pytest.approx(p)
    assert result.smallest_p == (2 if alternative == "two-sided" else 1) / 256


def test_sign_flip_equals_scipy_permutation_test() -> None:
    effects = np.random.default_rng(13).normal(0.3, 1, 9)
    oracle = scipy.stats.permutation_test(
        (effects,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    assert stats.sign_flip_test(effects).p == pytest.approx(oracle.pvalue)


def test_max_t_equals_enumeration_of_t() -> None:
    effects = np.random.default_rng(14).normal([0, 0.8, 0.1], [1, 1, 30], size=(7, 3))
    observed = np.abs(scipy.stats.ttest_1samp(effects, 0).statistic)
    peaks = []
    for signs in itertools.product([1, -1], repeat=7):
        flipped = effects * np.array(signs)[:, None]
        peaks.append(np.abs(scipy.stats.ttest_1samp(flipped, 0).statistic).max())
    oracle = [np.mean(np.array(peaks) >= t - 1e-9) for t in observed]
    result = stats.max_t_test(effects)
    assert result.adjusted_p == pytest.approx(oracle)
    assert np.abs(result.t) == pytest.approx(observed)
    assert result.exact
    assert result.smallest_p == 2 / 128


def test_groups_are_flipped_not_prompts() -> None:
    effects, groups = np.ones(40), np.repeat(np.arange(4), 10)
    result = stats.sign_flip_test(effects, groups)
    assert result.p == result.smallest_p == 2 / 16
    assert (result.n, result.n_groups) == (40, 4)


def test_random_permutations_approach_exact_ones() -> None:
    effects = np.random.default_rng(15).normal(0.4, 1, size=(11, 5))
    exact = stats.max_t_test(effects, n_permutations=2**11)
    sampled = stats.max_t_test(effects, n_permutations=1000)
    assert exact.exact
    assert not sampled.exact
    assert sampled.adjusted_p == pytest.approx(exact.adjusted_p, abs=0.05)
    assert sampled.smallest_p == pytest.approx(1 / 1001)


def test_max_t_controls_the_family_wise_error_and_has_power() -> None:
    generator = np.random.default_rng(16)
    rejected, runs = 0, 300
    for run in range(runs):
        noise = generator.standard_t(4, size=(12, 20)) + generator.normal(size=(12, 1))
        rejected += bool(stats.max_t_test(noise, n_permutations=400, seed=run).significant().any())
    rate = stats.wilson(rejected, runs)
    assert rate.interval is not None
    assert rate.interval[0] <= 0.05
    signal = generator.normal(size=(12, 20))
    signal[:, 3] += 4
    assert np.flatnonzero(stats.max_t_test(signal).significant()).tolist() == [3]


def test_sites_without_effect_are_never_significant() -> None:
    effects = np.zeros((10, 3))
    effects[:, 1] = 1e-9  # rounding of one sign
    effects[:, 2] = np.linspace(1, 2, 10)
    assert stats.max_t_test(effects, noise_floor=1e-6).significant().tolist() == [False, False, True]
    assert stats.max_t_test(effects).adjusted_p[0] == 1


def test_large_numbers_of_groups_do_not_overflow() -> None:
    result = stats.sign_flip_test(np.ones(3000), n_permutations=200)
    assert result.p == pytest.approx(1 / 201)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_benjamini_hochberg_agrees_with_scipy(p: list[float]) -> None:
    assert stats.benjamini_hochberg(p) == pytest.approx(scipy.stats.false_discovery_control(p))


# --- selection ----------------------------------------------------------------------------------


def test_halves_share_no_group_and_cover_everything() -> None:
    groups = [f"g{i % 7}" for i in range(30)]
    first, second = stats.split_halves(groups, seed=2)
    assert sorted([*first, *second]) == list(range(30))
    assert {groups[i] for i in first}.isdisjoint({groups[i] for i in second})


def test_quoting_on_the_other_half_removes_the_winners_curse() -> None:
    generator = np.random.default_rng(17)
    chosen, quoted = [], []
    for run in range(60):
        null = generator.normal(size=(20, 50))
        selection = stats.select_then_quote(null, by="highest", seed=run, n_resamples=100)
        chosen.append(selection.selected_value)
        quoted.append(selection.estimate.value)
    assert np.mean(chosen) > 0.5
    assert abs(np.mean(quoted)) < 4 * np.std(quoted) / math.sqrt(60)


def test_selection_finds_a_planted_site_and_normalises() -> None:
    generator = np.random.default_rng(18)
    below = generator.normal(5, 0.5, 40)
    effects = generator.normal(0, 0.2, size=(40, 3, 4))
    effects[:, 2, 1] -= 0.8 * below
    selection = stats.select_then_quote(effects, denominators=below)
    assert selection.site == (2, 1)
    assert selection.estimate.value == pytest.approx(-0.8, abs=0.05)
    assert selection.n_selected_on == selection.estimate.n == 20
    assert stats.select_then_quote(effects, by="highest").site != (2, 1)


def test_quoted_half_keeps_its_groups() -> None:
    generator = np.random.default_rng(19)
    groups = np.repeat(np.arange(20), 1 + np.arange(20) % 7)
    effects = generator.normal(size=(groups.size, 4))
    selection = stats.select_then_quote(effects, groups, seed=4)
    _, quote = stats.split_halves(groups, seed=4)
    alone = stats.bootstrap_mean(effects[quote, selection.site[0]], groups[quote], seed=4)
    assert selection.estimate.n_groups == 10
    assert selection.estimate == alone


# --- estimates ----------------------------------------------------------------------------------


def test_estimate_prints_and_round_trips() -> None:
    estimate = stats.Estimate(0.974, (0.909, 0.991), 40, "x")
    assert str(estimate) == "0.97 [0.91, 0.99], n = 40"
    assert estimate.format(1, "nats") == "1.0 nats [0.9, 1.0], n = 40"
    bare = stats.Estimate(-0.001, None, 3, "x", reason="3 groups")
    assert bare.format(2) == "-1.0e-03 (no interval: 3 groups), n = 3"
    for one in (estimate, bare):
        assert stats.Estimate.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    undefined = stats.Estimate(math.nan, None, 1, "x")
    assert json.loads(json.dumps(undefined.to_dict(), allow_nan=False))["value"] is None


@pytest.mark.parametrize(
    "call",
    [
        lambda: stats.bootstrap_mean([]),
        lambda: stats.bootstrap_mean([1.0, math.nan]),
        lambda: stats.bootstrap_mean([[1.0]]),
        lambda: stats.bootstrap_mean([1.0, 2.0], ["a"]),
        lambda: stats.bootstrap_mean([1.0, 2.0], level=95),
        lambda: stats.bootstrap_mean([1.0, 2.0], n_resamples=3),
        lambda: stats.bootstrap_ratio([1.0, 2.0], [1.0]),
        lambda: stats.wilson(0, 0),
        lambda: stats.wilson(3, 2),
        lambda: stats.benjamini_hochberg([1.2]),
        lambda: stats.max_t_test(np.ones((3, 0))),
        lambda: stats.max_t_test(np.ones((3, 2)), alternative="both"),
        lambda: stats.split_halves(["a", "a"]),
        lambda: stats.select_then_quote(np.ones(4)),
    ],
)
def test_bad_input_is_one_sentence_with_a_hint(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError) as caught:
        call()
    assert caught.value.message.endswith(".")
    assert caught.value.hint.endswith(".")
