"""The declaration of an experiment: its YAML file, checked before anything starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from research_rl.errors import ConfigError
from research_rl.methods import load_method
from research_rl.training.recipe import flat

Control = Literal["no_evidence", "random", "empty", "closed_book"]
Baseline = Literal["direct", "naive_rag", "few_shot"]
SupervisedBaseline = Literal["direct", "naive_rag"]
COUNTS = ("top_k", "max_searches", "max_turn_tokens", "response_tokens", "concurrency", "answerable_searches")
OPTIONAL_COUNTS = ("max_observation_tokens", "answerable_at", "control_questions")


@dataclass(frozen=True)
class QuestionSet:
    """Files of one set, in FlashRAG's form; a set without `train` is measured only."""

    test: str
    train: str | None = None
    questions: int | None = None  # of the test file, the first in the order of sha1(id); null: all
    # share of the training questions, as in `data_preprocess mix`; for every set with `train`, or for none
    share: float | None = None


@dataclass(frozen=True)
class ColdStart:
    """The cold start: demonstrations of `sets` (set → how many), made by `data_preprocess demonstrations`, and the recipe."""

    recipe: str
    demonstrations: Mapping[str, int]
    options: Sequence[str] = ()  # further options of `data_preprocess demonstrations`
    overrides: Sequence[str] = ()  # Hydra overrides of the recipe


@dataclass(frozen=True)
class Declaration:
    """An experiment. Field names are the keys of the YAML file."""

    sets: Mapping[str, QuestionSet]
    passages: Sequence[str]  # corpora, joined to one
    model: str = "smollm2-135m-instruct"  # or a directory, or a hub id
    chat_template: str | None = None  # a file, to replace the model's own template (which may not support tools)
    method: str = "research"
    method_options: Mapping[str, Any] = field(default_factory=dict)
    top_k: int = 2
    max_searches: int = 3
    max_turn_tokens: int = 128
    response_tokens: int = 640
    max_observation_tokens: int | None = None  # of a search's passages, which are shortened to fit; null: no limit
    cold_start: ColdStart | None = None  # null: RL starts from the model as it is
    train: str | None = None  # the recipe of the reinforcement learning; null: none
    # train on questions with an answer among the first N passages for the question itself; null: on all
    answerable_at: int | None = None
    answerable_searches: int = 1  # searches that look for it; further ones search for evidence that is named by then
    controls: Sequence[Control] = get_args(Control)
    baselines: Sequence[Baseline] = get_args(Baseline)  # of the model before any training
    supervised_baselines: Sequence[SupervisedBaseline] = ()  # trained on the cold start's questions, with its recipe
    control_questions: int | None = None  # of each set, the first ones, for controls and baselines; null: all
    few_shot_prompt: str | None = None  # file of the prompt of the baseline `few_shot`
    serve_options: str = "--max-model-len 2048"  # options of vLLM when a model is measured
    concurrency: int = 64  # questions under way when a model is measured

    def settings(self) -> dict[str, Any]:
        """Return the declaration as one flat mapping, to be saved in the run's directory."""
        return flat(asdict(self))

    def defaults(self) -> dict[str, Any]:
        """Return the default of every key of `settings` that has one."""
        found = _defaults(self) | {"sets": {name: _defaults(one) for name, one in self.sets.items()}}
        if self.cold_start:
            found["cold_start"] = _defaults(self.cold_start)
        return flat(found)


def read_declaration(path: Path, changes: Sequence[str] = ()) -> Declaration:
    """Return the experiment of a file; `changes` are ``a.b=VALUE`` with the value in YAML.

    If a file's `base` names another file beside it, it inherits the keys of that file that it does not set itself.

    Raises:
        ConfigError: no such file, an unknown or missing key, or an invalid value.
    """
    content = _read(path)
    try:
        for change in changes:
            _change(content, change)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set: no YAML: {error}") from None
    found: dict[str, Any] = dict(_checked(Declaration, content, str(path)))
    found["sets"] = {name: _make(QuestionSet, body, f"sets.{name}") for name, body in _mapping(found["sets"], "sets").items()}
    if found.get("cold_start") is not None:
        found["cold_start"] = _make(ColdStart, found["cold_start"], "cold_start")
    return _sound(Declaration(**found))


def check_files(declaration: Declaration, data: Path) -> None:
    """Check that all files that the experiment names exist.

    Raises:
        ConfigError: names every file that is missing.
    """
    names = [name for one in declaration.sets.values() for name in (one.test, one.train) if name]
    wanted = [data / name for name in (*names, *declaration.passages)]
    recipes = (
        declaration.cold_start.recipe if declaration.cold_start else None,
        declaration.train,
        declaration.few_shot_prompt,
        declaration.chat_template,
    )
    wanted += [Path(name) for name in recipes if name]
    if missing := [str(path) for path in wanted if not path.exists()]:
        raise ConfigError(
            f"missing: {', '.join(missing)}. Questions and passages are looked for in the directory DATA, here {data}"
        )


