"""Questions to an OpenAI-compatible server: several at a time, within a budget."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import openai

from spanloop_trainer.config.rewards import Judge
from spanloop_trainer.errors import JudgeError
from spanloop_trainer.transform.rewards.judge.prompts import Question

# The client's own retries, with growing pauses: connection, 408, 409, 429 and 5xx.
_RETRIES = 4
# To guess the cost before it is known: characters a token at least, and tokens of an answer at most, usually.
_CHARS_A_TOKEN = 3
_ANSWER_TOKENS = 400
# Failed answers in a row: a server that is down for good would take hours to fail all.
_GIVE_UP = 20


class Answer(NamedTuple):
    """What the server said.

    Attributes:
        text: None: it gave none.
        why: why not.
        prompt_tokens, completion_tokens: as the server counted.
    """

    text: str | None
    why: str
    prompt_tokens: int
    completion_tokens: int


class Asker:
    """One build's conversation with the judge.

    Attributes:
        spent: so far, in the currency of the prices.
        asked: requests that were answered.
    """

    def __init__(self, settings: Judge) -> None:
        self._settings = settings
        self._client = openai.OpenAI(
            base_url=settings.base_url,
            # Servers of one's own ask for none.
            api_key=os.environ.get(settings.api_key_env) or "none",
            timeout=settings.timeout_s,
            max_retries=_RETRIES,
        )
        self._structured = True
        self._failures = 0  # in a row
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
                        number, _ = waiting.pop(future)
                        answer = future.result()
                        self.asked += 1
                        self.spent += self.cost(answer.prompt_tokens, answer.completion_tokens)
                        answered(number, answer)
                        self._failures = 0 if answer.text else self._failures + 1
                        if self._failures >= _GIVE_UP:
                            raise JudgeError(
                                f"{_GIVE_UP} requests in a row failed at {self._settings.base_url}: {answer.why}",
                                "build again when it is well; what it judged so far is kept",
                            )
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return place

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """In the currency of the prices."""
        settings = self._settings
        return (prompt_tokens * settings.price_input + completion_tokens * settings.price_output) / 1e6

    def _guess(self, question: Question) -> float:
        chars = sum(len(message["content"]) for message in question.messages)
        return self.cost(math.ceil(chars / _CHARS_A_TOKEN), _ANSWER_TOKENS)

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
                f"the judge at {settings.base_url} cannot be reached: {error.__cause__ or error}",
                "check `base_url` of [judge]; what it judged so far is kept, and building again goes on from there",
            ) from error
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            unset = "" if os.environ.get(settings.api_key_env) else f" ({settings.api_key_env} is not set)"
            raise JudgeError(
                f"the judge at {settings.base_url} refused {settings.model!r}: {error.message}{unset}",
                "check `model`, `api_key_env` and `base_url` of [judge]; what it judged so far is kept",
            ) from error
        except openai.APIStatusError as error:
            return Answer(None, f"the judge's server answered {error.status_code}", 0, 0)

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
    usage = response.usage
    text = response.choices[0].message.content if response.choices else None
    return Answer(
        text,
        "" if text else "the judge gave no text",
        usage.prompt_tokens if usage else 0,
        usage.completion_tokens if usage else 0,
    )
