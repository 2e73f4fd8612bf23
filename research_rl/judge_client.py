"""The client of the judge, an OpenAI-compatible server. Each answer is judged once, and a missing verdict is reported, never guessed.

Connection errors, time-outs, the statuses in `outages.RETRIED_STATUS` and responses in another format are retried with jittered exponential
back-off until the deadline. After a reply without a verdict the judge is asked again, unless this was the third attempt or a later one. A
refusal of every request (a wrong key) ends the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx
import tenacity

from research_rl.errors import ConfigError, JudgeError, NoVerdictError
from research_rl.judge import JudgeSettings, has_word, key, prompt, verdict
from research_rl.judge_cache import Replies, Reply
from research_rl.metrics import exact_match, normalize_answer
from research_rl.outages import FOREIGN, RETRIED_STATUS, HttpClient, UnavailableError, whole_pairs

_REFUSES_ALL = {
    401: "Is the key right? It is read from the variable that research_rl.judge.api_key_env names",
    402: "The account of this key is empty",
    403: "Is this key allowed to use this model?",
    404: "Does the URL end in /v1, and does the server know the model by this name? Try: curl URL/models",
    405: "Does the URL end in /v1?",
}
_MOST_BYTES, _LONGEST_REPLY = 1_000_000, 20_000  # of an answer, and characters of a reply that are kept
_UNCLEAR_ATTEMPTS = 3  # at temperature 0, further attempts would hardly give another reply


class _Unclear(UnavailableError):
    """A reply without a verdict."""


class JudgeClient:
    """Asks one server. Make one per process; it serves one event loop."""

    def __init__(self, settings: JudgeSettings) -> None:
        """Raises:
        ConfigError: the environment variable that holds the key is not set.
        """
        self.settings = settings
        name = settings.api_key_env
        self._key = os.environ.get(name, "").strip() if name else ""
        if name and not self._key:
            raise ConfigError(
                f"research_rl.judge.api_key_env={name}: this variable is not set in the environment of this process. Set it where the run "
                "starts, and on a Ray cluster of several machines where `ray start` is run"
            )
        self._http = HttpClient(
            _MOST_BYTES,
            base_url=str(settings.url).rstrip("/"),
            timeout=settings.timeout_s,
            headers={"Authorization": f"Bearer {self._key}"} if self._key else None,
            limits=httpx.Limits(max_connections=settings.concurrency, max_keepalive_connections=settings.concurrency),
        )
        self._gate = asyncio.Semaphore(settings.concurrency)

    async def ask(self, text: str, must_be_clear: bool = True) -> Reply:
        """Return the judge's reply to a prompt; `must_be_clear`: only a reply with a verdict counts.

        Raises:
            NoVerdictError: no such reply before the deadline (which includes waiting for its turn), or the server refuses this prompt.
            JudgeError: it refuses every request.
        """
        settings, failure = self.settings, "it waited for its turn: raise research_rl.judge.concurrency or deadline_s"
        attempts, started = 0, time.monotonic()
        with contextlib.suppress(TimeoutError, UnavailableError):
            async with asyncio.timeout(settings.deadline_s):
                async for attempt in tenacity.AsyncRetrying(
                    retry=tenacity.retry_if_exception_type(UnavailableError),
                    stop=_gives_up,
                    wait=tenacity.wait_random_exponential(multiplier=0.2, max=5.0),
                    reraise=True,
                ):
                    with attempt:
                        async with self._gate:
                            attempts, failure = attempts + 1, failure if attempts else "no answer at all"
                            try:
                                reply = await self._post(text)
                                if must_be_clear and verdict(reply.text) is None:
                                    raise _Unclear(f"a reply without a verdict: {self._clean(reply.text)!r}")
                            except UnavailableError as error:
                                failure = str(error)
                                raise
                            return reply
        raise NoVerdictError(
            f"the judge {settings.model} at {settings.url} gave no verdict: {attempts} attempts in {time.monotonic() - started:.1f} s "
            f"(deadline {settings.deadline_s:g} s), the last failure was: {failure}"
        )

    async def _post(self, text: str) -> Reply:
        settings = self.settings
        body: dict[str, Any] = {
            "model": settings.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": 0.0,
            "max_tokens": settings.max_tokens,
            **settings.body,
        }
        try:
            response = await self._http.post(
                "/chat/completions", json={name: value for name, value in body.items() if value is not None}
            )
        except httpx.RequestError as error:
            raise UnavailableError(f"{type(error).__name__}: {error}") from error
        status, told = response.status_code, self._clean(response.text)
        if status in RETRIED_STATUS:
            raise UnavailableError(f"HTTP {status}: {told}")
        where = f"the judge {settings.model} at {settings.url}"
        if remedy := "The URL redirects: give the one it leads to" if 300 <= status < 400 else _REFUSES_ALL.get(status):
            raise JudgeError(f"{where} refuses with HTTP {status}: {told}. {remedy}")
        if status != 200:
            raise NoVerdictError(f"{where} refuses this answer with HTTP {status}: {told}")
        try:
            found = response.json()
            said = found["choices"][0]["message"]["content"] or ""
            usage = found.get("usage") or {}
            used = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
            return Reply(whole_pairs(str(said)[-_LONGEST_REPLY:]), *used)  # the verdict is its last word
        except FOREIGN as error:
            raise UnavailableError(f"a response that is no chat completion: {told!r}") from error

    def _clean(self, text: str) -> str:
        """Return the beginning of a server's message, without the key: some servers repeat a key that they refuse."""
        return (text.replace(self._key, "***") if self._key else text)[:300]

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> JudgeClient:
        return self

    async def __aexit__(self, *_: Any) -> None:
        with contextlib.suppress(httpx.HTTPError):
            await self.close()