def _defaults(one: Any) -> dict[str, Any]:
    """Return the defaults of a dataclass's fields, where they have one."""
    return {
        item.name: item.default if item.default_factory is MISSING else item.default_factory()
        for item in fields(one)
        if not _is_needed(item)
    }


def _is_needed(item: Field[Any]) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


def _read(path: Path, above: Sequence[Path] = ()) -> Any:
    """Return a file's keys, merged over those of its base."""
    if not path.is_file():
        raise ConfigError(f"no experiment {path}: give a YAML file, for example recipes/wikipedia/experiment.yaml")
    if path in above:
        raise ConfigError(f"{path} is its own base, by way of {', '.join(map(str, above))}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {error}") from None
    if not isinstance(content, dict) or "base" not in content:
        return content
    base = content.pop("base")
    return {**_mapping(_read(path.parent / str(base), (*above, path)), str(base)), **content}


def _change(content: Any, change: str) -> None:
    key, equals, value = change.partition("=")
    *parents, last = key.split(".")
    for name in parents:
        content = content.setdefault(name, {}) if isinstance(content, dict) else None
    if not equals or not isinstance(content, dict):
        raise ConfigError(
            f"--set takes KEY=VALUE with a key of the experiment, for example sets.nq.questions=40; got {change!r}"
        )
    content[last] = yaml.safe_load(value)


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: expected a mapping, got {value!r}")
    return value


def _checked(kind: Any, body: Any, where: str) -> Mapping[str, Any]:
    body = _mapping(body, where)
    valid = [one.name for one in fields(kind)]
    if unknown := sorted(set(map(str, body)) - set(valid)):
        raise ConfigError(f"{where}: unknown keys {unknown}; valid: {', '.join(valid)}")
    needed = [one.name for one in fields(kind) if _is_needed(one)]
    if missing := [name for name in needed if body.get(name) is None]:
        raise ConfigError(f"{where}: missing keys {missing}")
    return body


def _make(kind: Any, body: Any, where: str) -> Any:
    return body if is_dataclass(body) else kind(**_checked(kind, body, where))


def _sound(one: Declaration) -> Declaration:
    """Check the values of an experiment, and return it.

    Raises:
        ConfigError: a value is invalid.
    """
    load_method(one.method, **one.method_options)
    for name in COUNTS:
        _count(getattr(one, name), name)
    for name in OPTIONAL_COUNTS:
        if getattr(one, name) is not None:
            _count(getattr(one, name), name)
    lists = (("controls", Control), ("baselines", Baseline), ("supervised_baselines", SupervisedBaseline))
    for name, valid in lists:
        given = getattr(one, name)
        if unknown := sorted(set(given) - set(get_args(valid))):
            raise ConfigError(f"{name}: unknown {unknown}; valid: {', '.join(get_args(valid))}")
    if not one.sets or not one.passages:
        raise ConfigError("sets and passages: at least one of each is needed")
    for name, found in one.sets.items():
        if found.questions is not None:
            _count(found.questions, f"sets.{name}.questions")
    trained = {name for name, found in one.sets.items() if found.train}
    if len({found.share is None for name, found in one.sets.items() if name in trained}) > 1:
        raise ConfigError(f"sets: give a share to every set with train questions ({', '.join(sorted(trained))}), or to none")
    if (one.train or one.cold_start) and not trained:
        raise ConfigError("sets: no set has train questions, but the experiment has train or cold_start")
    if one.cold_start:
        for name, count in _mapping(one.cold_start.demonstrations, "cold_start.demonstrations").items():
            _count(count, f"cold_start.demonstrations.{name}")
        if unknown := sorted(set(one.cold_start.demonstrations) - trained):
            raise ConfigError(
                f"cold_start.demonstrations: {unknown} have no train questions; valid: {', '.join(sorted(trained))}"
            )
    if one.supervised_baselines and not one.cold_start:
        raise ConfigError(
            "supervised_baselines are trained with the recipe of the cold start, but the experiment has no cold_start"
        )
    if "few_shot" in one.baselines and not one.few_shot_prompt:
        raise ConfigError(
            "the baseline few_shot needs few_shot_prompt, a file with worked examples; or leave it out of baselines"
        )
    return one


def _count(value: Any, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{where} must be a whole number of at least 1, got {value!r}")
