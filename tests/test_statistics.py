"""The statistical tests themselves: uniform p-values under the null, and cases computed by hand."""

import numpy as np
import pytest

from tests.statistics import accept, chi_square, independence, kolmogorov_smirnov, least, reject, scipy_stats

random = np.random.default_rng(0)


def test_chi_square_of_a_case_computed_by_hand():
    # (10 - 15)^2 / 15 * 2 = 10/3 with one degree of freedom
    assert chi_square([10, 20], [0.5, 0.5]) == pytest.approx(scipy_stats().chi2.sf(10 / 3, 1))


def test_chi_square_merges_cells_that_expect_too_few():
    # cells expecting 4 + 4 become one of 8; the rest stays: (50-46)^2/46 + (42-46)^2/46 + 0
    p = chi_square([50, 42, 3, 5], [0.46, 0.46, 0.04, 0.04])
    assert p == pytest.approx(scipy_stats().chi2.sf(32 / 46, 2))
    # a single cell that expects too few joins the smallest other one: 60 and 40 against 60.5 and 39.5
    p = chi_square([60, 39, 1], [0.605, 0.37, 0.025])
    assert p == pytest.approx(scipy_stats().chi2.sf(0.25 / 60.5 + 0.25 / 39.5, 1))


def test_a_count_where_the_probability_is_zero_is_refused():
    assert chi_square([500, 499, 1], [0.5, 0.5, 0.0]) == 0
    assert chi_square([500, 500, 0], [0.5, 0.5, 0.0]) == pytest.approx(1)


def test_values_that_are_not_finite_are_refused():
    sample = random.random(1000)
    assert kolmogorov_smirnov(sample, scipy_stats().uniform.cdf) > 1e-3
    sample[3] = np.nan
    assert kolmogorov_smirnov(sample, scipy_stats().uniform.cdf) == 0


@pytest.mark.parametrize(
    "p_value",
    [
        lambda: chi_square(random.multinomial(2000, [0.1, 0.2, 0.3, 0.4]), [0.1, 0.2, 0.3, 0.4]),
        lambda: independence(random.multinomial(2000, np.full(16, 1 / 16)).reshape(4, 4)),
        lambda: kolmogorov_smirnov(random.random(500), scipy_stats().uniform.cdf),
    ],
    ids=["chi_square", "independence", "kolmogorov_smirnov"],
)
def test_p_values_are_uniform_when_the_null_holds(p_value):
    assert scipy_stats().ks_1samp([p_value() for _ in range(1000)], scipy_stats().uniform.cdf).pvalue > 1e-3


def test_bonferroni_multiplies_by_the_number_of_comparisons():
    assert least({"a": 0.02, "b": 0.5}) == (0.04, "a")
    family = {str(i): 0.5 for i in range(99)} | {"small": 2e-4}
    accept(family)  # 0.02 after correction
    with pytest.raises(AssertionError, match="small"):
        accept({"small": 2e-4})
    reject({"small": 2e-4})
    with pytest.raises(AssertionError, match="passed"):
        reject(family)
