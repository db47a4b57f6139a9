"""What the thread that owns the models promises, seen from a loop that waits for it."""

import asyncio
import logging

import pytest
from serving import ENDLESS

from foveal.models.generation.generator import NoAnswer, Request
from foveal.models.generation.passes import NotFiniteError
from foveal.models.generation.prompt import Prompt
from foveal.serve.limits import RequestError
from foveal.serve.scheduler import Job, Scheduler

ASKED = Request(Prompt((1, 2)), max_new_tokens=50)
UNENDING = Request(Prompt((1, 2)), max_new_tokens=10**5)


def run(actor, scene, makers=None):
    """Play a scene, given the scheduler, on a loop of its own."""

    async def whole():
        scheduler = Scheduler(makers or {"mine": lambda: actor})
        scheduler.start()
        try:
            return await asyncio.wait_for(scene(scheduler), 30)
        finally:
            await asyncio.to_thread(scheduler.stop)
            assert not scheduler.is_alive

    return asyncio.run(whole())


async def tokens_of(job, answers=1):
    """All events of a job up to the end of its answers."""
    seen = []
    while answers:
        event = await job.events.get()
        seen.append(event)
        answers -= isinstance(event, RequestError) or bool(event[1].finish)
    return seen


def test_a_job_gets_the_tokens_of_its_own_answers(actor):
    actor.lines = ("The total", "is 12.50")

    async def scene(scheduler):
        job = Job("mine", [ASKED, ASKED])
        scheduler.submit(job)
        return await tokens_of(job, answers=2)

    seen = run(actor, scene)
    for choice, line in enumerate(actor.lines):
        ids = [token.id for grown, token in seen if grown == choice]
        assert actor._processor.decode_answer(ids) == line


def test_who_comes_later_joins_at_the_next_token(actor):
    async def scene(scheduler):
        long, short = Job("mine", [UNENDING]), Job("mine", [ASKED])
        scheduler.submit(long)
        await long.events.get()
        actor.lines = ("The total is 12.50 dollars.", "The")
        scheduler.submit(short)
        await tokens_of(short)
        return long.events.qsize() > 0, scheduler.num_active

    actor.lines, actor.step_seconds = (ENDLESS,), 0.01
    grew_meanwhile, left = run(actor, scene)
    assert grew_meanwhile
    assert left == 1


def test_a_cancelled_job_is_forgotten_by_its_model(actor):
    async def scene(scheduler):
        actor.going.clear()
        job = Job("mine", [ASKED, ASKED])
        scheduler.submit(job)
        while scheduler.num_active < 2:
            await asyncio.sleep(0.01)
        scheduler.cancel(job, choice=1)
        while scheduler.num_active > 1:
            await asyncio.sleep(0.01)
        scheduler.cancel(job)
        scheduler.cancel(job)  # once more than there is to do
        while scheduler.num_active:
            await asyncio.sleep(0.01)

    run(actor, scene)
    assert actor.cancelled == [1, 0]


@pytest.mark.parametrize(
    ("failure", "status"), [(RuntimeError("broken"), 500), (MemoryError(), 503)]
)
def test_a_failed_step_ends_its_jobs_and_no_others(actor, tiny, caplog, failure, status):
    made = []

    def make():
        from serving import Actor

        made.append(Actor(tiny))
        return made[-1]

    async def scene(scheduler):
        failing, whole = Job("broken", [ASKED, ASKED]), Job("mine", [ASKED])
        made[0].failure = failure
        scheduler.submit(failing)
        (failed,) = await tokens_of(failing)
        scheduler.submit(whole)
        again = Job("broken", [ASKED])
        scheduler.submit(again)
        return failed, await tokens_of(whole), await tokens_of(again)

    with caplog.at_level(logging.CRITICAL, "foveal.serve.scheduler"):
        failed, whole, again = run(actor, scene, {"broken": make, "mine": lambda: actor})
    assert failed.status == status
    assert "broken" not in failed.message, "what went wrong inside is for the log"
    assert whole[-1][1].finish == again[-1][1].finish == "stop"
    assert len(made) == 2, "what a broken step left behind is not used again"


def test_a_request_whose_numbers_are_not_finite_fails_alone(actor, caplog):
    actor.step_seconds, step = 0.01, actor.step

    def broken_once():
        tokens = step()
        if len(tokens) < 3:
            return tokens
        actor.step = step
        problem = NotFiniteError("language.lm_head gives numbers that are not finite in fp16")
        actor.cancel(tokens[0].handle)
        return [NoAnswer(tokens[0].handle, problem), *tokens[1:]]

    async def scene(scheduler):
        actor.step = broken_once
        failing, whole = Job("mine", [ASKED, ASKED]), Job("mine", [ASKED])
        scheduler.submit(failing)
        scheduler.submit(whole)
        seen = []
        while not seen or not isinstance(seen[-1], RequestError):
            seen.append(await failing.events.get())
        return seen[-1], await tokens_of(whole), scheduler.num_active

    with caplog.at_level(logging.CRITICAL, "foveal.serve.scheduler"):
        failed, whole, left = run(actor, scene)
    assert failed.status == 500
    assert "language.lm_head gives numbers that are not finite in fp16" in failed.message
    assert whole[-1][1].finish == "stop"
    assert left == 0


def test_a_refused_request_fails_alone(actor, caplog):
    async def scene(scheduler):
        refused, whole = Job("mine", [ASKED]), Job("mine", [ASKED])
        add = actor.add
        actor.add = lambda request: 1 / 0
        scheduler.submit(refused)
        (failed,) = await tokens_of(refused)
        actor.add = add
        scheduler.submit(whole)
        return failed, await tokens_of(whole)

    with caplog.at_level(logging.CRITICAL, "foveal.serve.scheduler"):
        failed, whole = run(actor, scene)
    assert isinstance(failed, RequestError)
    assert not isinstance(whole[-1], RequestError)


def test_a_client_that_takes_nothing_holds_up_nobody(actor):
    async def scene(scheduler):
        idle, busy = Job("mine", [ASKED]), Job("mine", [ASKED])
        scheduler.submit(idle)
        scheduler.submit(busy)
        return await tokens_of(busy), idle.events.qsize()

    seen, kept = run(actor, scene)
    assert seen[-1][1].finish
    assert kept == len(seen)
