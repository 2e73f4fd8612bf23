r"""Search agents in the model's own tool-call format: the chat template describes the tools to the model, and formats their results.

Protocol: the policy writes a message with one call or several, and ends it; the results follow in the template's frame; a message
without a call is the last one, and contains the answer. See docs/tool_calls.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

from research_rl.errors import ConfigError
from research_rl.methods.base import Method, TemplateCodec, known, recorded
from research_rl.methods.research import answer_block, last_boxed
from research_rl.methods.templates import Prompt, load_template
from research_rl.metrics import exact_match, f1
from research_rl.neutralize import neutralize
from research_rl.recordings import read_messages
from research_rl.tools.base import Tool, load_tools
from research_rl.tools.formats import broken, format_of, load_format
from research_rl.tools.mcp import load_mcp
from research_rl.tools.open import OpenTool, opened_in
from research_rl.types import Action, Answer, Conversation, Invalid, Passage, Reward, ToolCall, ToolCalls, Trajectory, Turn

AnswerForm = Literal["boxed", "tag", "plain"]
Outcome = Literal["em", "f1"]
Form = Literal["paid", "required"]
Thoughts = Literal["free", "required"]
_FRAMES = re.compile(  # how templates frame results in a recorded text: ChatML, Llama 3
    r"(?:<\|im_end\|>)?(?<!\s)\s*<\|im_start\|>(?:user|tool)\s*<tool_response>.*?<\|im_start\|>assistant\n"
    r"|(?:<\|e[ou][mt]_id\|>)?<\|start_header_id\|>ipython<\|end_header_id\|>.*?<\|start_header_id\|>assistant<\|end_header_id\|>\n\n",
    re.DOTALL,
)


class ToolCallsMethod(Method):
    """The model's own tool calls; EM or F1 of the final message's answer."""

    name: ClassVar[str] = "tool_calls"
    stop = ()  # the policy ends its messages itself
    observed = _FRAMES

    def __init__(
        self,
        tools: Sequence[str] = ("search", "open"),
        format: str = "hermes",
        answer: AnswerForm = "boxed",
        outcome: Outcome = "f1",
        format_reward: float = 0.1,
        malformed_penalty: float = 0.0,
        unsearched_penalty: float = 0.0,
        prompt: Prompt = None,
        prompt_file: str | None = None,
        mcp: Mapping[str, Any] | None = None,
        form: Form = "paid",
        thoughts: Thoughts = "free",
        unknown_id_penalty: float = 0.0,
        max_calls: Mapping[str, int] | None = None,
    ) -> None:
        r"""`tools`: names of `research_rl.tools`, or dotted paths; `format`: how the model writes a call (`research_rl.tools.formats`).

        `answer`: where the final message has it: in `\boxed{}`, between `<answer>` tags, or it is the whole message. `format_reward`:
        the reward of a well-formed trajectory whose answer is wrong. `malformed_penalty` is subtracted if a call could not be executed,
        `unsearched_penalty` if there was no search, `unknown_id_penalty` if an id was opened that had not been shown. `mcp`: an MCP
        server whose tools are added (`research_rl.tools.mcp`). `form`: if required, the answer is rewarded only in a well-formed
        trajectory (ReCall's reward). `thoughts`: if required, a trajectory is well-formed only if each message has a thought. `max_calls`:
        how often a tool may be called in one rollout, by its name; all calls together are limited by `max_searches`.

        Raises:
            ConfigError: an unknown tool, format or answer form, an unusable prompt (see `load_template`), a penalty for a tool that is
                not there, or an MCP server that does not answer, or has a tool that cannot be used.
        """
        known("tool_calls", "answer", answer, get_args(AnswerForm))
        known("tool_calls", "outcome", outcome, get_args(Outcome))
        known("tool_calls", "form", form, get_args(Form))
        known("tool_calls", "thoughts", thoughts, get_args(Thoughts))
        self._gated, self._fewest_thoughts = form == "required", int(thoughts == "required")
        self.tools = _limited(_tools(tools, mcp), max_calls or {})
        self.format_name, self._format = format, load_format(format)
        self._schemas = {name: tool.parameters for name, tool in self.tools.items()}
        self._opens = any(isinstance(tool, OpenTool) for tool in self.tools.values())
        self._unknown_id = unknown_id_penalty
        if unknown_id_penalty and not self._opens:
            raise ConfigError(
                f"tool_calls: unknown_id_penalty={unknown_id_penalty} needs the tool open, and the tools are {', '.join(self.tools)}: add "
                "it to tools, or leave the penalty out"
            )
        self._form, self._outcome = answer, {"em": exact_match, "f1": f1}[outcome]
        self._format_reward, self._malformed, self._unsearched = format_reward, malformed_penalty, unsearched_penalty
        self._prompt = load_template(f"tool_calls_{answer}", prompt, prompt_file, None)
        own = {"boxed": ("\\boxed{",), "tag": ("<answer>", "</answer>"), "plain": ()}[answer]
        self.tags = (*self._format.tags, "<tool_response>", "</tool_response>", "<think>", "</think>", *own)

    def prompt(self, question: str) -> Conversation:
        return {
            "messages": [{"role": "system", "content": self._prompt.template}, {"role": "user", "content": question}],
            "tools": [tool.schema() for tool in self.tools.values()],
        }

    def check_template(self, codec: TemplateCodec) -> None:
        """Check that the chat template shows results of tools and asks for calls in the method's format."""
        told = format_of(codec.template)
        if told is None and "tools" not in codec.template:
            raise ConfigError(
                "the model's chat template does not show tools to the model: take a model whose template does, or give it one, for example "
                "research_rl/tools/chatml.jinja (chat_template of an experiment, or actor_rollout_ref.model.custom_chat_template)"
            )
        if told not in (None, self.format_name):
            raise ConfigError(
                f"the model's chat template asks for tool calls in the format {told}, and the method reads {self.format_name}: "
                f"set research_rl.method_options.format={told}"
            )
        if "Uppsala" not in codec.tool_results(["Uppsala"]):
            raise ConfigError("the model's chat template leaves out what a tool returns: give the model another template")
        for name, tool in self.tools.items():  # they get into the prompt without being neutralised
            described = json.dumps(tool.schema(), ensure_ascii=False)
            if neutralize(described, (*self.tags, *codec.special_tokens)) != described:
                raise ConfigError(
                    f"the description or schema of the tool {name} contains a tag or a control token of the template, which would act as "
                    "one in the prompt: leave the tool out, or describe it otherwise"
                )

    def parse(self, text: str) -> Action:
        said = text.rpartition("</think>")[2]  # a call inside a thought is not executed
        calls = self._format.read(said, self._schemas)
        if calls:
            return ToolCalls(tuple(map(self._checked, calls)))
        found = self._answer_in(said)
        return Answer(found) if found else Invalid(f"neither a call nor an answer ({self._form})")

    def _checked(self, call: ToolCall) -> ToolCall:
        if call.error:
            return call
        if call.name not in self.tools:
            return broken(f"there is no tool of this name; there are: {', '.join(self.tools)}")
        # wrong arguments may be any JSON, of any depth: they are dropped here, and remain in the turn's text
        wrong = self.tools[call.name].wrong(call.arguments)
        return ToolCall(call.name, {}, wrong) if wrong else call

    def read_messages(self, messages: Sequence[Any]) -> Trajectory:
        """Return the trajectory of a recorded conversation; each of its messages reads as the policy would have written it."""
        question, said = read_messages(messages)
        turns = []
        for one in said:
            calls = list(one.calls.values())
            written = [self._format.write(call.name, call.arguments) for call in calls]
            text = "\n".join([*filter(None, [one.text]), *written])
            action = ToolCalls(tuple(map(self._checked, calls))) if calls else self.parse(text)
            turns.append(Turn(text, action, "\n".join(text or "(nothing)" for text in one.results.values())))
        return recorded(question, turns)

    def _answer_in(self, said: str) -> str | None:
        if self._form == "boxed":
            return last_boxed(said)
        if self._form == "tag":
            return answer_block(said).strip()
        return said.strip()

    def render(self, passages: list[list[Passage]]) -> str:
        """Return the content of one result; the template's frame is put around it by the rollout."""
        shown = [f"[{one.id}] {one.contents}" if one.id else one.contents for row in passages for one in row]
        return "\n\n".join(shown) or "Nothing was found."

    def well_formed(self, trajectory: Trajectory) -> bool:
        """Return whether every call could be executed, every thought is closed, and the last message has an answer."""
        turns = trajectory.turns
        return (
            bool(turns)
            and isinstance(turns[-1].action, Answer)
            and trajectory.ended_with_eos
            and all(isinstance(turn.action, ToolCalls) for turn in turns[:-1])
            and not any(call.error for call in calls_of(trajectory))
            and all(turn.text.count("<think>") <= turn.text.count("</think>") <= 1 for turn in turns)
            and all(turn.text.count("</think>") >= self._fewest_thoughts for turn in turns)
        )

    def write_search(self, thought: str, query: str) -> str:
        return self.write_call(thought, "search", {"query": query})

    def write_call(self, thought: str, name: str, arguments: Mapping[str, Any]) -> str:
        return self._after(thought, self._format.write(name, arguments), self._format.stands_alone)

    def write_answer(self, thought: str, answer: str) -> str:
        written = {"boxed": f"\\boxed{{{answer}}}", "tag": f"<answer>{answer}</answer>", "plain": answer}[self._form]
        return self._after(thought, written, self._form == "plain")

    def _after(self, thought: str, written: str, stands_alone: bool) -> str:
        """Return a thought and what follows it. The thought is a `<think>` block if required, else plain text, or left out."""
        if self._fewest_thoughts:
            return f"<think>{thought.strip()}</think>\n{written}"
        return written if stands_alone else f"{thought.strip()}\n{written}".lstrip()

    def reward(self, trajectory: Trajectory, golden_answers: Sequence[str], judged: float | None = None) -> Reward:
        """Return the answer's EM or F1 (or the judge's verdict), or `format_reward` if that is 0 and the trajectory is well-formed, minus
        the penalties. If the form is required, the answer of a trajectory that is not well-formed earns nothing."""
        answer = self.answer(trajectory)
        overlap = self._outcome(answer, golden_answers) if answer else 0.0
        formed, called = self.well_formed(trajectory), calls_of(trajectory)
        malformed = any(call.error for call in called)
        unsearched = not trajectory.searches
        right = overlap if answer is None or judged is None else judged
        paid = 0.0 if self._gated and not formed else right
        score = paid or (self._format_reward if formed else 0.0)
        opens = opened_in(trajectory, self.tools)
        unknown = sum(not one.shown for one in opens)
        score -= self._malformed * malformed + self._unsearched * unsearched + self._unknown_id * bool(unknown)
        counts = {f"calls/{name}": sum(call.name == name for call in called) for name in self.tools}
        if self._opens:
            counts |= {"unknown_ids": unknown, "repeated_opens": sum(one.again for one in opens)}
        counted = {name: float(count) for name, count in counts.items()}
        return Reward(score, {"answer": overlap, "format": float(formed), "malformed_call": float(malformed), **counted})


def _tools(names: Sequence[str], mcp: Mapping[str, Any] | None) -> dict[str, Tool]:
    if mcp is None:
        return load_tools(names)
    own, others = load_tools(names) if names else {}, load_mcp(mcp)
    if both := sorted(set(own) & set(others)):
        raise ConfigError(
            f"the MCP server and the option `tools` both have {', '.join(both)}: leave them out of tools, or of mcp.tools"
        )
    return {**own, **others}


def _limited(tools: dict[str, Tool], max_calls: Mapping[str, int]) -> dict[str, Tool]:
    for name, most in max_calls.items():
        if name not in tools or isinstance(most, bool) or not isinstance(most, int) or most < 1:
            raise ConfigError(
                f"tool_calls: max_calls={dict(max_calls)} must give some of the tools ({', '.join(tools)}) a number of calls, 1 or more"
            )
        tools[name].max_calls = most
    return tools


def calls_of(trajectory: Trajectory) -> list[ToolCall]:
    """Return all calls of a trajectory, in order."""
    return [call for turn in trajectory.turns if isinstance(turn.action, ToolCalls) for call in turn.action.calls]
