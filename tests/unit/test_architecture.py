"""Who may import whom; and what works in an environment without verl."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from docs.tools import commands

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "verl", "vllm", "ray", "transformers", "httpx"}
OURS = {"research_rl", "rag_serving", "data_preprocess", "evaluation", "quickstart", "experiment"}
OVER = OURS - {"research_rl"}
WINGS = {f"research_rl.{name}" for name in ("training", "inference", "web", "verl_plugin")}
CORE = [
    "research_rl/files.py",
    "research_rl/command_line.py",
    "research_rl/codec.py",
    "research_rl/scoring.py",
    "research_rl/questions.py",
    "research_rl/gathering.py",
    "research_rl/outages.py",
    "research_rl/retrieval.py",
    "research_rl/recall.py",
    "research_rl/recordings.py",
    "research_rl/judge.py",
    "research_rl/judge_cache.py",
    "research_rl/judge_client.py",
    "research_rl/limits.py",
    "research_rl/neutralize.py",
    "research_rl/blocks.py",
    "research_rl/trajectory_files.py",
    "research_rl/health.py",
]
FORBIDDEN = {
    "research_rl/types.py": HEAVY | OURS,
    "research_rl/errors.py": HEAVY | OURS,
    "research_rl/metrics.py": HEAVY | OURS,
    "research_rl/cpu.py": HEAVY | OURS,
    **dict.fromkeys(CORE, WINGS | OVER | {"verl", "vllm", "ray", "torch"}),
    "research_rl/methods": HEAVY | WINGS | OVER | {"research_rl.rollout"},
    "research_rl/tools": HEAVY | WINGS | OVER | {"research_rl.rollout", "research_rl.methods"},
    "research_rl/rollout.py": HEAVY | WINGS | OVER,
    "research_rl/forks": HEAVY | (OURS - {"research_rl"}) | WINGS,
    "research_rl/release.py": OVER | {"verl", "vllm", "ray", "torch"},
    "research_rl/model_card.py": OVER | {"verl", "vllm", "ray", "torch"},
    "research_rl/training": (WINGS - {"research_rl.training"}) | OVER,
    "research_rl/inference": (WINGS - {"research_rl.inference"}) | OVER,
    "research_rl/web": (WINGS - {"research_rl.web", "research_rl.inference"}) | OVER,
    "research_rl/verl_plugin": (WINGS - {"research_rl.verl_plugin", "research_rl.training", "research_rl.inference"}) | OVER,
    "rag_serving": (OURS - {"rag_serving"}) | {"verl", "vllm", "ray"},
    "evaluation": {"verl", "research_rl.verl_plugin", "rag_serving", "data_preprocess", "quickstart", "experiment"},
    "data_preprocess": {"verl", "research_rl.verl_plugin", "evaluation", "quickstart", "experiment"},
    "quickstart": {"experiment"},
    "experiment": {"benchmarks", "tests"},
}


def imports(path: Path) -> set[str]:
    """Return the dotted names that a file imports at any depth, with every prefix of each."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            found |= {".".join(parts[:i]) for i in range(1, len(parts) + 1)}
    return found


@pytest.mark.parametrize("where", FORBIDDEN)
def test_imports_go_one_way(where):
    path = ROOT / where
    for file in path.rglob("*.py") if path.is_dir() else [path]:
        assert not imports(file) & FORBIDDEN[where], file


def test_no_two_packages_import_each_other():
    over = {package: {name for file in (ROOT / package).rglob("*.py") for name in imports(file) & OURS} for package in OURS}
    assert not {(one, other) for one in OURS for other in over[one] - {one} if one in over[other]}


def test_every_file_of_the_core_and_every_wing_has_its_rule():
    ruled = {
        *CORE,
        *FORBIDDEN,
        "research_rl/cli.py",
        "research_rl/completion.py",
        "research_rl/train.py",
        "research_rl/__init__.py",
    }
    assert {f"research_rl/{path.name}" for path in (ROOT / "research_rl").glob("*.py")} <= ruled
    wings = {path.parent.name for path in (ROOT / "research_rl").glob("*/__init__.py")} - {"config"}
    assert {f"research_rl/{name}" for name in wings} <= set(FORBIDDEN)


def test_the_data_commands_take_of_the_service_only_how_a_corpus_is_read():
    formats = "rag_serving.indexing.formats"
    allowed = {
        "rag_serving",
        "rag_serving.IndexingError",
        "rag_serving.indexing",
        formats,
        f"{formats}.kilt_page",
        f"{formats}.passage",
    }
    for file in (ROOT / "data_preprocess").rglob("*.py"):
        assert {name for name in imports(file) if name.startswith("rag_serving")} <= allowed, file


def test_only_the_plugin_imports_verl():
    for package in {name.partition(".")[0] for name in OURS}:
        for file in (ROOT / package).rglob("*.py"):
            if "verl_plugin" not in file.parts:
                assert "verl" not in imports(file), file


