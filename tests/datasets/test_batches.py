"""Batches of given sizes, of tensors and of streams."""

import torch
from fitting import SPLIT
from toys import CPU, Streamed

from mad.datasets import batches


def test_batches_of_given_sizes_are_alike_for_a_tensor_and_a_stream():
    for rows in (None, torch.arange(200).flip(0)):
        for kind in (SPLIT.images, Streamed(SPLIT.images)):
            found = list(batches(kind, rows, [90, 90, 20], CPU))
            assert [len(each) for each in found] == [90, 90, 20]
            assert torch.equal(torch.cat(found), SPLIT.images if rows is None else SPLIT.images[rows])


def test_no_rows_are_one_empty_batch_of_a_tensor_and_of_a_stream():
    none = torch.zeros(0, dtype=torch.int64)
    for kind in (SPLIT.images, Streamed(SPLIT.images)):
        (only,) = batches(kind, none, 20, CPU)
        assert (only.shape, only.dtype) == ((0, 1, 8, 8), torch.uint8)
