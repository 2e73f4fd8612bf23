"""Checks the questions of a run, in the command a sample of them: a row that cannot be read, or too long a prompt, would end it midway."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from research_rl.errors import DataError
from research_rl.questions import question_of
from research_rl.verl_plugin.doctor.finding import Finding, check, error, of_mistake, ok, warning
from research_rl.verl_plugin.doctor.setup import Setup
from research_rl.verl_plugin.rows import columns_of, files_of, overlong, prompt_codec, sampled_rows

_SHOWN = 5  # rows that a finding names
_SAMPLE = 2_000  # rows of a file that the command reads; training reads all
_FILES = (("train_files", "train_max_samples"), ("val_files", "val_max_samples"))


@dataclass
class _File:
    name: str
    total: int = 0
    looked_at: int = 0
    wrong: dict[int, str] = field(default_factory=dict)  # row number: what is wrong with it
    columns: list[str] = field(default_factory=list)
    long: dict[int, int] = field(default_factory=dict)  # row number: tokens of its prompt

    @property
    def of_how_many(self) -> str:
        return f"{self.total:,}" if self.looked_at == self.total else f"a sample of {self.looked_at:,} (of {self.total:,})"


@check("data", "the questions can be read", "settings")
def data(setup: Setup) -> Iterator[Finding]:
    """Check files, columns, golden answers and the length of prompts; and that there are enough questions for batches and steps.

    Training checks all rows, and the command a sample, even if `data.train_max_samples` uses only some: which ones depends on the seed.
    """
    config, settings = setup.config, setup.settings
    assert settings is not None
    codec = prompt_codec(setup.tokenizer, settings, config.data) if setup.tokenizer else None
    counts: dict[str, int | None] = {}
    for key, samples in _FILES:
        files = files_of(config.data, key)
        if remote := [file for file in files if "://" in file]:
            yield warning(f"data.{key}: {', '.join(remote)} are not read here; the trainer checks the rows when it reads them")
            counts[key] = None
            continue
        left, complete = 0, True
        for file in files:
            try:
                found = _read(file, setup, codec)
            except DataError as mistake:
                yield of_mistake(mistake)
                complete = False
                continue
            if found.columns and (column := config.data.prompt_key) not in found.columns:
                what = f"{file} must have the column {column!r}, which verl reads (data.prompt_key)"
                yield error(what, ", ".join(found.columns), "Make the file again (docs/data.md)", DataError)
            yield from _told(found, config.data.max_prompt_length, settings.overlong_prompts)
            left += found.total - len(found.long) * found.total // max(found.looked_at, 1)
        counts[key] = (min(left, config.data[samples]) if config.data.get(samples, -1) > 0 else left) if complete else None
    yield from _enough(counts, config)
    setup.measured["questions"] = counts["train_files"]


def _read(name: str, setup: Setup, codec: Any) -> _File:
    rows, total = sampled_rows(name, _SAMPLE if setup.quick else None)
    file = _File(name, total, len(rows))
    file.columns = columns_of(name)
    questions = {}
    for number, row in rows:
        try:
            questions[number] = question_of(row)[0]
        except DataError as mistake:
            file.wrong[number] = str(mistake)
    if codec and setup.settings:
        numbers = list(questions)
        limit = setup.config.data.max_prompt_length
        found = overlong(list(questions.values()), setup.settings.load(), codec, limit)
        file.long = {numbers[position]: tokens for position, tokens in found.items()}
    return file


def _told(file: _File, limit: int, overlong_prompts: str) -> Iterator[Finding]:
    for number, wrong in list(file.wrong.items())[:1]:
        yield error(
            f"{file.name}, row {number}: {wrong}",
            f"{len(file.wrong):,} such rows among {file.of_how_many}",
            "Make the file again (docs/data.md), or leave these rows out",
            DataError,
        )
    if file.long:
        rows = ", ".join(f"row {row} ({tokens:,} tokens)" for row, tokens in list(file.long.items())[:_SHOWN])
        more = f" and {len(file.long) - _SHOWN:,} more" if len(file.long) > _SHOWN else ""
        are = "is" if len(file.long) == 1 else "are"
        what = f"{file.name}: {len(file.long):,} of {file.of_how_many} prompts {are} longer than data.max_prompt_length={limit}"
        if overlong_prompts == "drop":
            yield warning(f"{what}: {rows}{more}; left out")
        else:
            do = "Raise data.max_prompt_length, or leave them out: research_rl.overlong_prompts=drop"
            yield error(f"{what}: {rows}{more}", "", do, DataError)
    if not file.wrong and not file.long:
        yield ok(f"{file.name}: {file.of_how_many} rows checked, all can be trained on")


def _enough(counts: Mapping[str, int | None], config: Any) -> Iterator[Finding]:
    train, batch = counts["train_files"], config.data.train_batch_size
    if train is not None and train < batch:
        yield error(
            f"data.train_batch_size={batch} is more than the {train:,} questions of data.train_files",
            "",
            "Lower it, or add questions (data.train_max_samples and research_rl.overlong_prompts=drop leave some out)",
        )
    if counts["val_files"] == 0:
        yield error("data.val_files have no question to validate on", "", "Add some, or name another file")
    # verl ends after `total_epochs` whatever `total_training_steps` says, without a last checkpoint and with exit code 0
    steps, epochs = config.trainer.total_training_steps, config.trainer.total_epochs
    if train is not None and steps and train >= batch and (possible := train // batch * epochs) < steps:
        yield error(
            f"trainer.total_training_steps={steps} cannot be reached: {train:,} questions in batches of {batch} make {possible} steps in "
            f"trainer.total_epochs={epochs}",
            "",
            "Raise total_epochs, or lower total_training_steps",
        )
