"""A language model as judge of final answers: its settings, its prompt, and how its verdict is read. Evaluation and reward share this.

The criteria are those of R1-Searcher (arXiv:2503.05592) and of ReSearch (arXiv:2503.19470), reworded.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from string import Template
from typing import Any
from urllib.parse import urlsplit

from research_rl.errors import ConfigError, nearest
from research_rl.methods.base import known
from research_rl.methods.templates import Prompt, load_template

CRITERIA = ("r1_searcher", "research")
MAX_ANSWER = (
    2_000  # characters of an answer that the judge is shown, so that an endless answer does not get the request refused
)
_PLACEHOLDERS = {"question", "golden_answers", "prediction"}
_TRUE, _FALSE = {"true", "correct"}, {"false", "incorrect"}
_NEGATION = re.compile(r"\b(?:not|never|neither|nor|cannot)\b|n['’]t\b")
# written as escapes: `<`, `>`, `[` and `]`, which control tokens and the marks of prompts consist of, and characters that end a line
_BROKEN = frozenset("<>[]")
_ENDS_LINE = frozenset({"Cc", "Cs", "Zl", "Zp"})


@dataclass(frozen=True)
class JudgeSettings:
    """The section `research_rl.judge`. Times are seconds; `config/research_rl.yaml` says what each key is."""

    url: str | None = None  # None: no judge
    model: str = ""
    prompt: Prompt = None
    prompt_file: str | None = None
    replaces: str = "answer"
    ask_when: str = "not_exact"
    fallback: str = "rule"
    max_fallback_share: float = 0.1
    api_key_env: str | None = None
    concurrency: int = 16
    timeout_s: float = 30.0
    deadline_s: float = 120.0
    max_tokens: int = 16
    body: Mapping[str, Any] = field(default_factory=dict)
    cache: int | str = 100_000

    @classmethod
    def from_mapping(cls, section: Mapping[str, Any]) -> JudgeSettings:
        """Check and return the section.

        Raises:
            ConfigError: a key is unknown, a value cannot work, the model is missing, or the prompt lacks a placeholder.
        """
        valid = [one.name for one in fields(cls)]
        if unknown := sorted(set(section) - set(valid)):
            raise ConfigError(f"research_rl.judge: unknown keys {unknown}. {nearest(unknown[0], valid)}")
        made = cls(**{name: value for name, value in section.items() if not (name == "body" and value is None)})
        for option, value, choices in (
            ("replaces", made.replaces, ("answer",)),
            ("ask_when", made.ask_when, ("not_exact", "always")),
            ("fallback", made.fallback, ("rule", "stop")),
        ):
            known("research_rl.judge", option, value, choices)
        for name in ("concurrency", "max_tokens"):
            _positive(name, getattr(made, name), whole=True)
        for name in ("timeout_s", "deadline_s"):
            _positive(name, getattr(made, name))
        if not _number(made.max_fallback_share) or not 0 <= made.max_fallback_share <= 1:
            raise ConfigError(
                f"research_rl.judge.max_fallback_share must be a share, from 0 to 1, got {made.max_fallback_share!r}"
            )
        whole = isinstance(made.cache, int) and not isinstance(made.cache, bool) and made.cache >= 0
        if not whole and not (isinstance(made.cache, str) and made.cache):
            raise ConfigError(
                f"research_rl.judge.cache must be a number of verdicts kept in memory, or a file's path, got {made.cache!r}"
            )
        if not isinstance(made.body, Mapping):
            raise ConfigError(f"research_rl.judge.body must be a mapping, got {made.body!r}")
        if made.url is not None:
            _check_url(made.url)
            if not made.model:
                raise ConfigError("research_rl.judge.model is missing: the name under which the server knows the judge")
        made.template()
        return made

    def template(self) -> Template:
        """Return the prompt's template.

        Raises:
            ConfigError: its file is not there, or it lacks a placeholder.
        """
        template = load_template("judge_r1_searcher", self.prompt, self.prompt_file, None)
        if missing := sorted(_PLACEHOLDERS - set(template.get_identifiers())):
            raise ConfigError(f"the judge's prompt must contain {', '.join(f'${name}' for name in missing)}")
        return template


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _positive(name: str, value: Any, whole: bool = False) -> None:
    if not _number(value) or value <= 0 or (whole and not isinstance(value, int)):
        raise ConfigError(f"research_rl.judge.{name} must be a positive {'integer' if whole else 'number'}, got {value!r}")


def _check_url(url: str) -> None:
    parts = urlsplit(str(url))
    if parts.username or parts.password or parts.query:  # the message must not repeat the URL
        raise ConfigError(
            "research_rl.judge.url must not contain a user, password or query, because settings are logged: "
            "put the key into the environment, and name the variable in research_rl.judge.api_key_env"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"research_rl.judge.url must be the base URL of a server, http://host:port/v1, got {url!r}")


def criterion(name: str) -> Template:
    """Return the prompt's template of one of CRITERIA."""
    return load_template(f"judge_{name}", placeholder=None)


def prompt(template: Template, question: str, golden_answers: Sequence[str], prediction: str) -> str:
    """Return the judge's prompt. Each part is a JSON string on one line, so that a prediction cannot leave its quotes or its line.

    The prediction is cut to MAX_ANSWER characters.
    """
    golden = ", ".join(map(quoted, golden_answers))
    return template.substitute(
        question=quoted(question), golden_answers=f"[{golden}]", prediction=quoted(prediction[:MAX_ANSWER])
    )


def has_word(text: str) -> bool:
    """Return whether a text has a letter or a digit. Judges accept ":" and the like as right (arXiv:2507.08794)."""
    return any(one.isalnum() for one in text)


def quoted(text: str) -> str:
    r"""Return a text as a JSON string on one line, with escapes (`\u003c`) for `<`, `>`, `[`, `]` and what Unicode folds into them.

    So it contains no mark of the prompt, no control token and no turn of a chat template.
    """
    return "".join(f"\\u{ord(one):04x}" if _is_broken(one) else one for one in json.dumps(text, ensure_ascii=False))


def _is_broken(one: str) -> bool:
    return (
        one in _BROKEN
        if one.isascii() and one.isprintable()
        else (unicodedata.category(one) in _ENDS_LINE or not _BROKEN.isdisjoint(unicodedata.normalize("NFKC", one)))
    )


def verdict(text: str) -> bool | None:
    """Return a judge's verdict: its last "true", "false", "correct" or "incorrect", negated by a "not" before it in the same clause.

    None: the reply has none of these words.
    """
    for clause in reversed(re.split(r"[.,:;!?\n]", text.lower())):
        found = [match for match in re.finditer(r"[a-z]+", clause) if match[0] in _TRUE | _FALSE]
        if found:
            denied = bool(_NEGATION.search(clause[: found[-1].start()]))
            return (found[-1][0] in _TRUE) is not denied
    return None


def key(model: str, text: str) -> str:
    """Return the key of a verdict in the cache: the hash of the model's name and of the whole prompt."""
    return hashlib.sha256(f"{model}\n{text}".encode()).hexdigest()


def template_hash(template: Template) -> str:
    """Return the SHA-256 of a prompt's template."""
    return hashlib.sha256(template.template.encode()).hexdigest()
