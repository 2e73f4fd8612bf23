"""The steps of an experiment, in order, and what each one does."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from experiment.data import prepare
from experiment.declaration import Declaration
from experiment.measure import START, TRAINED, Measurement, baselines, controls, supervised_baseline
from experiment.model import trained_model, with_template
from experiment.report import write_report
from experiment.running import Services, Step, last_metrics
from experiment.summary import summarize_run
from quickstart.progress import Phases
from quickstart.training import follow_job, halted_training, run_child
from research_rl.files import write_text
from research_rl.questions import read_questions
from research_rl.recall import answer_recall
from research_rl.retrieval import RetrievalClient, RetrievalSettings
from research_rl.training.jobs import Job
from research_rl.training.recipe import hydra_value
from research_rl.training.train import train as run_recipe

LOGGERS = "trainer.logger=[console,file,tensorboard]"  # progress is read from the file


class Pipeline:
    """An experiment in its directory. Every public method but `steps` is a step, which may be killed at any moment and called again."""

    def __init__(
        self, declaration: Declaration, data: Path, run_dir: Path, seed: int, port: int, overrides: Sequence[str], console: Console
    ) -> None:  # fmt: skip  # many parameters
        """`overrides`: Hydra overrides of the reinforcement learning."""
        self.declaration, self.data, self.run_dir, self.seed, self.overrides = declaration, data, run_dir, seed, list(overrides)
        self.console, self.phases = console, Phases(run_dir / "phases.json")
        self.services = Services(run_dir, port, console)
        self.measurement = Measurement(declaration, run_dir, self.services, console)

    def steps(self) -> list[Step]:
        """Return the steps that the declaration asks for."""
        one, out = self.declaration, self.run_dir
        steps = [
            Step("model", "The model", out / "model.json", self.model),
            Step("data", "Questions and passages", out / "data" / "counts.json", self.prepare_data),
            Step("index", "The index", out / "indexed.json", self.index),
        ]
        if one.cold_start:
            steps.append(Step("demonstrations", "Demonstrations", out / "demonstrations.json", self.demonstrations))
            steps.append(Step("cold_start", "Cold start", out / "cold_start.json", self.cold_start))
        steps.append(Step("start", "Measure the starting model", out / "measured" / "bare_question.json", self.start))
        if one.train:
            if one.answerable_at:
                done = out / "answerable" / "train.card.json"
                steps.append(Step("answerable", "Questions whose answer can be found", done, self.answerable))
            steps.append(Step("train", "Reinforcement learning", out / "trained.json", self.train))
            steps.append(Step("trained", "Measure the trained model", out / "measured" / "trained.done", self.trained))
        if one.baselines:
            steps.append(
                Step("baselines", "Baselines of the untrained model", out / "measured" / "baselines.done", self.baselines)
            )
        for name in one.supervised_baselines:
            told, done = f"The baseline {name} after supervised training", out / "measured" / f"supervised_{name}.done"
            steps.append(Step(f"supervised_{name}", told, done, partial(self.supervised, name)))
        steps.append(Step("report", "Summary and report", out / "summary.json", self.report))
        return steps

    def model(self) -> None:
        """Fetch the model."""
        log = self.run_dir / "logs" / "model.log"
        command = [sys.executable, "-m", "experiment.model", self.declaration.model, str(self.run_dir / "model")]
        run_child(command, log, self.console, lambda: "fetching the model")
        found = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
        if self.declaration.chat_template:
            found["path"] = str(
                with_template(Path(found["path"]), self.run_dir / "model_with_template", self.declaration.chat_template)
            )
        self._write("model.json", found)
        self.console.print(f"{found['path']} ({found['source']})", highlight=False)

    def prepare_data(self) -> None:
        """Make questions, training set and corpora."""
        with self.console.status("reading questions and passages"):
            counts = prepare(self.declaration, self.data, self.run_dir / "data", self.seed)
        self._write("data/counts.json", counts)
        self.console.print(counts, highlight=False)

    def index(self) -> None:
        """Index the passages, and those of the control without evidence."""
        names = {"index": "corpus", "index_no_evidence": "corpus_no_evidence"}
        for name, corpus in names.items():
            file, out = self.run_dir / "data" / f"{corpus}.jsonl", self.run_dir / name
            if not file.is_file() or (out / "manifest.json").is_file():
                continue
            command = [sys.executable, "-m", "rag_serving.cli", "index", "--corpus", str(file), "--out", str(out)]
            run_child(command, self.run_dir / "logs" / "index.log", self.console, lambda corpus=corpus: f"indexing {corpus}")
        self._write("indexed.json", list(names))

    def demonstrations(self) -> None:
        """Make demonstrations of every set, from its training questions and the service."""
        one, start_of = self.declaration, self.declaration.cold_start
        assert start_of is not None
        out = self.run_dir / "demonstrations"
        command = [
            *(sys.executable, "-m", "data_preprocess", "demonstrations", "--out", str(out), "--seed", str(self.seed)),
            *("--questions", *(str(self.run_dir / "data" / name / "train.jsonl") for name in start_of.demonstrations)),
            *("--rows", *map(str, start_of.demonstrations.values())),
            *("--passages", str(self.run_dir / "data" / "corpus.jsonl")),  # for the titles of supporting passages that are named by id
            *("--method", one.method, "--method-options", json.dumps(one.method_options), "--retrieval-url", self.services.url()),
            *("--top-k", str(one.top_k), "--max-searches", str(one.max_searches)),
            # no row is longer than a rollout may be: otherwise it would demonstrate what is cut off in training
            *("--tokenizer", str(self._path("model.json")), "--max-tokens", str(one.response_tokens)),
            *(("--max-observation-tokens", str(one.max_observation_tokens)) if one.max_observation_tokens else ()),
            *start_of.options,
        ]  # fmt: skip  # a command line
        run_child(command, self.run_dir / "logs" / "demonstrations.log", self.console, lambda: "making demonstrations")
        card = json.loads((out / "card.json").read_text(encoding="utf-8"))
        self._write("demonstrations.json", card)
        self.console.print({name: card[name] for name in ("rows", "searches", "skipped")}, highlight=False)

    def cold_start(self) -> None:
        """Train the model on the demonstrations."""
        self._supervise(self.run_dir / "demonstrations" / "train.parquet", "cold_start")

    def start(self) -> None:
        """Measure the model that reinforcement learning starts from, and what a search for the question itself finds."""
        self.measurement.measure(self._path(self._start_record()), [START])
        questions = list(read_questions(self.run_dir / "data" / "questions.jsonl"))

        async def ask() -> list[int]:
            async with RetrievalClient(RetrievalSettings(self.services.url())) as client:
                return await answer_recall(questions, client, self.declaration.top_k)

        ranks = asyncio.run(ask())
        self._write("measured/bare_question.json", {row["id"]: rank for row, rank in zip(questions, ranks, strict=True)})

    def answerable(self) -> None:
        """Choose the training questions whose answer the service can find."""
        out, top_k = self.run_dir / "answerable", str(self.declaration.answerable_at)
        command = [
            *(sys.executable, "-m", "data_preprocess", "answerable", "--questions", str(self.run_dir / "data" / "train.jsonl")),
            *("--retrieval-url", self.services.url(), "--top-k", top_k, "--out", str(out)),
            *("--searches", str(self.declaration.answerable_searches)),
        ]
        run_child(
            command, self.run_dir / "logs" / "answerable.log", self.console, lambda: "searching for the training questions"
        )
        card = json.loads((out / "train.card.json").read_text(encoding="utf-8"))
        self.console.print(f"{card['questions']} of {card['rows_read']} training questions", highlight=False)

    def train(self) -> None:
        """Train by reinforcement learning: the recipe, from the starting model, under the declaration's protocol."""
        recipe, out = Path(str(self.declaration.train)), self.run_dir / "train"
        variables = {"SEED": str(self.seed), "RETRIEVAL_URL": self.services.url(), "DATA_DIR": str(self.run_dir / "data")}

        def add_seconds(name: str, seconds: float) -> None:
            if round(seconds):
                self.phases.add(f"train, of that: {name}", seconds)

        def launch(job: Job) -> int:
            return follow_job(job, variables, self.console, add_seconds)

        if run_recipe(recipe, out, self._protocol(), launch, accept_changes=True):  # see `_supervise`
            raise halted_training(out)
        self._write("trained.json", {"path": str(trained_model(out)), "source": str(recipe)})

    def trained(self) -> None:
        """Measure the trained model, and its controls."""
        self.measurement.measure(self._path("trained.json"), [TRAINED, *controls(self.declaration.controls)])
        write_text(self.run_dir / "measured" / "trained.done", "")

    def baselines(self) -> None:
        """Measure the model before any training."""
        self.measurement.measure(self._path("model.json"), baselines(self.declaration))
        write_text(self.run_dir / "measured" / "baselines.done", "")

    def supervised(self, name: str) -> None:
        """Train the untrained model on answers to a baseline's prompts for the demonstrations' questions, and measure it."""
        rows = self.run_dir / f"supervised_{name}" / "train.parquet"
        if not rows.is_file():
            assert self.declaration.cold_start is not None
            sets = self.declaration.cold_start.demonstrations
            command = [
                *(sys.executable, "-m", "evaluation", "baseline-rows", name, "--out", str(rows), "--seed", str(self.seed)),
                *("--questions", *(str(self.run_dir / "data" / one / "train.jsonl") for one in sets)),
                *("--ids", str(self.run_dir / "demonstrations" / "train.parquet")),
                *("--tokenizer", str(self._path("model.json"))),
                *("--retrieval-url", self.services.url(), "--top-k", str(self.declaration.top_k)),
            ]
            run_child(command, self.run_dir / "logs" / f"{name}_rows.log", self.console, lambda: f"making rows of {name}")
        self._supervise(rows, f"supervised_{name}")
        self.measurement.measure(self._path(f"supervised_{name}.json"), [supervised_baseline(name)])
        write_text(self.run_dir / "measured" / f"supervised_{name}.done", "")

    def report(self) -> None:
        """Write the report, and then the summary."""
        found = summarize_run(self.declaration, self.run_dir, self.seed, self.phases.seconds)
        write_report(self.run_dir / "report.html", found, self.run_dir)
        self._write("summary.json", found)

    def _supervise(self, rows: Path, name: str) -> None:
        """Train the untrained model on a parquet file with the cold start's recipe, in the directory `name`."""
        assert self.declaration.cold_start is not None
        recipe, out = Path(self.declaration.cold_start.recipe), self.run_dir / name
        variables = {"SEED": str(self.seed), "MODEL": str(self._path("model.json")), "DATA_DIR": str(self.run_dir / "data")}

        def launch(job: Job) -> int:
            environment, log = job.environment | variables, job.directory / "train.log"
            run_child(job.command, log, self.console, lambda: last_metrics(job.directory), environment)
            return 0

        files = f"data.train_files={hydra_value([str(rows)])}"
        overrides = [LOGGERS, files, *self.declaration.cold_start.overrides]
        # the run's settings.json has been compared already: what differs here is what another version of this project passes
        run_recipe(recipe, out, overrides, launch, accept_changes=True)
        self._write(f"{name}.json", {"path": str(trained_model(out)), "source": str(recipe)})

    def _protocol(self) -> list[str]:
        """Return the overrides of the reinforcement learning: its starting model, and the protocol of the measurements."""
        one = self.declaration
        settings: dict[str, object] = {
            "actor_rollout_ref.model.path": str(self._path(self._start_record())),
            "research_rl.method": one.method,
            "++research_rl.method_options": dict(one.method_options),
            "research_rl.top_k": one.top_k,
            "research_rl.max_searches": one.max_searches,
            "research_rl.max_turn_tokens": one.max_turn_tokens,
            "research_rl.max_observation_tokens": one.max_observation_tokens,
            "data.max_response_length": one.response_tokens,
        }
        if one.answerable_at:
            settings["data.train_files"] = [str(self.run_dir / "answerable" / "train.parquet")]
        return [LOGGERS, *(f"{key}={hydra_value(value)}" for key, value in settings.items()), *self.overrides]

    def _start_record(self) -> str:
        return "cold_start.json" if self.declaration.cold_start else "model.json"

    def _path(self, record: str) -> Path:
        return Path(json.loads((self.run_dir / record).read_text(encoding="utf-8"))["path"])

    def _write(self, name: str, content: object) -> None:
        write_text(self.run_dir / name, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
