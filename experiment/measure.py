"""Measures models: every condition is one command of `evaluation`, and one vLLM server serves all conditions of a model."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from experiment.declaration import Declaration
from experiment.running import Services
from quickstart.training import run_child
from research_rl.inference.engine import vllm_server


@dataclass(frozen=True)
class Condition:
    """One measurement: name, pipeline of FlashRAG (empty: the method's own rollouts), service, and settings that differ."""

    name: str
    baseline: str = ""
    service: str = "index"  # or the name of a control
    max_searches: int | None = None
    method_options: Mapping[str, Any] = field(default_factory=dict)
    questions: str = "control_questions"  # name of a file in the data directory


START, TRAINED = (Condition(name, questions="questions") for name in ("start", "trained"))


def controls(names: Sequence[str]) -> list[Condition]:
    """Return the controls of the trained model."""
    return [Condition(f"control_{name}", service=name, max_searches=0 if name == "closed_book" else None) for name in names]


def baselines(declaration: Declaration) -> list[Condition]:
    """Return the baselines of the model before any training."""
    found = []
    for name in declaration.baselines:
        if name == "few_shot":
            found.append(Condition("baseline_few_shot", method_options={"prompt_file": declaration.few_shot_prompt}))
        else:
            found.append(Condition(f"baseline_{name}", baseline=name))
    return found


def supervised_baseline(name: str) -> Condition:
    """Return the measurement of a model that was trained on the answers to a baseline's prompts."""
    return Condition(f"baseline_supervised_{name}", baseline=name)


class Measurement:
    """Measures an experiment's models; writes `measured/NAME.jsonl` (a line per question) and `measured/NAME.summary.json`."""

    def __init__(self, declaration: Declaration, run_dir: Path, services: Services, console: Console) -> None:
        self._declaration, self._run_dir, self._services, self._console = declaration, run_dir, services, console

    def measure(self, model: Path, conditions: Sequence[Condition]) -> None:
        """Measure a model under the conditions that are not measured yet.

        Raises:
            ConfigError, GenerationError, RetrievalError: a server is unavailable, or a command fails. Called again, it continues.
        """
        left = [one for one in conditions if not self._summary(one).is_file()]
        if not left:
            return
        self._services.url()
        self._console.print(f"starting vLLM for {model}", highlight=False)
        options, log = shlex.split(self._declaration.serve_options), self._run_dir / "logs" / "vllm.log"
        with vllm_server(str(model), "measured", options, log) as url:
            for condition in left:
                self._one(model, url, condition)

    def _one(self, model: Path, url: str, condition: Condition) -> None:
        out = self._run_dir / "measured" / f"{condition.name}.jsonl"
        total = sum(1 for _ in self._questions(condition).open(encoding="utf-8"))

        def told() -> str:
            done = sum(1 for _ in out.open(encoding="utf-8")) if out.exists() else 0
            return f"{condition.name}: {done} of {total} questions"

        with self._services.control(condition.service) as service:
            command = self._command(model, url, service, condition, out)
            run_child(command, self._run_dir / "logs" / f"{condition.name}.log", self._console, told)
        figures = json.loads(self._summary(condition).read_text(encoding="utf-8"))
        self._console.print(
            f"{condition.name:24s} EM {figures['em']:.3f}  F1 {figures['f1']:.3f}  searches {figures['searches']:.2f}  "
            f"({figures['n']} questions, {figures['last_run']['seconds']:.0f} s)",
            highlight=False,
        )

    def _command(self, model: Path, url: str, service: str, condition: Condition, out: Path) -> list[str]:
        one = self._declaration
        command = [sys.executable, "-m", "evaluation", "baseline" if condition.baseline else "run"]
        command += [condition.baseline] if condition.baseline else []
        command += ["--questions", str(self._questions(condition)), "--out", str(out)]
        command += ["--model-url", url, "--model", "measured"]
        command += ["--tokenizer", str(model), "--retrieval-url", service, "--top-k", str(one.top_k)]
        command += ["--concurrency", str(one.concurrency)]
        if condition.baseline:
            return command
        searches = one.max_searches if condition.max_searches is None else condition.max_searches
        return [
            *command, "--method", one.method, "--method-options", json.dumps({**one.method_options, **condition.method_options}),
            "--max-searches", str(searches), "--max-turn-tokens", str(one.max_turn_tokens),
            "--response-tokens", str(one.response_tokens),
            *(("--max-observation-tokens", str(one.max_observation_tokens)) if one.max_observation_tokens else ()),
        ]  # fmt: skip  # a command line

    def _questions(self, condition: Condition) -> Path:
        return self._run_dir / "data" / f"{condition.questions}.jsonl"

    def _summary(self, condition: Condition) -> Path:
        return self._run_dir / "measured" / f"{condition.name}.summary.json"
