"""Tests marked by `on_ranks` run in processes of their own (`ranks.py`)."""

import pytest
from distributed.ranks import run


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run the body of a test on its ranks; the rank that ended first speaks first."""
    count = getattr(pyfuncitem.function, "ranks", None)
    if count is None:
        return None
    names = getattr(pyfuncitem, "callspec", None)
    arguments = {} if names is None else dict(names.params)
    outcomes = run(pyfuncitem.path, pyfuncitem.function.__name__, arguments, count)
    failed = [one for one in outcomes if one.failed]
    if failed:
        told = (f"Rank {one.rank} of {count}:\n{one.failed}" for one in failed)
        pytest.fail("\n".join(told), pytrace=False)
    skipped = [one.skipped for one in outcomes if one.skipped]
    if skipped:
        pytest.skip(skipped[0])
    return True
