"""The rows that verl trains on, read as verl reads them, and the lengths of the method's prompts for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from research_rl.codec import HFCodec
from research_rl.errors import ConfigError, DataError, missing_extra
from research_rl.methods.base import Method
from research_rl.training.settings import Settings
from research_rl.verl_plugin.config import chat_template_kwargs

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ModuleNotFoundError as error:
    raise missing_extra("pyarrow", "train") from error

COLUMNS = ("question", "extra_info", "reward_model")  # what `question_of` reads
_AT_ONCE = 1_000  # prompts encoded at a time; the ids of all prompts would take gigabytes


def read_rows(file: str, columns: Sequence[str] = COLUMNS) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file that verl reads, with those of these columns that it has.

    Raises:
        DataError: it is missing, or neither parquet nor JSON.
    """
    path = _existing(file)
    if path.suffix == ".parquet":
        parquet = pq.ParquetFile(path)
        there = [name for name in columns if name in parquet.schema_arrow.names]
        for batch in parquet.iter_batches(columns=there or None):
            yield from batch.to_pylist()
    elif path.suffix in (".json", ".jsonl"):
        import datasets  # verl's own reader

        yield from datasets.load_dataset("json", data_files=str(path), split="train").to_list()  # type: ignore[union-attr]  # with a split, it is one data set
    else:
        raise DataError(f"{file}: verl reads .parquet, .json and .jsonl")


def sampled_rows(file: str, most: int | None, columns: Sequence[str] = COLUMNS) -> tuple[list[tuple[int, dict[str, Any]]], int]:
    """Return (number, row) of at most `most` rows of a file at equal distances (None: all), and how many rows it has.

    Raises:
        DataError: see `read_rows`.
    """
    if _existing(file).suffix != ".parquet":
        rows = list(enumerate(read_rows(file, columns)))
        return rows[:: _distance(len(rows), most)], len(rows)
    try:
        parquet = pq.ParquetFile(Path(file).expanduser())
    except pa.ArrowException as failure:
        raise DataError(f"{file} is no parquet that can be read ({failure}): make it again (docs/data.md)") from None
    total, found, first = parquet.metadata.num_rows, [], 0
    step = _distance(total, most)
    there = [name for name in columns if name in parquet.schema_arrow.names]
    for batch in parquet.iter_batches(columns=there or None):
        numbers = range(-first % step, batch.num_rows, step)
        found += zip((first + number for number in numbers), batch.take(list(numbers)).to_pylist(), strict=True)
        first += batch.num_rows
    return found, total


def columns_of(file: str) -> list[str]:
    """Return the columns of a parquet file; of other files none, because verl reads all their fields."""
    path = _existing(file)
    return pq.ParquetFile(path).schema_arrow.names if path.suffix == ".parquet" else []


def _distance(total: int, most: int | None) -> int:
    return 1 if most is None else max(1, -(-total // most))


def _existing(file: str) -> Path:
    path = Path(file).expanduser()
    if not path.is_file():
        raise DataError(
            f"no questions at {file} (looked for in {path.absolute().parent}): data.train_files and data.val_files must name files "
            "(docs/data.md makes them)"
        )
    return path


def files_of(data: Any, name: str) -> list[str]:
    """Return the files that a key of verl's `data` section names."""
    return [data[name]] if isinstance(data[name], str) else list(data[name])


def overlong(questions: Sequence[str], method: Method, codec: HFCodec, limit: int) -> dict[int, int]:
    """Return the tokens of each prompt that has more than `limit`, by the question's position."""
    found: dict[int, int] = {}
    for start in range(0, len(questions), _AT_ONCE):
        prompts = [method.prompt(question) for question in questions[start : start + _AT_ONCE]]
        lengths = [len(ids) for ids in codec.encode_prompts(prompts, method.prefill)]
        found |= {start + position: tokens for position, tokens in enumerate(lengths) if tokens > limit}
    return found


def prompt_codec(tokenizer: Any, settings: Settings, data: Any) -> HFCodec:
    """Return the codec that makes the prompts of a run.

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
