"""All questions of a run, read before Ray starts: a row that cannot be read, or a prompt that is too long, would end it in the middle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from research_rl.codec import HFCodec
from research_rl.errors import ConfigError, DataError, missing_extra
from research_rl.methods.base import Method
from research_rl.questions import question_of
from research_rl.training.settings import Settings
from research_rl.verl_plugin.config import chat_template_kwargs

try:
    import pyarrow.parquet as pq
except ModuleNotFoundError as error:
    raise missing_extra("pyarrow", "train") from error

COLUMNS = ("question", "extra_info", "reward_model")  # what `question_of` looks at
_SHOWN = 5  # rows that an error names
_AT_ONCE = 1_000  # prompts; the ids of all questions would take gigabytes


def check_data(config: Any, settings: Settings) -> int | None:
    """Read all of `data.train_files` and `data.val_files`; return how many questions there are to train on, None if they are not on this
    machine.

    All rows are read even where `data.train_max_samples` takes some: which ones it takes changes with the seed.

    Raises:
        DataError: a file is missing, a row is of another form, or a prompt is longer than `data.max_prompt_length` and not to be dropped.
        ConfigError: `data.train_batch_size` questions are more than there are, or none is left to validate on.
    """
    tokenizer = load_tokenizer(config.actor_rollout_ref.model)
    data = config.data
    codec = prompt_codec(tokenizer, settings, data) if tokenizer else None
    counts: dict[str, int | None] = {}
    told: list[str] = []
    for name, samples in (("train_files", "train_max_samples"), ("val_files", "val_max_samples")):
        files = [data[name]] if isinstance(data[name], str) else list(data[name])
        if remote := [file for file in files if "://" in file]:
            print(
                f"research_rl: data.{name} {', '.join(remote)}: not read here; the trainer checks the rows when it reads them"
            )
            counts[name] = None
            continue
        left = 0
        for file in files:
            questions = _questions(file)
            found = overlong(questions, settings.load(), codec, data.max_prompt_length) if codec else {}
            told += [f"{file}: {_told(found, len(questions), data.max_prompt_length)}"] if found else []
            left += len(questions) - len(found)
        counts[name] = min(left, data[samples]) if data.get(samples, -1) > 0 else left
    if told and settings.overlong_prompts == "error":
        raise DataError(
            f"{'; '.join(told)}. Raise data.max_prompt_length, or leave them out: research_rl.overlong_prompts=drop"
        )
    for line in told:
        print(f"research_rl: {line}; left out")
    _check_enough(counts, data.train_batch_size)
    _check_epochs(counts["train_files"], config)
    return counts["train_files"]


def _questions(file: str) -> list[str]:
    """Return the questions of a file's rows, in order."""
    questions = []
    for number, row in enumerate(read_rows(file)):
        try:
            questions.append(question_of(row)[0])
        except DataError as error:
            raise DataError(f"{file}, row {number}: {error}") from None
    return questions


def _told(found: Mapping[int, int], total: int, limit: int) -> str:
    rows = ", ".join(f"row {row} ({tokens:,} tokens)" for row, tokens in list(found.items())[:_SHOWN])
    more = f" and {len(found) - _SHOWN:,} more" if len(found) > _SHOWN else ""
    are = "is" if len(found) == 1 else "are"
    return f"{len(found):,} of {total:,} prompts {are} longer than data.max_prompt_length={limit}: {rows}{more}"


def _check_epochs(questions: int | None, config: Any) -> None:
    """verl ends after `total_epochs` whatever `total_training_steps` says, without a last checkpoint and with exit code 0."""
    steps, batch, epochs = config.trainer.total_training_steps, config.data.train_batch_size, config.trainer.total_epochs
    if questions is not None and steps and (possible := questions // batch * epochs) < steps:
        raise ConfigError(
            f"trainer.total_training_steps={steps} cannot be reached: {questions:,} questions in batches of {batch} make {possible} steps "
            f"in trainer.total_epochs={epochs}; raise it"
        )


def _check_enough(counts: Mapping[str, int | None], batch: int) -> None:
    train = counts["train_files"]
    if train is not None and train < batch:
        raise ConfigError(
            f"data.train_batch_size={batch} is more than the {train:,} questions of data.train_files: lower it, or add questions "
            "(data.train_max_samples and research_rl.overlong_prompts=drop leave some out)"
        )
    if counts["val_files"] == 0:
        raise ConfigError("data.val_files hold no question to validate on")


def read_rows(file: str, columns: Sequence[str] = COLUMNS) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file that verl reads, with these columns where it has them.

    Raises:
        DataError: it is missing, or neither parquet nor JSON.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise DataError(
            f"no questions at {file}: data.train_files and data.val_files must name files (docs/data.md makes them)"
        )
    if path.suffix == ".parquet":
        parquet = pq.ParquetFile(path)
        there = [name for name in columns if name in parquet.schema_arrow.names]
        for batch in parquet.iter_batches(columns=there or None):
            yield from batch.to_pylist()
    elif path.suffix in (".json", ".jsonl"):
        import datasets  # verl's own reader

        yield from datasets.load_dataset("json", data_files=str(path), split="train").to_list()  # type: ignore[union-attr]
    else:
        raise DataError(f"{file}: verl reads .parquet, .json and .jsonl")


def overlong(questions: Sequence[str], method: Method, codec: HFCodec, limit: int) -> dict[int, int]:
    """Return the tokens of each prompt that has more than `limit`, by the question's position."""
    found: dict[int, int] = {}
    for start in range(0, len(questions), _AT_ONCE):
        prompts = [method.prompt(question) for question in questions[start : start + _AT_ONCE]]
        lengths = [len(ids) for ids in codec.encode_prompts(prompts, method.prefill)]
        found |= {start + position: tokens for position, tokens in enumerate(lengths) if tokens > limit}
    return found


def prompt_codec(tokenizer: Any, settings: Settings, data: Any) -> HFCodec:
    """Return what makes the prompts of a run.

    Raises:
        ConfigError: the method writes messages and the tokenizer has no chat template; or see `HFCodec`.
    """
    method = settings.load()
    if not isinstance(method.prompt("?"), str) and not tokenizer.chat_template:
        raise ConfigError(
            f"the prompt of {method.name} is a conversation, and {tokenizer.name_or_path} has no chat template: "
            "choose research_rl.method_options.template=base, or set actor_rollout_ref.model.custom_chat_template"
        )
    return HFCodec(tokenizer, bos=settings.bos, chat_template_kwargs=chat_template_kwargs(data))


def load_tokenizer(model: Any) -> Any:
    """Return the tokenizer of verl's `model` section, or None (told in one line) if this machine cannot load it."""
    from verl.utils import hf_tokenizer

    path = model.get("tokenizer_path") or model.path
    try:
        tokenizer = hf_tokenizer(path, trust_remote_code=model.get("trust_remote_code", False))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        print(f"research_rl: no tokenizer at {path} here ({reason}): prompts are measured when the trainer has loaded it")
        return None
    if template := model.get("custom_chat_template"):
        tokenizer.chat_template = template
    return tokenizer
