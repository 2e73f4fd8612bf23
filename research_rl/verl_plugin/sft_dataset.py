"""The data set of the supervised cold start, for verl's SFT trainer: what the policy wrote is the target, prompts and passages are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from research_rl.codec import encode_row, load_codec
from research_rl.errors import DataError, missing_extra
from research_rl.verl_plugin.config import chat_template_kwargs

try:
    import pyarrow.parquet as pq
except ModuleNotFoundError as error:
    raise missing_extra("pyarrow", "train") from error


class TrajectoryDataset(Dataset):
    """Named by `data.custom_cls`: {path: pkg://research_rl.verl_plugin.sft_dataset, name: TrajectoryDataset}.

    Each segment is encoded by itself, as in a rollout. Rows are (sequence length,) tensors: input_ids, position_ids, loss_mask.
    """

    def __init__(self, parquet_files: Any, tokenizer: Any, config: Any, processor: Any = None, max_samples: int = -1) -> None:
        """`config`: verl's `data` section; pad_mode must be no_padding, and a row may have at most max_length tokens.

        Its `apply_chat_template_kwargs` and `bos` (as in recipes/r1_searcher_pp/cold_start.yaml) have the same meaning as in rollouts.

        Raises:
            DataError: a file is missing, or a row is longer than max_length.
        """
        if config.get("pad_mode", "no_padding") != "no_padding":
            raise DataError(f"the cold start needs data.pad_mode=no_padding, got {config.get('pad_mode')!r}")
        files = [parquet_files] if isinstance(parquet_files, str) else list(parquet_files)
        if missing := [str(file) for file in files if not Path(file).is_file()]:
            raise DataError(
                f"no rows at {', '.join(missing)}: make them by `python -m data_preprocess demonstrations` or `cold-start`, or set "
                "data.train_files"
            )
        rows = [row for file in files for row in pq.read_table(file).to_pylist()]
        codec = load_codec(tokenizer, bos=config.get("bos"), chat_template_kwargs=chat_template_kwargs(config))
        self._rows = [encode_row(codec, row) for row in (rows[:max_samples] if max_samples > 0 else rows)]
        longest = max(len(ids) for ids, _ in self._rows)
        if longest > config.get("max_length", longest):
            raise DataError(f"a row has {longest} tokens, data.max_length is {config['max_length']}: raise it, or drop the row")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids, mask = self._rows[index]
        return {"input_ids": torch.tensor(ids), "position_ids": torch.arange(len(ids)), "loss_mask": torch.tensor(mask)}
