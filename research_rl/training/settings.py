"""The `research_rl:` section of a recipe, checked before anything is started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from research_rl.errors import ConfigError, nearest
from research_rl.judge import JudgeSettings
from research_rl.limits import check_number
from research_rl.methods import load_method
from research_rl.methods.base import Method
from research_rl.outages import longest_wait_s
from research_rl.retrieval import RetrievalSettings
from research_rl.scoring import rewards_answer
from research_rl.training.health import Health
from research_rl.training.memorisation import Memorisation, Memorises
from research_rl.training.stages import Until
from research_rl.types import Budget

OVERLONG = ("error", "drop")  # how to treat questions whose prompt is longer than data.max_prompt_length


@dataclass(frozen=True)
class Settings:
    """Method, budgets and retrieval of one run. Field names are the keys of the section; see `config/research_rl.yaml`."""

    method: str
    retrieval: Mapping[str, Any]
    method_options: Mapping[str, Any] = field(default_factory=dict)
    top_k: int = 5
    max_searches: int | None = None
    max_turn_tokens: int | None = None
    max_observation_tokens: int | None = None
    bos: bool | None = None
    overlong_prompts: str = "error"
    trained_rollouts: int | None = None
    coverage_sample: int = 100
    stalled_after_s: float | None = 1800.0
    max_tolerated_outage_s: float = 300.0
    max_failed_query_share: float = 0.05
    trajectory_dir: str | None = None
    trajectory_share: float = 1.0
    trajectory_max_gb: float | None = 20.0
    trajectory_logprobs: bool = False
    attempt: float = 0.0
    memorisation: Mapping[str, Any] = field(default_factory=dict)
    judge: Mapping[str, Any] = field(default_factory=dict)
    health: Mapping[str, Any] = field(default_factory=dict)
    stage: str = ""
    until: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def key_names(cls) -> list[str]:
        """Return the keys that the section may have."""
        return sorted(f.name for f in fields(cls))

    @classmethod
    def from_mapping(cls, section: Mapping[str, Any]) -> Settings:
        """Check and return the section.

        Raises:
            ConfigError: a key is unknown or missing, a number out of range, the method cannot be made, or a URL is malformed.
        """
        if unknown := sorted(set(section) - set(cls.key_names())):
            raise ConfigError(f"research_rl: unknown keys {unknown}. {nearest(unknown[0], cls.key_names())}")
        if missing := sorted({"method", "retrieval"} - set(section)):
            raise ConfigError(f"research_rl: missing keys {missing}")
        settings = cls(**section)
        settings._check_numbers()
        limit = settings.stalled_after_s
        if limit is not None and limit <= (waits := settings.longest_outage_s()):
            raise ConfigError(
                f"research_rl.stalled_after_s={limit:g} would end the run while it waits for the retrieval service, which may take "
                f"{waits:g} s (retrieval.deadline_s, or mcp.deadline_s, + max_tolerated_outage_s): raise it"
            )
        if not isinstance(settings.trajectory_logprobs, bool):
            raise ConfigError(f"research_rl.trajectory_logprobs must be true or false, got {settings.trajectory_logprobs!r}")
        if settings.overlong_prompts not in OVERLONG:
            raise ConfigError(
                f"research_rl.overlong_prompts={settings.overlong_prompts!r} is unknown; valid: {', '.join(OVERLONG)}"
            )
        if settings.bos not in (None, True, False):
            raise ConfigError(f"research_rl.bos must be true, false or null, got {settings.bos!r}")
        method = settings.load()
        if settings.memory().mu and not isinstance(method, Memorises):
            raise ConfigError(
                f"research_rl.memorisation: the method {method.name} cannot memorise (see research_rl.training.memorisation.Memorises)"
            )
        if (judge := settings.judging()) and limit is not None and limit <= judge.deadline_s:
            raise ConfigError(
                f"research_rl.stalled_after_s={limit:g} would end the run while it waits for the judge, which may take "
                f"{judge.deadline_s:g} s (judge.deadline_s): raise it"
            )
        Until.from_mapping(settings.until or {})
        Health.from_mapping(settings.health or {})
        settings.retrieval_urls()
        return settings

    def _check_numbers(self) -> None:
        def check(name: str, what: str, **bounds: Any) -> None:
            check_number(f"research_rl.{name}", getattr(self, name), what, **bounds)

        check("top_k", "a positive integer", low=1, whole=True)
        for name in ("max_searches", "max_turn_tokens", "max_observation_tokens"):
            low = 0 if name == "max_searches" else 1
            check(name, "a positive integer or null (max_searches may be 0)", low=low, whole=True, or_null=True)
        check("trained_rollouts", "at least 2, or null for all", low=2, whole=True, or_null=True)
        check("coverage_sample", "0 (none) or a number of questions", low=0, whole=True)
        check("stalled_after_s", "a number of seconds, or null for no limit", above=0, or_null=True)
        check("max_tolerated_outage_s", "a number of seconds", low=0)
        check("trajectory_max_gb", "a positive number of gigabytes, or null for no limit", above=0, or_null=True)
        for name in ("max_failed_query_share", "trajectory_share"):
            check(name, "a share, from 0 to 1", low=0, high=1)

    def load(self) -> Method:
        """Return the method."""
        return self._method

    @cached_property
    def _method(self) -> Method:
        return load_method(self.method, **dict(self.method_options or {}))

    def memory(self) -> Memorisation:
        """Return the checked section `memorisation`.

        Raises:
            ConfigError: see `Memorisation.from_mapping`.
        """
        return Memorisation.from_mapping(self.memorisation or {})

    def judging(self) -> JudgeSettings | None:
        """Return the checked section `judge`; None if there is no judge, or the reward does not depend on the answer.

        Raises:
            ConfigError: see `JudgeSettings.from_mapping` and `rewards_answer`.
        """
        return self._judge

    @cached_property
    def _judge(self) -> JudgeSettings | None:
        made = JudgeSettings.from_mapping(self.judge or {})
        return made if made.url is not None and rewards_answer(self._method) else None

    def budget(self, response_tokens: int) -> Budget:
        """Return the budget of one rollout."""
        return Budget(response_tokens, self.max_turn_tokens, self.max_searches, self.max_observation_tokens, self.top_k)

    def longest_outage_s(self) -> float:
        """Return for how many seconds the run may wait for a retrieval service, or a tool's own server, before it ends."""
        retrieval = self.retrieval_for("")
        waits = [tool.longest_wait_s for tool in self.load().tools.values()]
        return max(longest_wait_s(retrieval.deadline_s, retrieval.timeout_s), *waits, 0.0) + self.max_tolerated_outage_s

    def retrieval_urls(self) -> list[str]:
        """Return the addresses of all services (and of their indexes) that the run searches."""
        sources = ["", *(self.retrieval.get("url_by_data_source") or {})]
        return sorted({self.retrieval_for(source).address for source in sources})

    def retrieval_for(self, data_source: str) -> RetrievalSettings:
        """Return the service for questions of a data source: its own if `url_by_data_source` names one."""
        options = dict(self.retrieval)
        own = (options.pop("url_by_data_source", None) or {}).get(data_source)
        if own is not None:
            options |= {"url": own, "index": None, "index_id": None}  # name and id belong to the default service
        if not isinstance(options.get("url"), str):
            raise ConfigError(
                "research_rl.retrieval.url is missing: give the URL of a running retrieval service, http://host:port"
            )
        try:
            # a run that was queued for hours may start before its service: it waits until the deadline
            options.setdefault("unreachable_s", None)
            return RetrievalSettings(**options)
        except TypeError as error:
            valid = ", ".join([*(f.name for f in fields(RetrievalSettings)), "url_by_data_source"])
            raise ConfigError(f"research_rl.retrieval: {error}; valid: {valid}") from error


def check_sampling(temperature: float, top_p: float, top_k: int) -> None:
    """Refuse to train on samples that are not the policy's own.

    With top_p < 1 or a top-k, samples come from another distribution than the one whose log-probabilities the loss uses.

    Raises:
        ConfigError: the sampling is truncated or greedy.
    """
    if top_p != 1.0 or top_k not in (-1, 0) or temperature <= 0:
        raise ConfigError(
            f"training must sample from the policy itself: actor_rollout_ref.rollout needs top_p=1, top_k=-1 and temperature > 0, "
            f"got top_p={top_p}, top_k={top_k}, temperature={temperature}"
        )
