"""The request to verl's engine in one turn, and the part of its answer that is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

ENGINES = ("vllm", "sglang")  # of actor_rollout_ref.rollout.name


def sampling_of(rollout: Any, validate: bool, greedy: bool = False) -> dict[str, Any]:
    """Return the sampling parameters of verl's section `actor_rollout_ref.rollout`; `greedy`: verl wants one greedy rollout (ReMax)."""
    chosen = rollout.val_kwargs if validate else rollout
    parameters = {"temperature": chosen.temperature, "top_p": chosen.top_p, "top_k": chosen.top_k}
    if greedy and not validate:
        parameters = {"temperature": 0, "top_p": 1.0, "top_k": -1}
    return {**parameters, "repetition_penalty": 1.0, "logprobs": rollout.calculate_log_probs}


def sampling(
    parameters: Mapping[str, Any], most: int, stop: tuple[str, ...], interrupted: bool, engine: str = "vllm"
) -> dict[str, Any]:
    """Return verl's sampling parameters for at most `most` tokens up to a stop string, which is a part of what is returned.

    `interrupted`: an update of the weights may interrupt the request (verl's asynchronous trainers). `engine`: one of ENGINES. verl's
    server for SGLang renames `max_tokens`, and passes on the rest, where SGLang refuses names that it does not know.
    """
    common = {
        **parameters,
        "max_tokens": most,
        "stop": list(stop),
        "skip_special_tokens": False,  # stop strings are matched in the text, in which a special token must not be missing
    }
    if engine == "sglang":
        return {**common, "no_stop_trim": True}
    from vllm.sampling_params import RequestOutputKind

    return {
        **common,
        "include_stop_str_in_output": True,
        # verl waits for the end of a request anyway, and one message per request instead of one per token relieves the engine's process.
        # But before verl interrupts requests, it waits for a first output of each.
        **({} if interrupted else {"output_kind": RequestOutputKind.FINAL_ONLY}),
    }


def merge_steps(extra: dict[str, Any], new: Mapping[str, Any]) -> None:
    """Keep the oldest and the newest version of the weights that sampled a trajectory; verl's off-policy metrics need both."""
    for key, choose in (("min_global_steps", min), ("max_global_steps", max)):
        if new.get(key) is not None:
            extra[key] = choose(extra.get(key, new[key]), new[key])


def up_to_stop(ids: Sequence[int], decode: Callable[[Sequence[int]], str], stop: Sequence[str]) -> int:
    """Return the number of ids up to the end of the first stop string; of all ids if there is none.

    An interrupted request is sent again, with the ids sampled so far as a part of its prompt. Engines do not look for stop strings there,
    so that they miss one that began before the interruption, and the policy writes on.
    """

    def has_stopped(length: int) -> bool:
        text = decode(ids[:length])
        return any(one in text for one in stop)

    if not has_stopped(len(ids)):
        return len(ids)
    low, high = 0, len(ids)  # the first `high` ids contain a stop string, the first `low` do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if has_stopped(middle) else (middle, high)
    return high
