"""A set-up to be checked: a composed configuration, and what several checks need of it, read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from omegaconf import OmegaConf

from research_rl.codec import HFCodec, eos_ids
from research_rl.errors import ConfigError, DataError
from research_rl.questions import question_of
from research_rl.training.settings import Settings
from research_rl.verl_plugin.config import chat_template_kwargs
from research_rl.verl_plugin.doctor.hub import Hub
from research_rl.verl_plugin.doctor.size import adapter_parameters, parameters
from research_rl.verl_plugin.rows import files_of, sampled_rows

_QUESTIONS = 500  # of the first file, for the checks that search


@dataclass
class Setup:
    """One stage of a run.

    `quick`: the checks must take seconds, as in the command, so that only a sample of a large file is read. `measured`: values that all
    stages share, measured or assumed: how fast each service answers, memory, GPUs, the hub.
    """

    config: Any
    quick: bool = False
    measured: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def section(self) -> Mapping[str, Any]:
        """The `research_rl:` section."""
        found: Any = OmegaConf.to_container(self.config.research_rl, resolve=True)
        return found

    @cached_property
    def settings(self) -> Settings | None:
        """The section, checked; None if something in it is wrong. (Unknown keys are ignored here: they are reported separately.)"""
        try:
            return Settings.from_mapping({key: value for key, value in self.section.items() if key in Settings.key_names()})
        except ConfigError:
            return None

    @cached_property
    def model_path(self) -> str:
        """The starting model: a directory, or a hub id."""
        return str(self.model_section.path)

    @property
    def model_section(self) -> Any:
        """verl's settings of the model; supervised recipes have them at the top level."""
        return self.config.actor_rollout_ref.model if "actor_rollout_ref" in self.config else self.config.model

    @property
    def bypass(self) -> bool:
        """Whether π_old is what the engine sampled with, so that the trainer makes no pass of its own for it."""
        return bool((self.config.algorithm.get("rollout_correction") or {}).get("bypass_mode"))

    @cached_property
    def model(self) -> Any:
        """The model's configuration, None if it is not on this machine (`why_no_model` says why)."""
        return self._model[0]

    @cached_property
    def why_no_model(self) -> str:
        """Why there is no configuration."""
        return self._model[1]

    @cached_property
    def _model(self) -> tuple[Any, str]:
        from transformers import AutoConfig

        section = self.model_section
        path, trust = section.get("hf_config_path") or section.path, section.get("trust_remote_code", False)
        try:
            with self._hub.only_here(path) as only_here:
                return AutoConfig.from_pretrained(path, trust_remote_code=trust, local_files_only=only_here), ""
        except (OSError, ValueError) as failure:
            return None, str(failure).strip().splitlines()[0]

    @property
    def _hub(self) -> Hub:
        return self.measured.setdefault("hub", Hub())

    @cached_property
    def parameters(self) -> int:
        """The number of the model's parameters; its configuration must be on this machine."""
        return parameters(self.model)

    @cached_property
    def adapter(self) -> int:
        """The number of the LoRA adapter's parameters, 0 without one; the model's configuration must be on this machine."""
        return adapter_parameters(self.model, self.model_section)

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer, None if it is not on this machine (`why_no_tokenizer` says why)."""
        return self._tokenizer[0]

    @cached_property
    def why_no_tokenizer(self) -> str:
        """Why there is no tokenizer."""
        return self._tokenizer[1]

    @cached_property
    def _tokenizer(self) -> tuple[Any, str]:
        from transformers import AutoTokenizer  # as verl does, but for padding: importing verl takes seconds

        section = self.model_section
        path, trust = section.get("tokenizer_path") or section.path, section.get("trust_remote_code", False)
        try:
            with self._hub.only_here(path) as only_here:
                tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=trust, local_files_only=only_here)
        except (OSError, ValueError) as failure:
            return None, str(failure).strip().splitlines()[0]
        if template := section.get("custom_chat_template"):
            tokenizer.chat_template = template
        return tokenizer, ""

    @cached_property
    def codec(self) -> HFCodec | None:
        """The codec of the run, with every EOS at which the engine stops; None if there is no tokenizer, or it lacks the BOS that
        `bos` requires."""
        if self.settings is None or self.tokenizer is None:
            return None
        ends = eos_ids(self.model_path) if self.model else ()
        try:
            return HFCodec(self.tokenizer, ends, self.settings.bos, chat_template_kwargs(self.config.data))
        except ConfigError:
            return None

    @cached_property
    def questions(self) -> list[str]:
        """Some questions to train on; none if they cannot be read here."""
        files = [file for file in files_of(self.config.data, "train_files") if "://" not in file]
        try:
            return [question_of(row)[0] for _, row in sampled_rows(files[0], _QUESTIONS)[0]] if files else []
        except DataError:
            return []
