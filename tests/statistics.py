"""Chi-square and Kolmogorov-Smirnov tests for samplers.

Every check is a function from a sampler to p-values, one for each comparison it makes. `accept` holds the whole family
to `ALPHA` by Bonferroni: each p-value must reach ALPHA divided by their number, so that a right sampler under a random
key would fail a check with probability ALPHA at most. Tests use fixed keys; nothing flakes. `reject` asks that a wrong
sampler fails the same check, which is what shows that the sample size is large enough to see it.
"""

import numpy as np
import pytest

ALPHA = 1e-3
SMALLEST_EXPECTED = 5.0  # cells that expect fewer are merged: the chi-square approximation needs that many


def scipy_stats():
    """scipy.stats. Where scipy is not installed, the tests that use it are skipped, and no others of their file."""
    return pytest.importorskip("scipy.stats")


def chi_square(counts, probabilities):
    """p-value of observed counts under probabilities (which sum to 1). A count where the probability is 0 gives 0."""
    counts = np.asarray(counts, dtype=np.float64).ravel()
    p = np.asarray(probabilities, dtype=np.float64).ravel()
    assert counts.shape == p.shape
    assert abs(p.sum() - 1) < 1e-9
    if counts[p == 0].any():
        return 0.0
    expected = p * counts.sum()
    few = expected < SMALLEST_EXPECTED
    if few.any():
        counts = np.append(counts[~few], counts[few].sum())
        expected = np.append(expected[~few], expected[few].sum())
        if expected[-1] < SMALLEST_EXPECTED:  # together still too few: into the smallest cell
            into = expected[:-1].argmin()
            counts[into] += counts[-1]
            expected[into] += expected[-1]
            counts, expected = counts[:-1], expected[:-1]
    assert len(expected) > 1, "the sample is too small to test anything"
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float(scipy_stats().chi2.sf(statistic, len(expected) - 1))


def independence(counts):
    """p-value of a table of counts under independence of its two axes."""
    return float(scipy_stats().chi2_contingency(np.asarray(counts)).pvalue)


def kolmogorov_smirnov(sample, cdf):
    """p-value of a sample under a continuous distribution; a value that is not finite gives 0."""
    sample = np.asarray(sample, dtype=np.float64).ravel()
    return float(scipy_stats().ks_1samp(sample, cdf).pvalue) if np.isfinite(sample).all() else 0.0


def least(p_values):
    """The smallest p-value with Bonferroni's correction, and its name."""
    name = min(p_values, key=p_values.get)
    return p_values[name] * len(p_values), name


def accept(p_values, alpha=ALPHA):
    """Fail unless the sample agrees with the distribution."""
    p, name = least(p_values)
    assert p >= alpha, f"{name}: corrected p-value {p:.3g} is below {alpha:g}"


def reject(p_values, alpha=ALPHA):
    """Fail if the sample agrees with the distribution."""
    p, name = least(p_values)
    assert p < alpha, f"a wrong sampler passed: least corrected p-value {p:.3g} ({name})"
