"""The GPU benchmark: a failed part does not stop the others; shares, launches and gaps add up."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmark_output import document, rows

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "benchmarks"))

from speed import apart, machine  # noqa: E402 - a folder of scripts, on the path since the line above
from speed.launches import gaps, operations, profiled  # noqa: E402
from speed.machine import Machine  # noqa: E402
from speed.parts import PARTS  # noqa: E402
from speed.sheets import peaks  # noqa: E402
from speed.table import Goal, Table  # noqa: E402
from speed.work import Work, reached  # noqa: E402

CPU = torch.device("cpu")
SCRIPT = str(ROOT / "benchmarks" / "gpu.py")
BLOCKED = """
import threading
pipe = open({pipe!r}, 'wb', 0)
pipe.write(b'begun')
threading.Event().wait()
"""
"""A program that says that it has begun and never ends; the pipe ends with its process."""


def child(file: Path, body: str) -> list[str]:
    """Return the command of a part with this body after a first table; `table(name)` returns a report with a table."""
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r})\n"
        "import os, signal, threading\n"
        "from pathlib import Path\n"
        "from speed.apart import carry_out\n"
        "from speed.table import Goal, Report, Table\n"
        "def table(name): return Report([Table(name, ('a', 'b'), [['1', '2']])], [Goal(name, 'much', 'more', True)])\n"
        f"def part():\n    yield table('first')\n    {body}\n"
        f"carry_out(part, Path({str(file)!r}))\n"
    )
    return [sys.executable, "-c", program]


def run_apart(folder: Path, body: str, limit: float = 400.0) -> apart.Found:
    """Run such a part in a process of its own, and return its result."""
    return apart.run(child(folder / "part.json", body), folder / "part.json", limit)


def test_a_part_gives_its_tables_and_goals_from_a_process_of_its_own(tmp_path: Path) -> None:
    outcome = run_apart(tmp_path, "yield table('second')")
    assert outcome.end == apart.MEASURED
    assert [report.tables[0] for report in outcome.reports] == [
        Table(name, ["a", "b"], [["1", "2"]], []) for name in ("first", "second")
    ]
    assert outcome.reports[1].goals == [Goal("second", "much", "more", True)]


@pytest.mark.parametrize(
    ("body", "end"),
    [
        (
            "raise RuntimeError('CUDA error: an illegal | access\\nmore')",
            "failed: RuntimeError: CUDA error: an illegal / access",
        ),
        ("import no_such_package", "failed: ModuleNotFoundError: No module named 'no_such_package'"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "failed: its process was ended by SIGSEGV"),
        ("os._exit(3)", "failed: its process ended with exit status 3"),
    ],
)
def test_a_part_that_fails_or_crashes_says_how_and_keeps_the_tables_that_it_had(
    body: str, end: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    outcome = run_apart(tmp_path, body)
    assert outcome.end == end
    assert [report.tables[0].title for report in outcome.reports] == ["first"]
    printed = capfd.readouterr()
    assert ("Traceback" in printed.err) == ("Error" in end)
    assert printed.out == ""


def test_a_part_that_hangs_is_ended_at_its_limit(tmp_path: Path) -> None:
    outcome = run_apart(tmp_path, "threading.Event().wait()", limit=0.01)
    assert outcome.end == "not measured: the time was up after 0 s"
    assert outcome.code is None


def test_a_part_ends_with_its_parent_even_where_that_is_killed(tmp_path: Path) -> None:
    pipe, file = tmp_path / "pipe", tmp_path / "part.json"
    os.mkfifo(pipe)
    body = f"exec({BLOCKED.format(pipe=str(pipe))!r})"
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r})\n"
        "from pathlib import Path\n"
        "from speed.apart import run\n"
        f"run({child(file, body)!r}, Path({str(file)!r}), 400)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program])
    with pipe.open("rb", 0) as reader:
        assert reader.read(5) == b"begun"
        parent.kill()
        parent.wait()
        assert reader.read() == b"", "the pipe ends with the part"


def test_gaps_are_from_the_end_of_all_kernels_so_far_to_the_next() -> None:
    idle_times = gaps([(5.0, 1.0), (0.0, 1.0), (1.5, 2.0), (2.0, 0.5), (20.0, 1.0)], pause=10.0)
    assert idle_times.kernels == 5
    assert idle_times.busy == pytest.approx(1 + 2 + 1 + 1)
    assert idle_times.idle == pytest.approx(0.5 + 0 + 1.5), "the gap of 14 s is a pause"
    assert idle_times.median == pytest.approx(0.5)
    assert gaps([]) == gaps([(1.0, 0.0)][:0])
    assert (gaps([(1.0, 2.0)]).busy, gaps([(1.0, 2.0)]).idle, gaps([(1.0, 2.0)]).median) == (2.0, 0.0, 0.0)


def test_operations_are_counted_forward_and_backward_without_views_and_allocations() -> None:
    left, right = (torch.randn(3, 3, requires_grad=True) for _ in range(2))
    assert operations(lambda: left @ right, CPU) == 1
    assert operations(lambda: torch.empty(3).view(1, 3).t().detach(), CPU) == 0
    assert operations(lambda: (left @ right).sum().backward(), CPU) > 4
    assert operations(lambda: left @ right, torch.device("meta")) == 0
    assert profiled(lambda: left @ right, CPU) is None


def test_a_data_sheet_is_found_by_the_name_that_torch_gives_the_card() -> None:
    card = peaks("NVIDIA H100 80GB HBM3")
    assert card is not None
    assert card.bandwidth == 3.35e12
    assert card.flops == {"fp32": 67e12, "tf32": 494.7e12, "fp16": 989.4e12, "bf16": 989.4e12}
    older = peaks("Tesla V100-SXM2-16GB")
    assert older is not None
    assert "bf16" not in older.flops
    for unknown in ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA A10G", "NVIDIA GeForce RTX 4090 D", "AMD EPYC"):
        assert peaks(unknown) is None


def test_rates_are_shares_of_the_measured_limit_and_of_the_data_sheet() -> None:
    work, limits = Work(flop=67e12, bytes=6.7e12), {"fp32": 50e12, "bf16": 700e12}
    card = Machine(CPU, "NVIDIA H100 80GB HBM3", bandwidth=2.5e12, flops=limits)
    assert reached(work, 10.0, card, "fp32") == ["6,700", "13 %, sheet 10 %", "670", "27 %, sheet 20 %"]
    unknown = Machine(CPU, "of a test", bandwidth=2.5e12, flops=limits)
    assert reached(work, 10.0, unknown, "fp32") == ["6,700", "13 %", "670", "27 %"]


def test_limits_that_could_not_be_measured_are_not_measured_and_so_are_shares_of_them(tmp_path: Path) -> None:
    unmeasured = machine.load(tmp_path / "none.json", CPU)
    assert reached(Work(1e9, 1e9), 1.0, unmeasured, "bf16") == ["1", "not measured", "1", "not measured"]
    measured = Machine(CPU, "of a test", bandwidth=10.0, flops={"fp32": 100.0})
    machine.save(measured, tmp_path / "limits.json")
    assert machine.load(tmp_path / "limits.json", CPU) == measured


def test_the_machine_part_puts_the_data_sheet_beside_what_was_measured() -> None:
    card = machine.limits(Machine(CPU, "NVIDIA A10", bandwidth=500e9, flops={"fp32": 15.6e12}))
    assert [list(row) for row in card.rows] == [
        ["memory, read", "500 GB/s", "600 GB/s", "83 %"],
        ["matrix products, fp32", "15,600 GFLOP/s", "31,200 GFLOP/s", "50 %"],
    ]
    assert machine.limits(Machine(CPU, "of a test", 5e9, {})).columns == ["limit", "best of 7"]


def bare(command: list[str], folder: Path, status: int = 0) -> str:
    """Return the output of a command without Dagster, MLflow and a network, in its children too."""
    (folder / "sitecustomize.py").write_text(
        "import socket, sys\n"
        "sys.modules.update(dagster=None, mlflow=None)\n"  # an import of them fails
        "def refuse(*_): raise OSError('the benchmarks need no network')\n"
        "socket.socket.connect = refuse\n"
    )
    settings = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(folder)}
    result = subprocess.run(command, cwd=ROOT, env=os.environ | settings, capture_output=True, text=True)
    assert result.returncode == status, result.stderr
    return result.stdout


def gpu_script(*arguments: str, folder: Path, status: int = 0) -> str:
    """Return the output of the script in such an environment, with tiny models on a CPU."""
    command = [sys.executable, SCRIPT, "--device", "cpu", "--quick", *arguments]
    return bare(command, folder, status)


def shadow(folder: Path, program: str) -> None:
    """Replace sktime by a program, in a process whose PYTHONPATH is the folder."""
    (folder / "sktime").mkdir()
    (folder / "sktime" / "__init__.py").write_text(program)


@pytest.mark.slow
def test_the_parts_of_the_gpu_benchmark_run_on_a_cpu_without_dagster_and_mlflow(tmp_path: Path) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r})\n"
        "import torch\n"
        "from speed.machine import measure\n"
        "from speed.parts import PARTS\n"
        "from speed.table import joined\n"
        "machine = measure(torch.device('cpu'), quick=True)\n"
        "for part in PARTS.values(): print(joined(list(part.measure(machine, True))).text())\n"
    )
    printed = bare([sys.executable, "-c", program], tmp_path)
    assert [row["way"] for row in rows(printed, "Sampling")][::4] == ["upstream"] * 2
    for title in ("Sampling", "Full fine-tune"):
        for row in rows(printed, title):
            assert all(re.match(r"\d", row[name]) for name in ("GFLOP/s", "of the products", "GB/s", "of the memory"))
    assert rows(printed, "3 adapters")[0]["way"].startswith("plain PEFT loop")
    for title in ("Launches of a bar", "Launches of a training step"):
        counted = rows(printed, title)
        assert counted[0]["way"].startswith("upstream")
        assert all(re.match(r"\d", row["operations"]) for row in counted)
        assert {row["kernels"] for row in counted} == {row["median gap"] for row in counted} == {"not measured"}
    assert [row["way"] for row in rows(printed, "Forecasts of")] == ["one by one", "in one call"]
    assert len(rows(printed, "Time of a training step by operation")) == 10
    assert "| read and cut CSVs " in printed


@pytest.mark.slow
def test_the_gpu_script_puts_what_it_prints_into_the_document_and_says_what_it_has_not_measured(tmp_path: Path) -> None:
    path = tmp_path / "performance.md"
    path.write_text("<!-- gpu -->\n<!-- /gpu -->\n")
    printed = gpu_script("--only", "machine", "--write", str(path), folder=tmp_path)
    gpu_section = document(path)["gpu"]
    assert all(table.strip() in gpu_section for table in printed.split("\n\n**"))
    assert rows(gpu_section, "Limits of the machine")
    goals = rows(gpu_section, "Goals")
    assert [row["wanted"] for row in goals] == ["15 times"] * 4 + ["8 times", "20 times"]
    assert {row["found"] for row in goals} == {row["reached"] for row in goals} == {"not measured"}
    missing = {row["part"]: row["found"] for row in rows(gpu_section, "Parts not measured")}
    assert missing == dict.fromkeys([name for name in PARTS if name != "machine"], "not measured")


@pytest.mark.slow
def test_the_gpu_script_goes_on_after_a_part_that_fails_and_writes_the_document_after_each(tmp_path: Path) -> None:
    path, copy = tmp_path / "performance.md", tmp_path / "kept.md"
    path.write_text("<!-- gpu -->\n<!-- /gpu -->\n")
    shadow(tmp_path, f"import shutil; shutil.copy({str(path)!r}, {str(copy)!r}); raise RuntimeError('out of order')")
    gpu_script("--write", str(path), "--only", "sampling", "launches", "machine", folder=tmp_path, status=1)
    reasons = {row["part"]: row["found"] for row in rows(document(path)["gpu"], "Parts not measured")}
    assert reasons["sampling"] == reasons["launches"] == "failed: RuntimeError: out of order"
    assert reasons["cost"] == "not measured"
    assert "machine" not in reasons
    before = {row["part"]: row["found"] for row in rows(document(copy)["gpu"], "Parts not measured")}
    assert before["sampling"] == reasons["sampling"], "it was written before the last part began"
    assert before["launches"] == "not measured"


def test_the_gpu_script_says_at_once_that_a_document_has_no_place_for_its_tables(tmp_path: Path) -> None:
    path = tmp_path / "performance.md"
    path.write_text("nothing\n")
    assert gpu_script("--write", str(path), folder=tmp_path, status=2) == ""
    assert path.read_text() == "nothing\n"


def test_the_gpu_script_begins_no_part_that_would_end_too_late(tmp_path: Path) -> None:
    printed = gpu_script("--seconds", "0", folder=tmp_path, status=1)
    assert printed.count("not measured: the time was up") == len(PARTS)
    assert rows(printed, "Goals")


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_script_says_at_once_that_there_is_no_gpu_and_leaves_the_document(tmp_path: Path) -> None:
    path = tmp_path / "performance.md"
    path.write_text("<!-- gpu -->\nfigures\n<!-- /gpu -->\n")
    result = subprocess.run([sys.executable, SCRIPT, "--write", str(path)], capture_output=True, text=True)
    assert result.returncode == 2
    assert "--device cpu --quick" in result.stderr
    assert "Traceback" not in result.stderr
    assert "figures" in path.read_text()


@pytest.mark.slow
def test_a_signal_ends_the_part_and_keeps_what_was_measured(tmp_path: Path) -> None:
    path, pipe = tmp_path / "performance.md", tmp_path / "pipe"
    path.write_text("<!-- gpu -->\n<!-- /gpu -->\n")
    os.mkfifo(pipe)
    shadow(tmp_path, BLOCKED.format(pipe=str(pipe)))
    command = [sys.executable, SCRIPT, "--device", "cpu", "--quick", "--write", str(path), "--only", "sampling"]
    script = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(tmp_path)}, stdout=subprocess.DEVNULL)
    with pipe.open("rb", 0) as reader:
        assert reader.read(5) == b"begun"
        script.send_signal(signal.SIGTERM)
        assert script.wait() == 128 + signal.SIGTERM
        assert reader.read() == b"", "the pipe ends with the part"
    gpu_section = document(path)["gpu"]
    assert rows(gpu_section, "Limits of the machine")
    assert rows(gpu_section, "Parts not measured")[0] == {
        "part": "sampling",
        "found": "not measured: the run was ended",
    }
    assert rows(gpu_section, "Goals")
