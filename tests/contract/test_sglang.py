"""SGLang as the engine: what the rollout asks of it arrives in its own words. No GPU is here, so that no model answers."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import pytest

pytest.importorskip("verl", reason="needs the extra train")

from research_rl.verl_plugin.generation import sampling

# the sampling parameters of SGLang 0.5.12, by its documentation; it refuses others
DOCUMENTED = {
    "max_new_tokens", "stop", "stop_token_ids", "stop_regex", "temperature", "top_p", "top_k", "min_p", "frequency_penalty",
    "presence_penalty", "repetition_penalty", "min_new_tokens", "n", "json_schema", "regex", "ebnf", "structural_tag", "ignore_eos",
    "skip_special_tokens", "spaces_between_special_tokens", "no_stop_trim", "custom_params", "stream_interval", "logit_bias",
    "sampling_seed",
}  # fmt: skip  # names only
# what verl's worker of agent loops passes to a loop
OF_VERL = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "logprobs": True}
STOP = ("</search>", "</answer>")
SERVER = "verl.workers.rollout.sglang_rollout"


class Absent:
    """Makes every module of sglang importable, and empty: verl's server is what is tested."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] == "sglang" else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)
        module.__path__ = []
        module.__version__ = "0.5.12"  # type: ignore[attr-defined]
        module.__getattr__ = lambda name: MagicMock(name=name)  # type: ignore[method-assign]
        return module

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__.endswith(".io_struct"):
            module.GenerateReqInput = SimpleNamespace  # type: ignore[attr-defined]


@pytest.fixture
def server(monkeypatch):
    """verl's server for SGLang, without SGLang."""

    def forget() -> None:
        for name in [name for name in sys.modules if name.split(".")[0] == "sglang" or name.startswith(SERVER)]:
            del sys.modules[name]

    forget()
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    yield importlib.import_module(f"{SERVER}.async_sglang_server").SGLangHttpServer
    forget()


def asked_of(server, parameters: dict, finish: dict) -> tuple[SimpleNamespace, object]:
    """Return the request that verl's server passes to SGLang, and what verl makes of the answer."""
    requests = []

    class Tokenizer:
        async def generate_request(self, request, _):
            requests.append(request)
            logprobs = [(-0.5, 7, None), (-0.25, 8, None)]
            yield {"output_ids": [7, 8], "meta_info": {"finish_reason": finish, "output_token_logprobs": logprobs}}

    config = MagicMock(max_model_len=1000, enable_rollout_routing_replay=False, mtp=None)
    replica = SimpleNamespace(
        _disaggregation_role="null", _pd_decode_peers=[], config=config, lora_as_adapter=False, replica_rank=0, global_steps=3,
        tokenizer_manager=Tokenizer(),
    )  # fmt: skip  # what it reads
    output = asyncio.run(server.generate(replica, [1, 2, 3], parameters, "request"))
    return requests[0], output


def test_a_turn_asks_sglang_for_its_stop_strings_and_keeps_them_in_what_is_returned(server):
    request, output = asked_of(
        server, sampling(OF_VERL, 50, STOP, interrupted=False, engine="sglang"), {"type": "stop", "matched": "</search>"}
    )
    assert request.sampling_params == {
        "temperature": 1.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "max_new_tokens": 50, "stop": list(STOP),
        "no_stop_trim": True, "skip_special_tokens": False,
    }  # fmt: skip  # all of them
    assert set(request.sampling_params) <= DOCUMENTED
    assert request.return_logprob
    assert (output.token_ids, output.log_probs, output.stop_reason) == ([7, 8], [-0.5, -0.25], "stop")


@pytest.mark.parametrize("interrupted", [False, True])
def test_without_stop_strings_nothing_is_asked_for_that_sglang_does_not_know(server, interrupted):
    request, _ = asked_of(server, sampling(OF_VERL, 5, (), interrupted=interrupted, engine="sglang"), {"type": "length"})
    assert set(request.sampling_params) <= DOCUMENTED
    assert request.sampling_params["max_new_tokens"] == 5


def test_the_installed_sglang_takes_the_parameters(server):
    sys.meta_path = [finder for finder in sys.meta_path if not isinstance(finder, Absent)]
    sys.modules.pop("sglang", None)
    if (found := importlib.util.find_spec("sglang")) is None or not found.submodule_search_locations:
        pytest.skip("SGLang is not installed: it needs a GPU")
    # the file alone: importing the package needs its kernels
    file = Path(found.submodule_search_locations[0], "srt", "sampling", "sampling_params.py")
    spec = importlib.util.spec_from_file_location("sglang_sampling_params", file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    request, _ = asked_of(server, sampling(OF_VERL, 50, STOP, interrupted=False, engine="sglang"), {"type": "stop"})
    taken = module.SamplingParams(**request.sampling_params)
    taken.verify(1000)
    with pytest.raises(TypeError):
        module.SamplingParams(**request.sampling_params, include_stop_str_in_output=True)  # vLLM's word
    taken.normalize(SimpleNamespace(encode=lambda text, add_special_tokens: list(text)))
    assert taken.stop_strs == list(STOP)
