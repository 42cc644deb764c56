"""Nominal counts of matrix decompositions, which iterate: those of Golub & Van Loan, “Matrix Computations”.

The eigenvectors of a symmetric n×n matrix count 9 n³, the thin SVD of m×n with m ≥ n 6 m n² + 20 n³ (also where only
the values are wanted), the thin QR decomposition with Q 4 m n² − 4 n³/3. A batch counts each of its matrices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Args = Sequence[Any]


def _matrices(args: Args) -> tuple[int, int, int]:
    """How many matrices the first argument holds, their longer and their shorter side."""
    *batch, rows, columns = args[0].shape
    return math.prod(batch), max(rows, columns), min(rows, columns)


def _eigh(args: Args, kwargs: Mapping[str, Any], out: Any) -> int:
    count, _, n = _matrices(args)
    return 9 * count * n**3


def _svd(args: Args, kwargs: Mapping[str, Any], out: Any) -> int:
    count, m, n = _matrices(args)
    return count * (6 * m * n**2 + 20 * n**3)


def _qr(args: Args, kwargs: Mapping[str, Any], out: Any) -> int:
    count, m, n = _matrices(args)
    return count * (4 * m * n**2 - 4 * n**3 // 3)


NOMINAL: dict[str, Callable[[Args, Mapping[str, Any], Any], int]] = {
    "_linalg_eigh": _eigh,
    "_linalg_svd": _svd,
    "linalg_qr": _qr,
}
