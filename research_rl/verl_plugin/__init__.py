"""The only package that imports verl.

This module is verl's entry point (group `verl.plugins`): every process that imports verl imports it, so it must stay tiny.
"""

import importlib
import os

from research_rl.errors import missing_extra

try:
    import wrapt
except ModuleNotFoundError as error:
    raise missing_extra("wrapt", "train") from error

if os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu":
    from research_rl.verl_plugin import cpu_platform

    cpu_platform.install()


def _check_recipes_first(module) -> None:
    """Make verl's `validate_config`, which the trainer calls before it starts Ray, check the `research_rl:` section, too."""
    original = module.validate_config

    def validate_config(config, *args, **kwargs):
        from research_rl.errors import USER_ERRORS
        from research_rl.verl_plugin.checks import check_config

        try:
            check_config(config)
        # a user's mistake: print its cause without a traceback
        except USER_ERRORS as error:
            raise SystemExit(f"{type(error).__name__}: {error}") from None
        return original(config, *args, **kwargs)

    module.validate_config = validate_config


def _when_imported(module: str, helper: str, function: str) -> None:
    """Call a helper module's function with another module as soon as that is imported; this file must import neither."""

    def hook(imported) -> None:
        getattr(importlib.import_module(f"research_rl.verl_plugin.{helper}"), function)(imported)

    wrapt.register_post_import_hook(hook, module)


wrapt.register_post_import_hook(_check_recipes_first, "verl.utils.config")
_when_imported("hydra", "search_path", "install")
_when_imported("verl.trainer.ppo.core_algos", "advantages", "register")
_when_imported("verl.trainer.ppo.core_algos", "policy_loss", "register")
_when_imported("verl.workers.utils.losses", "policy_loss", "log_likelihoods")
_when_imported("verl.trainer.ppo.v1.utils", "advantages", "lead")
_when_imported("verl.trainer.ppo.v1.trainer_base", "trainer", "install")
_when_imported("verl.trainer.ppo.v1.trainer_base", "down_sampling", "install")
_when_imported("verl.trainer.ppo.v1.trainer_base", "watchdog", "install")
_when_imported("verl.workers.engine.base", "memorisation", "install")
_when_imported("verl.workers.engine.fsdp.transformer_impl", "learning_rate", "install")
_when_imported("verl.utils.fsdp_utils", "fused_kernels", "install")
_when_imported("verl.utils.fsdp_utils", "separate_async", "keep_copies")
_when_imported("verl.utils.checkpoint.checkpoint_handler", "epochs", "install")
_when_imported("verl.trainer.ppo.v1.trainer_separate_async", "separate_async", "install")
