"""The HTTP face of the policy server: chat completions, models, health, on aiohttp."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import orjson
import torch
from aiohttp import web
from transformers.utils import logging as transformers_logging

from spanloop_store.access import TOKEN_VARIABLE, is_loopback, shows_token
from spanloop_store.errors import SpanloopError
from spanloop_trainer.errors import ServeError, TrainError
from spanloop_trainer.serve.engine import check_prompt
from spanloop_trainer.serve.models import LoadedModel, Models, load
from spanloop_trainer.serve.protocol import Answer, BadRequest, error_body, parse_request
from spanloop_trainer.serve.stream import chunks
from spanloop_trainer.serve.worker import Worker

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 * 1024**2  # long conversations with tool output; aiohttp's own limit is 1 MiB


class PolicyServer:
    """Models and the worker behind one aiohttp application."""

    def __init__(self, models: Models, token: str | None = None) -> None:
        """`token`: bearer credential that every request but /health must carry; None: none."""
        self.models = models
        self.worker = Worker()
        self._token = token

    def application(self) -> web.Application:
        """The aiohttp application; the worker thread lives as long as it runs."""
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._errors])
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_get("/v1/models", self.list_models)
        app.router.add_get("/health", self.health)

        async def start(_: web.Application) -> None:
            self.worker.start()

        async def stop(_: web.Application) -> None:
            await asyncio.to_thread(self.worker.stop)

        app.on_startup.append(start)
        app.on_shutdown.append(stop)
        return app

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/chat/completions`."""
        wanted, raw = parse_request(await request.read())
        model = await self.models.get(wanted.model)
        if model is None:
            return _json(404, _unknown(wanted.model, self.models.names()))
        answer = Answer(wanted, model, self._prompt(model, raw, wanted.offers_tools))
        samplings = wanted.samplings(model.context - len(answer.prompt))
        if not wanted.stream:
            rows = await self.worker.generate(model, answer.prompt, samplings)
            return _json(200, answer.response(rows))
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        )
        await response.prepare(request)
        async with aclosing(self.worker.stream(model, answer.prompt, samplings)) as events:
            try:
                async for chunk in chunks(answer, events):
                    await response.write(b"data: " + orjson.dumps(chunk) + b"\n\n")
            except ServeError as error:
                # The status line is gone: the error is the last event, and the missing [DONE] says that it is cut.
                await response.write(
                    b"data: " + orjson.dumps(error_body(error.message, "server_error")) + b"\n\n"
                )
                return response
            except ConnectionResetError:
                logger.info("%s: the client hung up", answer.id)
                return response
        await response.write(b"data: [DONE]\n\n")
        return response

    async def list_models(self, _: web.Request) -> web.Response:
        """`GET /v1/models`: what is in memory and what the registry could load."""
        names = dict.fromkeys(self.models.names())
        names.update(dict.fromkeys(await self.models.registered()))
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "spanloop"} for name in names]
        return _json(200, {"object": "list", "data": data})

    async def health(self, _: web.Request) -> web.Response:
        """`GET /health`."""
        return _json(200, {"status": "ok", "models": self.models.names()})

    def _prompt(self, model: LoadedModel, raw: dict[str, object], offers_tools: bool) -> list[int]:
        messages, tools = raw["messages"], raw.get("tools") if offers_tools else None
        assert isinstance(messages, list), "parse_request has checked it"
        assert tools is None or isinstance(tools, list), "parse_request has checked it"
        try:
            ids = model.prompt_ids(messages, tools)
            check_prompt(model, ids)
        except (TrainError, ServeError) as error:
            raise BadRequest(f"messages: {error.message}", "messages") from error
        return ids

    @web.middleware
    async def _errors(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Every failure in OpenAI's shape."""
        if request.path != "/health" and not shows_token(request.headers.get("Authorization"), self._token):
            return _json(401, error_body("the bearer token is missing or wrong", "authentication_error"))
        try:
            return await handler(request)
        except BadRequest as error:
            return _json(400, error_body(error.message, "invalid_request_error", error.field))
        except SpanloopError as error:
            logger.error("%s", error)
            return _json(500, error_body(str(error), "server_error"))
        except web.HTTPException as error:
            return _json(error.status, error_body(error.reason, "invalid_request_error"))


def _json(status: int, value: object) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(value), content_type="application/json")


def _unknown(name: str, known: list[str]) -> dict[str, object]:
    message = f"the model {name!r} does not exist here; in memory: {', '.join(known) or 'none'}"
    return error_body(message, "invalid_request_error", "model", "model_not_found")


def bind_token(host: str) -> str | None:
    """The credential that listening on `host` needs: none on loopback, else `SPANLOOP_TOKEN`.

    Raises:
        ServeError: another address without a token.
    """
    if is_loopback(host):
        return None
    token = os.environ.get(TOKEN_VARIABLE)
    if not token:
        raise ServeError(
            f"refusing to listen on {host} without a credential",
            f"set {TOKEN_VARIABLE}, or use --host 127.0.0.1",
        )
    return token


async def open_models(refs: list[str], store: str | None) -> Models:
    """Load what was named at start.

    Args:
        refs: NAME=DIR, or NAME@VERSION / NAME@ALIAS of the registry.
        store: store URL, or None for folders only.

    Raises:
        ServeError: a folder that is not a model, or a version that the registry does not know.
    """
    models = Models(store)
    for ref in refs:
        name, given, folder = ref.partition("=")
        if given:
            models.pin(await asyncio.to_thread(load, name, folder))
            continue
        model = await models.get(ref)
        if model is None:
            raise ServeError(
                f"{ref} is not in the registry",
                "see `spanloop status`, or serve a folder: `spanloop serve NAME=DIR`",
            )
        models.pin(model)
    return models


async def serve(
    refs: list[str],
    *,
    store: str | None,
    host: str = "127.0.0.1",
    port: int = 8000,
    threads: int = 1,
    ready: Callable[[str, list[str]], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        refs: see `open_models`.
        store: store URL, or None for folders only.
        host: address to listen on; anything but loopback needs SPANLOOP_TOKEN.
        port: 0 takes a free one.
        threads: threads of one model step. Two threads on two busy cores ran 14 times slower than one.
        ready: called with the base URL and the versions in memory once requests are taken.

    Raises:
        ServeError: nothing to serve, or the port is in use.
    """
    token = bind_token(host)
    torch.set_num_threads(threads)
    transformers_logging.disable_progress_bar()
    models = await open_models(refs, store)
    runner = web.AppRunner(
        PolicyServer(models, token).application(), handler_cancellation=True, access_log=None
    )
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise ServeError(
                f"cannot listen on {host}:{port}: {error.strerror}", "choose another --port"
            ) from error
        # Before anybody is told that it serves: a signal sent at once must end it cleanly too.
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, ended.set)
        bound = runner.addresses[0]
        if ready is not None:
            shown = f"[{bound[0]}]" if ":" in str(bound[0]) else bound[0]
            ready(f"http://{shown}:{bound[1]}/v1", models.names())
        await ended.wait()
    finally:
        await runner.cleanup()
