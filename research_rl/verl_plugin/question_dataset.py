"""verl's data set of questions, without those whose prompt is too long."""

from __future__ import annotations

from typing import Any

import numpy as np

from research_rl.errors import DataError, missing_extra
from research_rl.questions import question_of
from research_rl.verl_plugin.config import settings_of
from research_rl.verl_plugin.rows import COLUMNS, overlong, prompt_codec

try:
    from verl.utils.dataset.rl_dataset import RLHFDataset
except ModuleNotFoundError as error:
    raise missing_extra(error.name or "verl", "train") from error


class QuestionDataset(RLHFDataset):
    """Named by `data.custom_cls`. With `research_rl.overlong_prompts: drop`, questions whose prompt (as the method makes it) has more than
    `data.max_prompt_length` tokens are left out before `max_samples` are chosen; without, they raise DataError."""

    def _read_files_and_tokenize(self) -> None:
        wanted, self.max_samples = (
            self.max_samples,
            -1,
        )  # verl chooses first and filters afterwards, which would make the sample smaller
        super()._read_files_and_tokenize()
        self.max_samples, there = wanted, len(self.dataframe)
        if 0 < wanted < there:
            chosen = (
                np.random.default_rng(self.seed).choice(there, wanted, replace=False) if self.shuffle else np.arange(wanted)
            )
            self.dataframe = self.dataframe.select(chosen.tolist())
            print(f"research_rl: {wanted:,} of {there:,} questions, {f'by seed {self.seed}' if self.shuffle else 'the first'}")

    def maybe_filter_out_long_prompts(self, dataframe: Any = None) -> Any:
        """Return the rows whose prompt fits.

        Raises:
            DataError: a prompt does not fit, and `overlong_prompts` is error.
        """
        settings = settings_of(self.config)
        rows = dataframe.select_columns([name for name in COLUMNS if name in dataframe.column_names]).to_list()
        codec = prompt_codec(self.tokenizer, settings, self.config)
        found = overlong([question_of(row)[0] for row in rows], settings.load(), codec, self.max_prompt_length)
        if not found:
            return dataframe
        if settings.overlong_prompts == "error":
            raise DataError(
                f"{len(found):,} prompts are longer than data.max_prompt_length={self.max_prompt_length}, the first has "
                f"{next(iter(found.values())):,} tokens. Raise it, or leave them out: research_rl.overlong_prompts=drop"
            )
        print(
            f"research_rl: {len(found):,} of {len(rows):,} questions left out: their prompts are longer than {self.max_prompt_length}"
        )
        return dataframe.select([row for row in range(len(rows)) if row not in found])
