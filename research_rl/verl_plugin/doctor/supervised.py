"""The checks of a recipe for verl's supervised trainer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from research_rl.codec import encode_row, load_codec
from research_rl.errors import DataError
from research_rl.training.flops import UPDATE
from research_rl.verl_plugin.config import chat_template_kwargs
from research_rl.verl_plugin.doctor.finding import Finding, check, error, ok
from research_rl.verl_plugin.doctor.machine import on_this_machine, room_for
from research_rl.verl_plugin.doctor.setup import Setup
from research_rl.verl_plugin.doctor.size import checkpoint, machine
from research_rl.verl_plugin.doctor.speed import duration, seconds_on_this_cpu, slow_types
from research_rl.verl_plugin.doctor.tokenizer import model_files
from research_rl.verl_plugin.rows import files_of, sampled_rows

_SAMPLE = 500  # rows of a file that are encoded
_COLUMNS = ("prompt", "prefill", "segments")


@check("data", "the rows can be read", "tokenizer")
def rows(setup: Setup) -> Iterator[Finding]:
    """Encode a sample of rows as training does."""
    data = setup.config.data
    codec = load_codec(setup.tokenizer, bos=data.get("bos"), chat_template_kwargs=chat_template_kwargs(data))
    for file in files_of(data, "train_files"):
        sample, total = sampled_rows(file, _SAMPLE, _COLUMNS)
        try:
            lengths = {number: len(encode_row(codec, row)[0]) for number, row in sample}
        except (KeyError, TypeError, ValueError) as failure:
            do = "Make it by `python -m data_preprocess demonstrations` or `cold-start`"
            yield error(
                f"{file} must have the columns {', '.join(_COLUMNS)}, as demonstrations have them", repr(failure), do, DataError
            )
            continue
        if long := {number: length for number, length in lengths.items() if length > data.max_length}:
            yield error(
                f"{file}: rows must have at most data.max_length={data.max_length} tokens",
                f"{len(long):,} of {len(lengths):,} looked at are longer, the longest has {max(long.values()):,}",
                "Raise it, or drop these rows",
                DataError,
            )
        else:
            # a mean of the sample, for all rows of the file
            tokens = total * sum(lengths.values()) // max(1, len(lengths))
            setup.measured["row tokens"] = setup.measured.get("row tokens", 0) + tokens
            yield ok(f"{file}: {len(lengths):,} of {total:,} rows looked at, the longest has {max(lengths.values()):,} tokens")


@check("disk", "no checkpoints are written", "model")
def disk(setup: Setup) -> Iterator[Finding]:
    """Compare the free space with the checkpoints that will be kept, as for reinforcement learning."""
    config = setup.config
    size = checkpoint(setup.parameters, config.checkpoint.save_contents)
    if config.trainer.save_freq > 0:
        yield from room_for(Path(config.trainer.default_local_dir), size, config.trainer.max_ckpt_to_keep, "max_ckpt_to_keep")


@check("memory", "not estimated for GPUs", "model")
def memory(setup: Setup) -> Iterator[Finding]:
    """Estimate the peak memory on a CPU, without an engine."""
    config = setup.config
    if config.trainer.device == "cpu":
        text, checkpointed = setup.model.get_text_config(), bool(config.model.enable_gradient_checkpointing)
        parts = machine(setup.parameters, text, config.data.max_token_len_per_gpu, checkpointed, None)
        yield from on_this_machine(parts, "data.max_token_len_per_gpu", setup)


@check("speed", "not estimated for GPUs", "model")
def speed(setup: Setup) -> Iterator[Finding]:
    """Estimate the time of all epochs on a CPU."""
    config, tokens = setup.config, setup.measured.get("row tokens")
    if config.trainer.device != "cpu" or not tokens:
        return
    dtype = (config.engine.mixed_precision or {}).get("param_dtype") or config.engine.model_dtype
    yield from slow_types({"engine.mixed_precision.param_dtype": dtype})
    epochs = config.trainer.total_epochs
    seconds, how = seconds_on_this_cpu(UPDATE * setup.parameters * tokens * epochs, dtype, setup)
    told = f"{tokens:,} tokens, trainer.total_epochs={epochs}, {setup.parameters / 1e6:,.0f} M parameters"
    yield ok(f"at least {duration(seconds)} for {told}, on {how}. Start, checkpoints and export come on top")


CHECKS = (model_files, rows, disk, memory, speed)
