"""Many questions at once: who waits, who is answered, and who is not any more."""

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import pytest
from serve.site import EIFFEL, GALATA, Site, serving, until
from serve.slow import Slow

from lensbridge.interventions import Zero
from lensbridge.model import LensModel
from lensbridge.serve import Limits
from lensbridge.serve.subject import Subject
from lensbridge.serve.views.sweeping import swept
from lensbridge.serve.worker import Busy, Cancelled, Job, Worker

PAIR = {"clean": EIFFEL, "corrupted": GALATA}
CITIES = {
    "The Eiffel Tower is in the city of": "·Paris",
    "The Galata Tower is in the city of": "·Istanbul",
    "The Colosseum is in the city of": "·Rome",
}


@pytest.fixture
def slow(model: LensModel) -> Slow:
    return Slow(model)


def test_several_tabs_get_their_own_answers(site: Site) -> None:
    def ask(i: int) -> None:
        prompt, city = list(CITIES.items())[i % 3]
        mine = replace(site, tab=f"tab {i}")
        assert mine.ask("predictions", prompt=prompt)["rows"][0]["label"] == city
        lens = mine.ask("lens", prompt=prompt)
        assert lens["names"][str(lens["ids"][-1][-1][0])] == city
        if i % 2:
            events = mine.events("comparison", **PAIR)
            assert events[0]["answer"]["label"] == "·Paris"
            assert len([v for e in events[1:-1] for v in e["values"]]) == 36

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(ask, range(12)))


def test_the_model_runs_one_question_at_a_time(site: Site, slow: Slow) -> None:
    with slow.paused(0.02), ThreadPoolExecutor(6) as pool:
        tabs = [replace(site, tab=str(i)) for i in range(6)]
        list(pool.map(lambda one: one.ask("predictions", prompt=EIFFEL), tabs))
    assert slow.runs == 6
    assert slow.most == 1


def test_a_newer_question_of_the_same_view_takes_the_place_of_the_older(
    site: Site, slow: Slow
) -> None:
    with slow.paused(0.5), ThreadPoolExecutor(4) as pool:
        first = pool.submit(site.post, "predictions", prompt=EIFFEL)
        until(lambda: slow.runs == 1)
        second = pool.submit(site.post, "predictions", prompt="The")
        time.sleep(0.1)
        third = pool.submit(site.ask, "predictions", prompt=GALATA)
        other_view = pool.submit(site.ask, "neurons", prompt=EIFFEL)
        assert first.result().status_code == second.result().status_code == 409
        assert third.result()["rows"][0]["label"] == "·Istanbul"
        assert other_view.result()["tokens"]
    assert slow.runs == 3  # the second never ran


def test_another_tab_is_not_disturbed(site: Site, slow: Slow) -> None:
    with slow.paused(0.2), ThreadPoolExecutor(2) as pool:
        first = pool.submit(site.ask, "predictions", prompt=EIFFEL)
        until(lambda: slow.runs == 1)
        second = pool.submit(replace(site, tab="another").ask, "predictions", prompt=GALATA)
        assert first.result()["rows"][0]["label"] == "·Paris"
        assert second.result()["rows"][0]["label"] == "·Istanbul"


def test_too_many_questions_are_refused_and_later_ones_are_not(model: LensModel) -> None:
    slow = Slow(model)
    with serving(model, limits=Limits(max_waiting=3)) as site:
        with slow.paused(0.5), ThreadPoolExecutor(8) as pool:
            tabs = [replace(site, tab=str(i)) for i in range(8)]
            found = list(pool.map(lambda one: one.post("predictions", prompt=EIFFEL), tabs))
        statuses = [one.status_code for one in found]
        assert statuses.count(200) == 3
        assert statuses.count(503) == 5
        assert "busy" in next(one for one in found if one.status_code == 503).json()["message"]
        assert site.ask("predictions", prompt=EIFFEL)["rows"]


