"""Versions of the registry are loaded when a request first asks for them, and the least used one goes."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path

import pytest
from tests.helpers.stores import laid

from spanloop_store import connect, registry
from spanloop_trainer.errors import ServeError
from spanloop_trainer.serve.models import Models


@pytest.fixture
def store(tmp_path: Path, random_folder: Path) -> str:
    url = laid(tmp_path / "store")
    with closing(connect(url)) as client:
        for _ in range(3):
            registry.register_model(client, "m", str(random_folder))
        registry.register_model(client, "broken", str(tmp_path / "gone"))
        registry.point_alias(client, "m", "candidate", 2, action="point")
    return url


def test_versions_and_aliases_are_found_and_the_least_used_goes(store: str) -> None:
    async def run() -> None:
        models = Models(store, keep=2)
        first = await models.get("m@1")
        assert first is not None
        assert first.version == "m@1"
        by_alias = await models.get("m@candidate")
        assert by_alias is not None
        assert by_alias is await models.get("m@2")
        assert await models.get("m@1") is first  # used again: m@2 is now the one to go
        await models.get("m@3")
        assert models.names() == ["m@1", "m@3"]
        assert await models.get("m@9") is None
        assert await models.get("other@1") is None
        assert await models.registered() == ["broken@1", "m@1", "m@2", "m@3"]
        with pytest.raises(ServeError, match=r"broken@1: .* is not a model folder"):
            await models.get("broken@1")

    asyncio.run(run())


def test_requests_that_arrive_together_load_a_version_once(store: str) -> None:
    async def run() -> None:
        models = Models(store)
        loaded = await asyncio.gather(*(models.get("m@1") for _ in range(8)))
        assert len({id(model) for model in loaded}) == 1

    asyncio.run(run())
