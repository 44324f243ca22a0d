"""Fast evaluation of one quadratic and many additive sums over integer genomes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

_CHUNK = 200_000  # states per pass: enough to hide numpy's calls, few enough for the cache
_TABLE_BYTES = 8_000_000  # larger pair tables leave the cache and are slower than more, smaller ones


@dataclass(frozen=True, slots=True)
class QuadraticTables:
    """Sums of R additive rows over G genes; row 0 has pair terms besides.

    Neighbouring genes are joined to super-genes and the pair terms between two super-genes summed beforehand: 53 genes
    of 5 choices then need 325 gathers a genome instead of 1378, all in float64. Made by `build`.
    """

    members: tuple[range, ...]  # genes of each super-gene
    sizes: NDArray[np.intp]  # (G,) choices per gene
    additive: tuple[NDArray[np.float64], ...]  # per super-gene (R, states)
    pairs: tuple[NDArray[np.float64], ...]  # per super-gene a, flat: a block (states_a, states_b) for each b > a

    @classmethod
    def build(
        cls, sizes: NDArray[np.intp], additive: NDArray[np.float64], pair: NDArray[np.float64]
    ) -> QuadraticTables:
        """`sizes` (G,) with sum N; `additive` (R, N); `pair` (N, N) symmetric, zero in every gene's own block."""
        members = _super_genes(sizes)
        starts = np.concatenate([[0], np.cumsum(sizes)])
        spans = [slice(starts[genes.start], starts[genes.stop]) for genes in members]
        onehots = [_onehot(sizes[genes.start : genes.stop]) for genes in members]
        unary, blocks = [], []
        for a, (span, onehot) in enumerate(zip(spans, onehots, strict=True)):
            rows = additive[:, span] @ onehot.T
            rows[0] += np.einsum("sn,sn->s", onehot @ pair[span, span], onehot)
            unary.append(rows)
            cross = 2 * onehot @ pair[span]
            later = zip(spans[a + 1 :], onehots[a + 1 :], strict=True)
            flat = [(cross[:, other] @ onehot_b.T).ravel() for other, onehot_b in later]
            blocks.append(np.concatenate(flat) if flat else np.zeros(0))
        return cls(members, sizes, tuple(unary), tuple(blocks))

    def __call__(self, genomes: NDArray[np.integer]) -> NDArray[np.float64]:
        """Sums (R, P) of genomes (P, G). A genome's sums do not depend on the others in the batch."""
        together = max(_CHUNK // len(self.members), 1)
        if len(genomes) <= together:
            return self._sums(genomes)
        parts = [genomes[begin : begin + together] for begin in range(0, len(genomes), together)]
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # numpy's take releases the interpreter lock
            return np.concatenate(list(pool.map(self._sums, parts)), axis=1)

    def _sums(self, genomes: NDArray[np.integer]) -> NDArray[np.float64]:
        if len(genomes) == 1:  # a batch of one would be summed along another axis, in another order
            return self._sums(genomes.repeat(2, axis=0))[:, :1]
        columns = np.ascontiguousarray(genomes.T, dtype=np.intp)
        states = np.empty((len(self.members), columns.shape[1]), dtype=np.intp)
        for row, genes in zip(states, self.members, strict=True):
            row[:] = columns[genes.start]
            for gene in genes[1:]:
                row *= self.sizes[gene]
                row += columns[gene]
        counts = np.array([rows.shape[1] for rows in self.additive], dtype=np.intp)
        sums = np.zeros((len(self.additive[0]), columns.shape[1]))
        for a, (rows, blocks) in enumerate(zip(self.additive, self.pairs, strict=True)):
            sums += rows.take(states[a], axis=1, mode="clip")
            if blocks.size:
                index = np.multiply.outer(counts[a + 1 :], states[a])
                index += states[a + 1 :]
                index[1:] += (counts[a] * np.cumsum(counts[a + 1 : -1]))[:, None]
                sums[0] += blocks.take(index, mode="clip").sum(axis=0)
        return sums


def _super_genes(sizes: NDArray[np.intp]) -> tuple[range, ...]:
    """Runs of neighbouring genes, as long as their pair tables stay within `_TABLE_BYTES`."""
    for limit in (128, 64, 32, 16):  # states of a super-gene
        runs = _runs(sizes, limit)
        states = np.array([np.prod(sizes[run.start : run.stop]) for run in runs], dtype=np.float64)
        if 4 * (states.sum() ** 2 - (states**2).sum()) <= _TABLE_BYTES:
            return runs
    return tuple(range(gene, gene + 1) for gene in range(len(sizes)))


def _runs(sizes: NDArray[np.intp], limit: int) -> tuple[range, ...]:
    runs, start, states = [], 0, 1
    for gene, size in enumerate(sizes.tolist()):
        if gene > start and states * size > limit:
            runs.append(range(start, gene))
            start, states = gene, 1
        states *= size
    return (*runs, range(start, len(sizes)))


def _onehot(sizes: NDArray[np.intp]) -> NDArray[np.float64]:
    """All joint states of a run of genes (states, sum of sizes), the last gene running fastest."""
    grids = np.indices(tuple(sizes)).reshape(len(sizes), -1)
    return np.concatenate([np.eye(size)[grid] for size, grid in zip(sizes, grids, strict=True)], axis=1)
