"""How many labelled classes each neuron responds to, against a label-shuffled null.

A *cell* is one observation of every neuron: a document, or the tokens of one class in one document. A
neuron responds to a class when its activation there is higher than in all other cells: the area under the
ROC curve of class against rest reaches a bar and the response survives false-discovery control. P-values
come from shuffles of the labels within strata (documents keep their own tokens), pooled over neurons: on
ranks the null distribution is the same for every neuron.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mech_interp.errors import InputError
from mech_interp.statistics import benjamini_hochberg

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
_NULL_NEURONS = 4096
_COLUMNS = 4096


@dataclass(frozen=True)
class Selectivity:
    """Responses of N neurons to K classes.

    Attributes:
        classes: names of the K classes.
        auc: area under the ROC curve of class against rest, [K, N]; 0.5 is no preference.
        adjusted_p: one-sided, Benjamini-Hochberg over all K x N.
        responds: where both bars are passed, [K, N].
        null_counts: per held-out shuffle, the number of classes each neuron "responds" to, [shuffles, N],
            by the same bars.
        min_auc, q: the bars.
        n_cells: observations per class.
        smallest_p: least p that the shuffles could have given.
    """

    classes: tuple[str, ...]
    auc: Floats
    adjusted_p: Floats
    responds: Bools
    null_counts: Ints
    min_auc: float
    q: float
    n_cells: tuple[int, ...]
    smallest_p: float

    @property
    def counts(self) -> Ints:
        """Number of classes that each neuron responds to, [N]."""
        return np.asarray(self.responds.sum(0), dtype=np.int64)


def auc_of(ranks: Floats, member: Floats) -> Floats:
    """Area under the ROC curve of each class against the rest.

    `ranks` [cells, neurons] from 1, ties averaged; `member` [cells, classes] of zeros and ones. The result
    [classes, neurons] is (R - n(n+1)/2) / (n m) with R the class's rank sum, n its cells, m the others
    (Mann and Whitney 1947).
    """
    n = member.sum(0)[:, None]
    m = ranks.shape[0] - n
    return np.asarray((member.T @ ranks - n * (n + 1) / 2) / (n * m), dtype=np.float64)


def measure(
    values: npt.ArrayLike,
    labels: Sequence[str],
    strata: Sequence[int] | None = None,
    *,
    min_auc: float = 0.7,
    q: float = 0.05,
    shuffles: int = 100,
    held_out: int = 20,
    seed: int = 0,
) -> Selectivity:
    """Which classes each neuron responds to.

    Args:
        values: [cells, neurons] activations.
        labels: the class of each cell.
        strata: cells that labels are shuffled within (and whose mean is removed first); one by default.
        min_auc: smallest area under the ROC curve that counts as a response.
        q: false-discovery rate.
        shuffles: label shuffles for the p-values; `held_out` more are judged as if they were data.
        seed: of the shuffles.

    Raises:
        InputError: for fewer than two classes, or a class with fewer than two cells.
    """
    array = np.asarray(values, dtype=np.float64)
    names, index = _classes(labels, array.shape[0])
    member = _one_hot(index, len(names))
    ranks = _ranks(array, strata)
    auc = auc_of(ranks, member)
    generator = np.random.default_rng(seed)
    null = _null(ranks, index, strata, len(names), shuffles, generator)
    p = _p_values(auc, null)
    adjusted = benjamini_hochberg(p)
    # The same rule for data and shuffles: the raw p at which false discoveries were controlled.
    found = adjusted <= q
    cut = float(p[found].max()) if found.any() else 0.0
    counts = [
        _passing(auc_of(ranks, _one_hot(_shuffled(index, strata, generator), len(names))), null, cut, min_auc)
        for _ in range(held_out)
    ]
    return Selectivity(
        classes=tuple(names),
        auc=auc,
        adjusted_p=adjusted,
        responds=np.asarray(found & (auc >= min_auc)),
        null_counts=np.asarray(counts, dtype=np.int64).reshape(held_out, array.shape[1]),
        min_auc=min_auc,
        q=q,
        n_cells=tuple(int(n) for n in member.sum(0)),
        smallest_p=1.0 / (1 + null.shape[1]),
    )


def replication(
    values: npt.ArrayLike,
    labels: Sequence[str],
    groups: Sequence[int],
    strata: Sequence[int] | None = None,
    *,
    min_auc: float = 0.7,
    seed: int = 0,
) -> tuple[int, int]:
    """(how many, of how many) responses seen on one half of the groups reach the bar on the other.

    Halves share no group and hold equally many groups of each class, up to one. (0, 0) when a class is too
    small to be halved.
    """
    array = np.asarray(values, dtype=np.float64)
    names, index = _classes(labels, array.shape[0])
    first = _half(index, np.asarray(groups), seed)
    found = []
    for half in (first, ~first):
        counts = np.bincount(index[half], minlength=len(names))
        if (counts < 2).any():
            return 0, 0
        own = None if strata is None else [strata[int(i)] for i in np.flatnonzero(half)]
        found.append(auc_of(_ranks(array[half], own), _one_hot(index[half], len(names))) >= min_auc)
    return int((found[0] & found[1]).sum()), int(found[0].sum())


def _null(
    ranks: Floats,
    index: Ints,
    strata: Sequence[int] | None,
    classes: int,
    shuffles: int,
    generator: np.random.Generator,
) -> Floats:
    """Areas under shuffled labels, [classes, shuffles x neurons], sorted; of some neurons where many."""
    chosen = np.sort(generator.permutation(ranks.shape[1])[:_NULL_NEURONS])
    some, width = ranks[:, chosen], chosen.size
    null = np.empty((classes, shuffles * width))
    for i in range(shuffles):
        member = _one_hot(_shuffled(index, strata, generator), classes)
        null[:, i * width : (i + 1) * width] = auc_of(some, member)
    null.sort(axis=1)
    return null


def _classes(labels: Sequence[str], cells: int) -> tuple[list[str], Ints]:
    if len(labels) != cells:
        raise InputError(f"There are {len(labels)} labels for {cells} observations.", "Give one for each.")
    names = sorted(set(labels))
    counts = {name: labels.count(name) for name in names}
    few = [name for name, count in counts.items() if count < 2]
    if len(names) < 2 or few:
        found = f"the class {few[0]!r} has one observation" if few else f"there is {len(names)} class"
        raise InputError(f"Selectivity compares classes, and {found}.", "Give more labelled texts.")
    number = {name: i for i, name in enumerate(names)}
    return names, np.array([number[label] for label in labels], dtype=np.int64)


def _one_hot(index: Ints, classes: int) -> Floats:
    return np.asarray(np.eye(classes)[index], dtype=np.float64)


def _ranks(values: Floats, strata: Sequence[int] | None) -> Floats:
    """Ranks down each column, after taking out the mean of each stratum."""
    from scipy.stats import rankdata

    if strata is not None:
        groups = np.unique(np.asarray(strata), return_inverse=True)[1]
        counts = np.bincount(groups)[:, None]
        sums = np.zeros((counts.size, values.shape[1]))
        np.add.at(sums, groups, values)
        values = values - (sums / counts)[groups]
    parts = range(0, values.shape[1], _COLUMNS)
    return np.concatenate([rankdata(values[:, at : at + _COLUMNS], axis=0) for at in parts], axis=1)


def _shuffled(index: Ints, strata: Sequence[int] | None, generator: np.random.Generator) -> Ints:
    if strata is None:
        return np.asarray(generator.permutation(index), dtype=np.int64)
    groups = np.asarray(strata)
    # Sorting random keys inside sorted strata permutes labels within each stratum at once.
    target = np.lexsort((np.arange(index.size), groups))
    source = np.lexsort((generator.random(index.size), groups))
    out = np.empty_like(index)
    out[target] = index[source]
    return out


def _p_values(auc: Floats, null: Floats) -> Floats:
    """Share of null values at least as large, the observed one counted in; `null` rows are sorted."""
    size = null.shape[1]
    reached = np.stack(
        [size - np.searchsorted(row, own - 1e-12, side="left") for row, own in zip(null, auc, strict=True)]
    )
    return np.asarray((1 + reached) / (1 + size), dtype=np.float64)


def _passing(auc: Floats, null: Floats, cut: float, min_auc: float) -> Ints:
    return np.asarray(((_p_values(auc, null) <= cut) & (auc >= min_auc)).sum(0), dtype=np.int64)


def _half(index: Ints, groups: npt.NDArray[np.generic], seed: int) -> Bools:
    """Cells of a random half of the groups; groups of one class are dealt out in turn."""
    names, first_cell, inverse = np.unique(groups, return_index=True, return_inverse=True)
    order = np.random.default_rng(seed).permutation(names.size)
    order = order[np.argsort(index[first_cell][order], kind="stable")]
    chosen = np.zeros(names.size, dtype=bool)
    chosen[order[::2]] = True
    return np.asarray(chosen[inverse], dtype=np.bool_)
