"""The functions and classes of verl that the plugin uses or wraps, by name, to detect a verl in which one of them has moved.

Most of them are not a stable interface of verl. They are looked up in verl's source, because importing it takes seconds.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Hook:
    """A function, class or method of a module, the parameters that are passed or read by name, and the feature that needs it."""

    module: str
    name: str
    needs: str
    takes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


_TRAINER, _FSDP = "verl.trainer.ppo.v1.trainer_base", "verl.workers.engine.fsdp.transformer_impl"
_LOOP = "verl.experimental.agent_loop.agent_loop"
_CORE, _LOSSES = "verl.trainer.ppo.core_algos", "verl.workers.utils.losses"
_WEIGHTS = "verl.checkpoint_engine.base"
HOOKS = (
    Hook("verl.utils.config", "validate_config", "the checks before Ray is started", ("config",)),
    Hook("verl.trainer.main_ppo", "TaskRunnerV1.init_agent_loop_manager", "the rollout"),
    Hook("verl.utils.config", "omega_conf_to_dataclass", "the rollout", ("config",)),
    Hook(_LOOP, "AgentLoopMetrics", "the rollout"),
    Hook(_LOOP, "AgentLoopOutput", "the rollout"),
    Hook(_LOOP, "AgentLoopOutput.as_dict", "the rollout"),
    Hook(_TRAINER, "PPOTrainer.fit", "the watchdog", ("agent_loop_manager",)),
    Hook(_TRAINER, "PPOTrainer.step", "figures and health of a step", ("metrics", "timing_raw")),
    Hook(_TRAINER, "PPOTrainer._compute_metrics", "ending a run after a failed rollout", ("batch", "metrics")),
    Hook(_TRAINER, "PPOTrainer._validate", "the count of questions that a validation lost"),
    Hook(_TRAINER, "PPOTrainer._build_replay_buffer", "looking often for finished groups"),
    Hook(_TRAINER, "PPOTrainer._compute_advantage", "trained_rollouts", ("batch", "metrics")),
    Hook(_TRAINER, "compute_advantage_for_multi_trajectories", "trained_rollouts"),
    Hook("verl.trainer.ppo.v1.utils", "compute_advantage", "reinforce_group_baseline"),
    Hook("verl.trainer.ppo.ray_trainer", "compute_advantage", "reinforce_group_baseline", ("data", "adv_estimator")),
    Hook("verl.trainer.ppo.v1.utils", "compute_advantage_for_multi_trajectories", "trained_rollouts", ("data", "batch_keys")),
    Hook("verl.trainer.ppo.checkpoint_callback", "CheckpointCallback", "the manifest beside a checkpoint"),
    Hook("verl.trainer.ppo.checkpoint_callback", "CheckpointCallback.__init__", "the manifest beside a checkpoint", ("config",)),
    Hook("verl.trainer.ppo.checkpoint_callback", "CheckpointCallback.on_save", "manifests", ("trainer", "global_step", "checkpoint_dir")),
    Hook(_CORE, "register_policy_loss", "llds"),
    Hook(_CORE, "register_adv_est", "reinforce_group_baseline"),
    Hook(_CORE, "compute_policy_loss_vanilla", "llds"),
    Hook(_CORE, "agg_loss", "llds"),
    Hook(_CORE, "get_policy_loss_fn", "llds"),
    Hook(_CORE, "POLICY_LOSS_REGISTRY", "the doctor"),
    Hook(_CORE, "ADV_ESTIMATOR_REGISTRY", "the doctor"),
    Hook(_LOSSES, "get_policy_loss_fn", "actor/kept_logprob_change"),
    Hook(_LOSSES, "ppo_loss", "the CPU engine"),
    Hook(_LOSSES, "sft_loss", "memorisation"),
    Hook("verl.workers.engine.base", "BaseEngine.train_batch", "memorisation", ("data", "loss_function")),
    Hook("verl.workers.engine.base", "EngineRegistry", "the CPU engine"),
    Hook(_FSDP, "FSDPEngine.load_checkpoint", "the learning rate after a rollback", ("local_path",)),
    Hook(_FSDP, "FSDPEngine.forward_backward_batch", "the CPU engine", ("data", "loss_function", "forward_only")),
    Hook(_FSDP, "FSDPEngine.optimizer_step", "the CPU engine"),
    Hook(_FSDP, "FSDPEngine._build_module", "the CPU engine"),
    Hook(_FSDP, "FSDPEngine._build_fsdp_module", "the CPU engine", ("module",)),
    Hook(_FSDP, "CPUOffloadPolicy", "a reference model on a CPU"),
    Hook(_FSDP, "FSDPEngineWithLMHead", "the CPU engine"),
    Hook(_FSDP, "FSDPEngineWithLMHead.prepare_model_inputs", "the CPU engine", ("micro_batch",)),
    Hook(_FSDP, "FSDPEngineWithLMHead.prepare_model_outputs", "the CPU engine", ("output", "output_args", "micro_batch")),
    Hook("verl.utils.fsdp_utils", "_select_fsdp2_wrap_targets", "fused kernels", ("model",)),
    Hook("verl.utils.checkpoint.checkpoint_handler", "CheckpointHandler._load_dataloader_state", "the next epoch", ("checkpoint_path",)),
    Hook("verl.utils.dataset.rl_dataset", "RLHFDataset", "the data set"),
    Hook("verl.utils.dataset.rl_dataset", "RLHFDataset._read_files_and_tokenize", "the data set"),
    Hook("verl.workers.config.actor", "PolicyLossConfig", "llds"),
    Hook("verl.workers.rollout.vllm_rollout.bucketed_weight_transfer", "BucketedWeightReceiver.receive_weights", "the CPU platform"),
    Hook("verl.trainer.ppo.v1.trainer_separate_async", "logger", "separate_async"),
    Hook("verl.utils.fsdp_utils", "fsdp2_sharded_save_to_cpu", "separate_async", ("model",)),
    Hook(_WEIGHTS, "CheckpointEngineRegistry.register", "separate_async on a CPU", ("backend",)),
    Hook(_WEIGHTS, "CheckpointEngine.build_topology", "separate_async on a CPU", ("actor_wg_world_size", "rollout_world_size")),
    Hook("verl.plugin.platform.platform_base", "PlatformBase", "the CPU platform"),
    Hook("verl.plugin.platform.platform_manager", "PlatformRegistry", "the CPU platform"),
    Hook("verl.utils.fs", "copy_to_local", "the tokenizer of a remote model"),
    *(
        Hook("verl.utils.tensordict_utils", name, "the CPU engine and memorisation")
        for name in ("get_non_tensor_data", "assign_non_tensor", "index_select_tensor_dict", "get_tensordict", "get")
    ),
    Hook("verl.utils.tensordict_utils", "list_of_dict_to_tensordict", "the rollout"),
    Hook("verl.utils.device", "get_device_id", "memorisation"),
)  # fmt: skip  # a table


def moved(hooks: Iterable[Hook] = HOOKS) -> list[str]:
    """Return a sentence for every hook that the installed verl lacks, or whose parameters have other names."""
    return [told for hook in hooks for told in _wrong(hook)]


def registered(module: str, decorator: str) -> set[str]:
    """Return the names under which a module registers functions by a decorator: texts, or members of an enumeration of the module."""
    body = _tree(module)
    values = {
        f"{node.name}.{name}": statement.value.value
        for node in body
        if isinstance(node, ast.ClassDef)
        for statement in node.body
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
        for name in _names(statement)
    }
    calls = [call for node in body for call in getattr(node, "decorator_list", ()) if isinstance(call, ast.Call)]
    arguments = [call.args[0] for call in calls if ast.unparse(call.func) == decorator and call.args]
    names = [one.value if isinstance(one, ast.Constant) else values.get(ast.unparse(one)) for one in arguments]
    return {name for name in names if isinstance(name, str)}


def _wrong(hook: Hook) -> Iterator[str]:
    parameters = _in_source(hook)
    if parameters is None:  # inherited, or re-exported from another module: only an import can find it
        parameters = _imported(hook)
    if parameters is None:
        yield f"{hook} is gone, which {hook.needs} needs"
    elif missing := [name for name in hook.takes if name not in parameters]:
        yield f"{hook} takes no {', '.join(missing)} any more, which {hook.needs} needs"


def _in_source(hook: Hook) -> set[str] | None:
    """Return the parameters of a function (empty for a class or value); None if the module's source does not define it."""
    body: Iterable[ast.AST] = _tree(hook.module)
    found: ast.AST | None = None
    for part in hook.name.split("."):
        found = next((node for node in body if part in _names(node)), None)
        body = getattr(found, "body", ())
    if found is None or (hook.takes and not isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef)):
        return None
    arguments = getattr(found, "args", None)
    return {one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)} if arguments else set()


def _names(node: ast.AST) -> list[str]:
    """Return the names that a statement defines."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [one.asname or one.name for one in node.names]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
    return [getattr(target, "name", "") or getattr(target, "id", "") for target in targets]


@cache
def _tree(module: str) -> list[ast.stmt]:
    """Return the statements of a module; none if there is no such module. (`find_spec` of a submodule would import its package.)"""
    package, *parts = module.split(".")
    spec = importlib.util.find_spec(package)
    for root in (spec and spec.submodule_search_locations) or ():
        path = Path(root, *parts)
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return ast.parse(file.read_text(encoding="utf-8")).body
    return []


def _imported(hook: Hook) -> set[str] | None:
    try:
        found: Any = importlib.import_module(hook.module)
        for part in hook.name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return None
    return set(inspect.signature(found).parameters) if callable(found) else set()
