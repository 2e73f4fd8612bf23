"""The type in which a processor multiplies fastest, and the arithmetic of a step."""

from __future__ import annotations

import pytest

from research_rl.cpu import CPU_ENVIRONMENT, cores, fast_dtype, hardware
from research_rl.inference import engine
from research_rl.training.flops import Step


@pytest.mark.parametrize(
    ("line", "dtype"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16", "bfloat16"),
        ("flags\t\t: fpu avx2 amx_bf16 amx_tile", "bfloat16"),
        ("Features\t: fp asimd bf16", "bfloat16"),
        ("flags\t\t: fpu avx2 avx512f", "float32"),
        ("flags\t\t: fpu fma avx f16c avx2", "float32"),
        ("Features\t: fp asimd", "float32"),
        ("model name\t: a bf16 amx_bf16 in its name", "float32"),
        ("", "float32"),
    ],
)
def test_bfloat16_is_for_processors_with_instructions_for_it(line, dtype, tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\n{line}\n\nprocessor\t: 1\n{line}\n")
    assert fast_dtype(file) == dtype


def test_where_nothing_tells_of_the_processor_it_is_float32(tmp_path):
    assert fast_dtype(tmp_path / "none") == "float32"


@pytest.mark.parametrize(
    ("quota", "count"),
    [("max 100000", 64), ("200000 100000", 2), ("150000 100000", 1), ("50000 100000", 1), ("9900000 100000", 64), ("", 64)],
)
def test_cores_are_those_that_a_container_has_the_time_of(quota, count, tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)))
    (tmp_path / "cpu.max").write_text(f"{quota}\n" if quota else "")
    assert cores(tmp_path / "cpu.max") == count
    assert cores(tmp_path / "none") == 64


def test_a_summary_names_cores_processor_and_its_fast_type():
    assert set(hardware()) == {"cores", "processor", "fast_dtype"}
    assert hardware()["cores"] == int(CPU_ENVIRONMENT["OMP_NUM_THREADS"])


def test_recipes_for_a_cpu_read_the_type_from_the_environment_that_they_are_run_in():
    assert CPU_ENVIRONMENT["CPU_DTYPE"] == fast_dtype()


@pytest.mark.parametrize(("on_cpu", "first"), [(True, ["--dtype", fast_dtype()]), (False, [])])
def test_a_server_on_a_cpu_gets_the_fast_type_before_the_options_which_may_have_another(on_cpu, first, monkeypatch, tmp_path):
    started = []

    def popen(command, **_):
        started.extend(command)
        raise InterruptedError

    monkeypatch.setattr(engine, "cpu_build", lambda: on_cpu)
    monkeypatch.setattr(engine.subprocess, "Popen", popen)
    with pytest.raises(InterruptedError), engine.vllm_server("model", "m", ["--dtype", "half"], tmp_path / "log"):
        pass
    # of an option given twice, the last one counts
    assert started[started.index("--port") + 2 :] == [*first, "--dtype", "half"]


def test_a_step_costs_twelve_flops_a_parameter_and_token_and_less_where_less_is_done():
    whole = Step(rollouts=10, tokens=100.0, parameters=1e6)
    assert whole.flops() == pytest.approx(12 * 10 * 100 * 1e6)
    # π_old from the engine, no π_ref, half of the rollouts trained on: 2 of sampling and 3 of the update
    assert Step(10, 100.0, 1e6, trained=0.5, passes=0).flops() == pytest.approx(5 * 10 * 100 * 1e6)
    assert Step(10, 100.0, 1e6, passes=0, frozen=True).flops() == pytest.approx(6 * 10 * 100 * 1e6)
    assert Step(10, 100.0, 1e6, recomputed=True).flops() == pytest.approx(14 * 10 * 100 * 1e6)
