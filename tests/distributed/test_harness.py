"""The processes that tests on several ranks run in."""

from pathlib import Path

import pytest
import torch
import torch.distributed as distributed
from distributed.ranks import on_ranks, run

pytestmark = pytest.mark.ranks


@on_ranks(2)
def test_ranks_meet() -> None:
    given = torch.tensor([distributed.get_rank() + 1])
    distributed.all_reduce(given)
    assert given.item() == 3


def fails_on_one() -> None:
    if distributed.get_rank() == 1:
        raise ZeroDivisionError("on purpose")
    distributed.barrier()


def test_the_rank_that_failed_is_told_first() -> None:
    first, second = run(Path(__file__), "fails_on_one", {}, 2)
    assert first.rank == 1
    assert "ZeroDivisionError: on purpose" in first.failed
    assert second.failed


def ends() -> None:
    import os

    os._exit(3)


def test_a_process_that_ends_is_told() -> None:
    outcomes = run(Path(__file__), "ends", {}, 1)
    assert outcomes[0].failed.startswith("The process ended")


def waits() -> None:
    if distributed.get_rank() == 0:
        distributed.recv(torch.zeros(1), src=1)
    else:
        distributed.recv(torch.zeros(1), src=0)


def test_a_test_that_does_not_end_is_stopped_with_the_line_that_it_is_at() -> None:
    outcomes = run(Path(__file__), "waits", {}, 2, limit=2.0)
    assert [one.rank for one in outcomes] == [0, 1]
    for one in outcomes:
        assert one.failed.startswith("It was still running after 2 s.")
        assert "in waits" in one.failed
