"""Python programs without the seconds of their imports: each is forked from a process that has made them.

`python -m research_rl.forks.server MODULES -- ARGUMENTS` imports the modules and runs Python with the arguments. What that program starts
with `PYTHON_EXEC` instead of `python`, as torchrun does, and what it starts by `multiprocessing`, is forked from the same process. On a CPU
trainings and vLLM are started so: each of a training's processes would otherwise import PyTorch, transformers and vLLM anew, most of them
one after the other.
"""

ADDRESS = "RESEARCH_RL_FORKS"  # environment variable: the socket of the process that forks
PYTHON = "PYTHON_EXEC"  # environment variable: the program to use instead of `python`


def forked(*modules: str) -> tuple[str, ...]:
    """Return what to put between `python` and its arguments, so that these modules are imported once."""
    return "-m", "research_rl.forks.server", ",".join(modules), "--"