def test_the_two_main_programs_take_from_the_service_only_what_has_a_reason():
    allowed = {
        "experiment/data.py": {"rag_serving.indexing.formats.read_corpus"},  # a page is cut in one way only
        "quickstart/main_program.py": {"rag_serving.IndexingError"},
        "quickstart/start_model/make.py": {
            "rag_serving.indexing.build_index",
            "rag_serving.retrievers.load_index",
        },  # without a server
    }
    for package in ("experiment", "quickstart"):
        for file in (ROOT / package).rglob("*.py"):
            taken = {name for name in imports(file) if name.partition(".")[0] == "rag_serving"}
            wanted = allowed.get(str(file.relative_to(ROOT)), set())
            assert {name for name in taken if not any(f"{one}.".startswith(f"{name}.") for one in wanted)} == set(), file


BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError("blocked: " + name, name=name.split(".")[0])
sys.meta_path.insert(0, Block())
"""


def without(blocked: set[str], code: str) -> subprocess.CompletedProcess:
    """Run code in an interpreter that cannot import some packages."""
    return subprocess.run(
        [sys.executable, "-c", BLOCK.format(blocked=blocked) + code], capture_output=True, text=True, check=False, cwd=ROOT
    )


def test_the_packages_import_without_any_extra():
    extras = {
        "verl",
        "vllm",
        "ray",
        "torch",
        "transformers",
        "fastapi",
        "uvicorn",
        "flashrag",
        "bm25s",
        "numpy",
        "pyarrow",
        "wandb",
    }
    done = without(
        extras,
        "import research_rl, research_rl.rollout, research_rl.retrieval, research_rl.methods.research, rag_serving, rag_serving.cli",
    )
    assert done.returncode == 0, done.stderr


def test_the_retrieval_client_needs_httpx_and_tenacity_only():
    code = "import sys\nfrom research_rl.retrieval import RetrievalClient, RetrievalSettings\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert {"research_rl", "httpx", "tenacity"} <= loaded
    extras = {"numpy", "pyarrow", "yaml", "omegaconf", "hydra", "pydantic", "fastapi", "bm25s", "numba", "faiss", "wandb"}
    assert not loaded & (HEAVY - {"httpx"} | extras | OVER)


@pytest.mark.parametrize("package", ["bm25s", "tqdm", "numpy"])
def test_a_missing_extra_is_named(tmp_path, package):
    corpus = tmp_path / "c.jsonl"
    corpus.write_text('{"id": "1", "contents": "a"}\n')
    arguments = ["index", "--corpus", str(corpus), "--out", str(tmp_path / "i")]
    done = without({package}, f"from rag_serving.cli import main; sys.exit(main({arguments!r}))")
    assert done.returncode == 1
    assert "pip install 'research-rl[serve]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_mcp_command_names_its_extra():
    done = without({"mcp"}, "from rag_serving.cli import main; sys.exit(main(['mcp']))")
    assert done.returncode == 1
    assert "pip install 'research-rl[mcp]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_evaluator_and_the_data_commands_name_their_extra_too(tmp_path):
    answers = tmp_path / "answers.jsonl"
    answers.write_text('{"answer": "Oslo", "golden_answers": ["Oslo"]}\n')
    done = without({"scipy"}, f"from evaluation.__main__ import main; sys.exit(main(['score', {str(answers)!r}]))")
    assert done.returncode == 1
    assert "pip install 'research-rl[eval]'" in done.stderr
    assert "Traceback" not in done.stderr
    arguments = ["world", "--out", str(tmp_path), "--scale", "0.2", "--train", "5", "--dev", "5", "--test", "5"]
    done = without({"pyarrow"}, f"from data_preprocess.__main__ import main; sys.exit(main({arguments!r}))")
    assert "pip install 'research-rl[data]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_rollout_server_names_its_extra_when_verl_is_missing():
    done = without({"verl"}, "import research_rl.verl_plugin.agent_manager")
    assert "pip install 'research-rl[train]'" in done.stderr


def test_the_completion_command_names_its_extra():
    done = without({"shtab"}, "from research_rl.completion import main; sys.exit(main(['bash']))")
    assert done.returncode == 1
    assert "pip install 'research-rl[completion]'" in done.stderr


SLOW = HEAVY - {"httpx"} | {
    *("numpy", "scipy", "pandas", "pyarrow", "numba", "faiss", "bm25s", "sentence_transformers", "datasets", "flashrag"),
    *("fastapi", "starlette", "uvicorn", "matplotlib", "hydra", "omegaconf"),
}


@pytest.mark.parametrize("module", sorted(set(commands.COMMANDS.values())))
def test_help_imports_nothing_that_is_slow(module):
    done = without(SLOW, f"from {module} import main; main(['--help'])")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage:")


def test_the_help_of_a_service_with_its_settings_imports_nothing_that_is_slow():
    done = without(SLOW, "from rag_serving.cli import main; main(['serve', '--help'])")
    assert "--workers" in done.stdout, done.stderr