def lines_of(site: Site, count: int, view: str, **question: Any) -> list[dict[str, Any]]:
    """The first events of a view; then the connection is closed."""
    address = f"{site.url}/api/{view}"
    with httpx.stream("POST", address, json=question, headers=site.headers()) as response:
        lines = response.iter_lines()
        return [json.loads(next(lines)) for _ in range(count)]


def test_a_sweep_stops_when_the_page_is_left(site: Site, slow: Slow) -> None:
    with slow.paused(0.15):
        events = lines_of(site, 2, "comparison", **PAIR, what="mlp_out")
        assert events[0]["type"] == "start"
        assert events[1]["type"] == "cells"
        began = time.monotonic()
        assert site.ask("predictions", prompt=EIFFEL)["rows"]
        assert time.monotonic() - began < 2
        runs = slow.runs
        time.sleep(0.7)
        assert slow.runs == runs
    with slow.paused(0.0):
        site.events("comparison", **PAIR, what="mlp_out")


def impatient(site: Site, view: str) -> None:
    """Someone who leaves soon."""
    address, question = f"{site.url}/api/{view}", {"prompt": GALATA}
    httpx.post(address, json=question, headers=site.headers(), timeout=0.1)


def test_a_question_that_waits_is_dropped_when_the_page_is_left(site: Site, slow: Slow) -> None:
    with slow.paused(0.5), ThreadPoolExecutor(1) as pool:
        first = pool.submit(site.ask, "predictions", prompt=EIFFEL)
        until(lambda: slow.runs == 1)
        for view in ("lens", "attribution"):
            with pytest.raises(httpx.ReadTimeout):
                impatient(site, view)
        assert first.result()["rows"]
        assert site.ask("neurons", prompt=EIFFEL)["tokens"]
    assert slow.runs == 2


def test_other_questions_are_answered_while_a_sweep_runs(site: Site, slow: Slow) -> None:
    done: list[str] = []
    with slow.paused(0.1), ThreadPoolExecutor(1) as pool:

        def sweep() -> None:
            site.events("comparison", **PAIR)
            done.append("sweep")

        running = pool.submit(sweep)
        until(lambda: slow.runs > 4)
        site.ask("predictions", prompt=EIFFEL)
        done.append("question")
        running.result()
    assert done == ["question", "sweep"]


def test_a_generation_stops_when_the_page_is_left(site: Site, slow: Slow) -> None:
    question = {"prompt": EIFFEL, "positive": EIFFEL, "negative": GALATA, "new_tokens": 64}
    with slow.paused(0.1):
        events = lines_of(site, 1, "steering", **question, strength=40.0)
        assert events[0]["type"] == "start"
        assert site.ask("predictions", prompt=EIFFEL)["rows"]
        runs = slow.runs
        time.sleep(0.5)
        assert slow.runs == runs < 20


def test_a_cancelled_sweep_ends_between_two_cells(model: LensModel) -> None:
    job, measured = _job(), []
    subject = Subject(model, None, Limits())

    def metric(logits: Any) -> Any:
        measured.append(1)
        if len(measured) == 12:
            job.cancel()
        return logits[0, -1, 0]

    cells = [Zero(("mlp_out", 1), positions=i) for i in range(9)] * 20
    with pytest.raises(Cancelled):
        for _ in swept(subject, EIFFEL, cells, metric, job):
            pass
    assert len(measured) == 12


def _job() -> Job:
    async def made() -> Job:
        return Job(("", ""))

    return asyncio.run(made())


def test_the_worker_keeps_nothing_of_jobs_that_are_done() -> None:
    async def many() -> None:
        worker = Worker(2)
        for i in range(9):
            with worker.job(str(i), "view") as job:
                assert await worker.run(job, lambda: 5) == 5
        with worker.job("a", "view"), worker.job("b", "view"), pytest.raises(Busy):
            worker.job("c", "view").__enter__()
        with worker.job("d", "view") as job:
            job.cancel()
            with pytest.raises(Cancelled):
                await worker.run(job, lambda: pytest.fail("it ran"))
        with worker.job("d", "view") as job, pytest.raises(ZeroDivisionError):
            await worker.run(job, lambda: 1 // 0)
        worker.close()

    asyncio.run(many())
