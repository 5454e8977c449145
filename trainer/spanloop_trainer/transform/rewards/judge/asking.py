"""Questions to an OpenAI-compatible server: several at a time, within a budget."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import openai

from spanloop_trainer.config.rewards import Judge
from spanloop_trainer.errors import JudgeError
from spanloop_trainer.transform.rewards.judge.prompts import Question

# The client's own retries, with growing pauses: connection, 408, 409, 429 and 5xx.
_RETRIES = 4
# To guess the cost before it is known: bytes a token at least, in any language; and tokens of an answer, until longer ones are seen.
_BYTES_A_TOKEN = 3
_ANSWER_TOKENS = 400
# Failed answers in a row: a server that is down for good would take hours to fail all.
_GIVE_UP = 20
_NO_COMPLETION = "the judge's server answered with something else than a chat completion"


class Answer(NamedTuple):
    """What the server said.

    Attributes:
        text: None: it gave none.
        why: why not, in words that do not differ from request to request.
        detail: the rest of why.
        prompt_tokens, completion_tokens: as the server counted.
    """

    text: str | None
    why: str
    prompt_tokens: int
    completion_tokens: int
    detail: str = ""


class Asker:
    """One build's conversation with the judge.

    Attributes:
        spent: so far, in the currency of the prices.
        asked: requests that were answered.
    """

    def __init__(self, settings: Judge) -> None:
        """
        Raises:
            JudgeError: the key is none that can be sent.
        """
        self._settings = settings
        # Servers of one's own ask for none. A line break, as of a file, is no part of a key.
        self._key = os.environ.get(settings.api_key_env, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise JudgeError(
                f"{settings.api_key_env} holds no key: there are characters in it that no key has",
                "set that variable anew; nothing was asked",
            )
        self._client = openai.OpenAI(
            base_url=settings.base_url,
            api_key=self._key or "none",
            timeout=settings.timeout_s,
            max_retries=_RETRIES,
        )
        self._structured = True
        self._failures = 0  # in a row
        self._longest = _ANSWER_TOKENS
        self.spent = 0.0
        self.asked = 0

    def ask(self, questions: Sequence[Question], answered: Callable[[int, Answer], None]) -> int:
        """Ask until all are answered or the budget is spent; `answered` is called here, in any order.

        Returns:
            How many were asked: these are the first.

        Raises:
            JudgeError: the server cannot be reached, or refuses the key or the model.
        """
        waiting: dict[Future[Answer], tuple[int, float]] = {}
        place = 0
        with ThreadPoolExecutor(self._settings.concurrency) as pool:
            try:
                while place < len(questions) or waiting:
                    while place < len(questions) and len(waiting) < self._settings.concurrency:
                        guess = self._guess(questions[place])
                        if not self._affordable(guess + sum(other for _, other in waiting.values())):
                            break
                        waiting[pool.submit(self._one, questions[place])] = (place, guess)
                        place += 1
                    if not waiting:
                        return place
                    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                        answer = self._taken(future, waiting.pop(future), answered)
                        self._failures = 0 if answer.text else self._failures + 1
                        if self._failures >= _GIVE_UP:
                            raise JudgeError(
                                f"{_GIVE_UP} requests in a row failed at {self._server}: {answer.why}: {answer.detail}",
                                "build again when it is well; what it judged so far is kept",
                            )
            except (JudgeError, KeyboardInterrupt):
                pool.shutdown(wait=False, cancel_futures=True)
                # What is on its way is paid for.
                for future in wait(waiting).done:
                    if not future.cancelled() and future.exception() is None:
                        self._taken(future, waiting[future], answered)
                raise
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return place

    def _taken(
        self, future: Future[Answer], asked: tuple[int, float], answered: Callable[[int, Answer], None]
    ) -> Answer:
        answer = future.result()
        answer = answer._replace(detail=self._said(answer.detail))
        place, guess = asked
        self.asked += 1
        # A server that does not count is not free.
        counted = answer.prompt_tokens + answer.completion_tokens or answer.text is None
        self.spent += self.cost(answer.prompt_tokens, answer.completion_tokens) if counted else guess
        self._longest = max(self._longest, answer.completion_tokens)
        answered(place, answer)
        return answer

    @property
    def _server(self) -> str:
        """Where it is, without a password that the address may hold."""
        parts = urlsplit(self._settings.base_url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()

    def _said(self, text: object) -> str:
        """What the server said, for people; one that repeats the key shows it to nobody."""
        said = str(text)
        return (said.replace(self._key, "***") if len(self._key) > 7 else said)[:300]

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """In the currency of the prices."""
        settings = self._settings
        return (prompt_tokens * settings.price_input + completion_tokens * settings.price_output) / 1e6

    def _guess(self, question: Question) -> float:
        size = sum(len(message["content"].encode()) for message in question.messages)
        request = self._settings.request
        most = request.get("max_completion_tokens") or request.get("max_tokens") or self._longest
        return self.cost(math.ceil(size / _BYTES_A_TOKEN), most)

    def _affordable(self, more: float) -> bool:
        return self._settings.max_cost is None or self.spent + more <= self._settings.max_cost

    def _one(self, question: Question) -> Answer:
        settings = self._settings
        try:
            return self._request(question)
        except openai.APITimeoutError:
            return Answer(None, "the judge did not answer in time", 0, 0)
        except openai.APIConnectionError as error:
            raise JudgeError(
                f"the judge at {self._server} cannot be reached: {self._said(error.__cause__ or error)}",
                "check `base_url` of [judge]; what it judged so far is kept, and building again goes on from there",
            ) from error
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            unset = "" if self._key else f" ({settings.api_key_env} is not set)"
            raise JudgeError(
                f"the judge at {self._server} refused {settings.model!r}: {self._said(error.message)}{unset}",
                "check `model`, `api_key_env` and `base_url` of [judge]; what it judged so far is kept",
            ) from error
        except openai.APIStatusError as error:
            why = f"the judge's server answered {error.status_code}"
            return Answer(None, why, 0, 0, error.message)
        except (openai.APIError, ValueError) as error:  # no JSON
            return Answer(None, _NO_COMPLETION, 0, 0, str(error))

    def _request(self, question: Question) -> Answer:
        body: dict[str, Any] = {
            "model": self._settings.model,
            "messages": question.messages,
            "extra_body": self._settings.request,
        }
        create: Any = self._client.chat.completions.create
        if not self._structured:
            return _read(create(**body))
        form = {"name": "verdict", "strict": True, "schema": question.form}
        try:
            return _read(create(**body, response_format={"type": "json_schema", "json_schema": form}))
        except (openai.BadRequestError, openai.UnprocessableEntityError):
            # Some servers know no structured output; the prompt asks for JSON anyway. If that was not it, this fails too.
            answer = _read(create(**body))
            self._structured = False
            return answer


def _read(response: Any) -> Answer:
    try:
        text = response.choices[0].message.content if response.choices else None
        used = response.usage
        tokens = (_number(used.prompt_tokens), _number(used.completion_tokens)) if used else (0, 0)
    except (AttributeError, TypeError, LookupError):
        # The client checks no answer: a page in HTML is a text to it.
        return Answer(None, _NO_COMPLETION, 0, 0, str(response))
    if isinstance(text, str) and text:
        return Answer(text, "", *tokens)
    return Answer(None, "the judge gave no text", *tokens)


def _number(tokens: Any) -> int:
    return tokens if isinstance(tokens, int) and tokens > 0 else 0
