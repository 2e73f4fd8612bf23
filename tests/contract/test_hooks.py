"""What the plugin takes hold of in verl is there, is all in one list, and what a newer verl renames is named."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

hooks = pytest.importorskip("research_rl.verl_plugin.hooks", reason="needs the extra train")
PLUGIN = Path(hooks.__file__).parent
pytestmark = pytest.mark.slow


def renamed(tree: list[ast.stmt], name: str) -> list[ast.stmt]:
    """Return a module's statements in which a function, class or value of that name has another one."""
    copy = ast.parse(ast.unparse(ast.Module(tree, [])))
    for node in ast.walk(copy):
        for attribute in ("name", "id", "asname"):
            if getattr(node, attribute, None) == name:
                setattr(node, attribute, f"{name}_moved")
    return copy.body


def test_verl_has_everything_that_the_plugin_takes_hold_of():
    assert hooks.moved() == []


@pytest.mark.parametrize("hook", hooks.HOOKS, ids=str)
def test_a_hook_that_verl_renames_is_named_with_what_needs_it(hook, monkeypatch):
    last = hook.name.rpartition(".")[2]
    patched = renamed(hooks._tree(hook.module), last)
    monkeypatch.setattr(hooks, "_tree", lambda _: patched)
    monkeypatch.setattr(hooks, "_imported", lambda _: None)  # the installed verl has it still
    assert hooks.moved([hook]) == [f"{hook} is gone, which {hook.needs} needs"]


@pytest.mark.parametrize("hook", [hook for hook in hooks.HOOKS if hook.takes], ids=str)
def test_a_parameter_that_verl_renames_is_named(hook, monkeypatch):
    found = hooks._in_source(hook)
    monkeypatch.setattr(hooks, "_in_source", lambda _: found - {hook.takes[0]})
    (told,) = hooks.moved([hook])
    assert told.startswith(f"{hook} takes no {hook.takes[0]} any more")


def test_a_hook_that_became_inherited_is_still_found(monkeypatch):
    hook = hooks.Hook("verl.trainer.ppo.v1.agent_loop_tq", "AgentLoopWorkerTQ._compute_score", "this test")
    assert hooks._in_source(hook) is None  # it is a base class's
    worker = importlib.import_module(hook.module).AgentLoopWorkerTQ.__ray_metadata__.modified_class
    assert hasattr(worker, "_compute_score")
    base = hooks.Hook(
        "verl.workers.engine.fsdp.transformer_impl", "FSDPEngineWithLMHead.load_checkpoint", "this test", ("local_path",)
    )
    assert hooks._in_source(base) is None
    assert hooks.moved([base]) == []


def test_the_names_that_verl_registers_are_read_from_its_source():
    core = importlib.import_module("verl.trainer.ppo.core_algos")
    assert hooks.registered(core.__name__, "register_adv_est") == set(core.ADV_ESTIMATOR_REGISTRY) - {
        "reinforce_group_baseline"
    }
    assert hooks.registered(core.__name__, "register_policy_loss") == set(core.POLICY_LOSS_REGISTRY) - {"llds"}


def used() -> set[tuple[str, str]]:
    """Return what the plugin's sources import from verl, wrap, or call of their base classes: (module or empty, name)."""
    found = set()
    for path in PLUGIN.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "verl":
                found |= {(str(node.module), one.name) for one in node.names}
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                if node.func.attr == "wrap_function_wrapper" and isinstance(node.args[1], ast.Constant):
                    found.add(("", str(node.args[1].value)))
                if isinstance(called := node.func.value, ast.Call) and getattr(called.func, "id", "") == "super":
                    found.add(("", node.func.attr))
    return found


def test_all_that_the_plugin_uses_of_verl_is_in_the_list():
    names = {hook.name.rpartition(".")[2] for hook in hooks.HOOKS} | {hook.module.rpartition(".")[2] for hook in hooks.HOOKS}
    assert {(module, name) for module, name in used() if name not in names} == set()