def _gives_up(state: tenacity.RetryCallState) -> bool:
    unclear = state.outcome is not None and isinstance(state.outcome.exception(), _Unclear)
    return unclear and state.attempt_number >= _UNCLEAR_ATTEMPTS


@dataclass(frozen=True)
class Judgement:
    """The judge's verdict on one answer. `right` is None if there is no verdict; `said`: the judge's reply, or why there is no verdict.

    `asked`: a request was made for this answer; `cached`: the verdict was known, or another rollout was asking for it. `seconds`: how long
    this rollout waited.
    """

    right: bool | None
    said: str = ""
    asked: bool = False
    cached: bool = False
    seconds: float = 0.0

    @property
    def score(self) -> float | None:
        """1.0, 0.0, or None without a verdict."""
        return None if self.right is None else float(self.right)

    def figures(self) -> dict[str, float]:
        """Return what is logged beside a rollout's other figures."""
        return {
            "judge/asked": float(self.asked),
            "judge/cached": float(self.cached),
            "judge/fallback": float(self.right is None),
            "judge/seconds": self.seconds,
        }


class Judge:
    """Judges answers. The same answer is judged once, however many rollouts give it, at the same time or later."""

    def __init__(self, settings: JudgeSettings) -> None:
        """Raises:
        ConfigError: see `JudgeClient` and `JudgeSettings.template`.
        """
        self.settings, self._template = settings, settings.template()
        self._client, self._replies = JudgeClient(settings), Replies(settings.cache)
        self._under_way: dict[str, asyncio.Task[Reply]] = {}

    async def judge(self, question: str, golden_answers: Sequence[str], answer: str) -> Judgement:
        """Return whether an answer is right. An answer without a letter or digit is wrong, and with `ask_when: not_exact` an exact match is
        right: neither needs a request.

        Raises:
            JudgeError: the server refuses every request; or, with `fallback: stop`, there is no verdict on this answer.
        """
        settings, answer = self.settings, answer.strip()
        if not answer or (not has_word(answer) and all(map(has_word, golden_answers))):
            return Judgement(False)
        # an answer that is normalised to nothing ("the") would match every golden answer that is, too
        if settings.ask_when == "not_exact" and normalize_answer(answer) and exact_match(answer, golden_answers):
            return Judgement(True)
        text = prompt(self._template, question, golden_answers, answer)
        name = key(settings.model, text)
        if (reply := self._replies.get(name)) and (right := verdict(reply.text)) is not None:
            return Judgement(right, reply.text, cached=True)
        started, first = time.monotonic(), name not in self._under_way
        if first:
            task = self._under_way[name] = asyncio.create_task(self._ask(name, text))
            task.add_done_callback(lambda _: self._under_way.pop(name))
        try:
            reply = await asyncio.shield(
                self._under_way[name]
            )  # if one rollout is cancelled, the others still wait for the reply
        except NoVerdictError as failure:
            if settings.fallback == "stop":
                raise JudgeError(f"{failure}. research_rl.judge.fallback=stop ends the run there") from failure
            return Judgement(None, str(failure), asked=first, seconds=time.monotonic() - started)
        return Judgement(verdict(reply.text), reply.text, first, not first, time.monotonic() - started)

    async def _ask(self, name: str, text: str) -> Reply:
        reply = await self._client.ask(text)
        self._replies.put(name, reply)
        return reply

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


_KNOWN = (  # a wrong and a right answer to a question whose answer everybody knows
    ("Berlin", False),
    ("the city of Paris", True),
)


async def try_out(settings: JudgeSettings, wait_s: float) -> float:
    """Ask for two verdicts that are known; return the seconds that both took, one after the other.

    Raises:
        JudgeError: the judge does not answer within `wait_s` each, or refuses.
        ConfigError: it gives a wrong verdict.
    """
    quick = replace(settings, ask_when="always", fallback="stop", cache=0, deadline_s=min(wait_s, settings.deadline_s))
    judge, started = Judge(quick), time.monotonic()
    try:
        for answer, right in _KNOWN:
            found = await judge.judge("What is the capital of France?", ["Paris"], answer)
            if found.right is not right:
                called = "right" if found.right else "wrong"
                raise ConfigError(
                    f"the judge {settings.model} at {settings.url} calls {answer!r} {called} where 'Paris' is asked for (it said "
                    f"{found.said!r}). Take another judge or prompt (research_rl.judge.model, prompt_file)"
                )
    finally:
        await judge.close()
    return time.monotonic() - started
