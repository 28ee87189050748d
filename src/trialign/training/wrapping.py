"""Rows of SFT that are packed as TRL does it (`wrapped`): one conversation after another, cut where a row is full."""

from __future__ import annotations

import pyarrow as pa


def wrapped(rows: pa.Table, tokens: int, seed: int) -> pa.Table:
    """Return `rows` (columns of lists, of one length in each row) as rows of `tokens`, the last as short as it comes.

    They are shuffled by the seed before: neighbours in the file would stay neighbours.
    """
    import datasets
    from trl.data_utils import pack_dataset

    shuffled = datasets.Dataset(datasets.table.InMemoryTable(rows)).shuffle(seed=seed)
    return pack_dataset(shuffled, tokens, "wrapped").data.table
