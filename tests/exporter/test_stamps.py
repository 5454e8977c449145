"""Run, session, rollout and task of a process, from its variables."""

from __future__ import annotations

from spanloop_exporter.stamps import stamps


def test_each_variable_has_its_attribute() -> None:
    environ = {
        "SPANLOOP_RUN_ID": "night-7",
        "SPANLOOP_SESSION_ID": "s1",
        "SPANLOOP_ROLLOUT_ID": "r1",
        "SPANLOOP_TASK_ID": " t1 ",
        "SPANLOOP_STORE": "clickhouse://elsewhere",
    }
    assert stamps(environ) == {
        "spanloop.run.id": "night-7",
        "session.id": "s1",
        "spanloop.rollout.id": "r1",
        "spanloop.task.id": "t1",
    }


def test_what_is_set_to_nothing_stamps_nothing() -> None:
    assert stamps({"SPANLOOP_RUN_ID": "", "SPANLOOP_TASK_ID": "  "}) == {}
