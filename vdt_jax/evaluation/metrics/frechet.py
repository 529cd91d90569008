"""The Frechet distance of two sets of features, each seen as a Gaussian (Heusel et al. 2017, arXiv 1706.08500, eq. 6).

    d^2 = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1^1/2 S2 S1^1/2)^1/2                                     (1)

The root of S1 S2 itself, which is not symmetric, is where implementations differ and go complex. Here S = Q diag(l) Q^T
by `eigh`, S^1/2 = Q diag(l^1/2) Q^T with eigenvalues that are mere rounding set to 0, and the last trace of (1) is the
sum of the singular values of S1^1/2 S2^1/2: nothing is squared and rooted again, and a set's distance to itself is 0 to
rounding.
"""

import numpy as np


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    values = np.where(values > len(values) * np.finfo(np.float64).eps * values.max(), values, 0)
    return (vectors * np.sqrt(values)) @ vectors.T


def frechet_distance(features: np.ndarray, others: np.ndarray) -> float:
    """d^2 of (1) for features (n, d) and (m, d), in float64; n and m at least 2.

    It depends on how many there are: few samples make it larger. Compare equal numbers alone.
    """
    features, others = np.asarray(features, np.float64), np.asarray(others, np.float64)
    mean = features.mean(0) - others.mean(0)
    covariance, other = np.cov(features, rowvar=False), np.cov(others, rowvar=False)
    overlap = np.linalg.svd(_root(covariance) @ _root(other), compute_uv=False).sum()
    return float(mean @ mean + np.trace(covariance) + np.trace(other) - 2 * overlap)
