"""The Frechet distance of Gaussians fitted to two sets of features (Heusel et al. 2017, arXiv 1706.08500, eq. 6).

    d^2 = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1^1/2 S2 S1^1/2)^1/2                                     (1)

S1 S2 is not symmetric: its root can be complex, and implementations differ there. Here S = Q diag(l) Q^T by `eigh`,
S^1/2 = Q diag(l^1/2) Q^T with eigenvalues below rounding set to 0, and the last trace of (1) is the sum of the singular
values of S1^1/2 S2^1/2. The distance of a set to itself is then 0 to rounding.
"""

import numpy as np


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    values = np.where(values > len(values) * np.finfo(np.float64).eps * values.max(), values, 0)
    return (vectors * np.sqrt(values)) @ vectors.T


def frechet_distance(features: np.ndarray, others: np.ndarray) -> float:
    """d^2 of (1) for features (n, d) and (m, d), in float64; n, m >= 2.

    It grows as n and m shrink: compare distances of equal numbers only.
    """
    features, others = np.asarray(features, np.float64), np.asarray(others, np.float64)
    mean = features.mean(0) - others.mean(0)
    covariance, other = np.cov(features, rowvar=False), np.cov(others, rowvar=False)
    overlap = np.linalg.svd(_root(covariance) @ _root(other), compute_uv=False).sum()
    return float(mean @ mean + np.trace(covariance) + np.trace(other) - 2 * overlap)
