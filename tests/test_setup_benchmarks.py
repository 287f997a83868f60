"""The benchmarks: their arithmetic, their measurements, and the output of their commands."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark_output import document, rows
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "benchmarks"))

import bench  # noqa: E402 - a folder of scripts, on the path since the line above
import startup  # noqa: E402
from speed.cases import Repeats  # noqa: E402
from speed.machine import Machine  # noqa: E402
from speed.models import PAIRS, random_model  # noqa: E402
from speed.table import Goal, Report, Table, goal_table, joined, put  # noqa: E402
from speed.timing import Sample, Spread, alternate, peak_of, ratio, timed  # noqa: E402
from speed.work import Work, cached_sampling, floor, repeated_sampling, total, training  # noqa: E402

CPU = torch.device("cpu")
STAMPS = torch.zeros(1, 1, 5, dtype=torch.long)


def counted(run: Any) -> int:
    """Count the operations of the matrix products in a call, attention included, by torch's own count."""
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        run()
    total: int = counter.get_total_flops()
    return total


def upstream_bar(size: str) -> int:
    """Count upstream's operations to sample one bar after one bar of one series, by torch's count."""
    model = random_model(size, CPU)
    predictor, tokenizer = model.predictor, model.tokenizer

    def run() -> None:
        s1, s2 = tokenizer.encode(torch.zeros(1, 1, 6), half=True)
        _, hidden = predictor.decode_s1(s1, s2, STAMPS)
        predictor.decode_s2(hidden, s1)
        tokenizer.decode([s1.repeat(1, 2), s2.repeat(1, 2)], half=True)

    return counted(run)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["nano", "mini", "small"])
def test_the_formulas_count_what_upstream_computes(size: str) -> None:
    """With one bar the formula and torch's count agree, up to a key in the decoder that causal attention leaves out."""
    tokenizer = PAIRS[size].tokenizer
    beyond_causal = 4 * tokenizer.width * (tokenizer.layers - 1)
    flop = total(repeated_sampling(PAIRS[size], 1, 1, 1, 1)).flop
    assert flop == upstream_bar(size) - beyond_causal
    assert total(cached_sampling(PAIRS[size], 1, 1, 1, 1)).flop == flop, "with one bar there is nothing to repeat"


@pytest.mark.parametrize("size", ["nano", "mini", "small"])
def test_a_step_reads_each_weight_of_its_products_once(size: str) -> None:
    predictor = random_model(size, CPU).predictor
    products = {name: part for name, part in predictor.named_modules() if isinstance(part, torch.nn.Linear)}
    weights = sum(part.weight.numel() for part in products.values())
    cached_values = 2 * predictor.d_model * (predictor.n_layers + 1)
    step = cached_sampling(PAIRS[size], 3, 2, 5, 2)[2]
    assert step.bytes == 4 * (weights + cached_values * (3 * 5 + 3 * 2))
    assert cached_sampling(PAIRS[size], 3, 2, 5, 2, "bf16")[2].bytes == step.bytes / 2


def test_a_cache_saves_more_the_longer_the_context_and_the_more_the_paths() -> None:
    def saved(series: int, paths: int, bars: int) -> float:
        shape = (PAIRS["small"], series, paths, bars, 30)
        return total(repeated_sampling(*shape)).flop / total(cached_sampling(*shape)).flop

    assert saved(1, 4, 64) > 30
    assert saved(1, 8, 64) > saved(1, 4, 64)
    assert saved(1, 4, 400) > saved(1, 4, 64)
    assert saved(8, 4, 64) == pytest.approx(saved(1, 4, 64))


def test_a_training_step_is_a_forward_pass_and_two_backward() -> None:
    predictor = random_model("nano", CPU).predictor
    tokens = torch.zeros(1, 1, dtype=torch.long)
    forward = counted(lambda: predictor(tokens, tokens, STAMPS, use_teacher_forcing=True, s1_targets=tokens))
    assert training(PAIRS["nano"], 1, 1, 1).flop == 3 * forward
    assert training(PAIRS["nano"], 7, 1, 1).flop == 21 * forward
    weights = sum(part.weight.numel() for part in predictor.modules() if isinstance(part, torch.nn.Linear))
    assert training(PAIRS["nano"], 1, 1, 1, frozen=True).flop == 3 * forward - 2 * weights


def test_no_phase_is_faster_than_its_bytes_nor_than_its_operations() -> None:
    machine = Machine(CPU, "of a test", bandwidth=10.0, flops={"fp32": 100.0})
    assert floor([Work(flop=200.0, bytes=1.0), Work(flop=1.0, bytes=30.0)], machine, "fp32") == pytest.approx(2 + 3)


def test_rivals_take_turns_and_each_round_has_a_ratio() -> None:
    turns: list[str] = []
    clock = itertools.count(1)

    def rival(name: str) -> Any:
        def run() -> Sample:
            turns.append(name)
            return Sample(seconds=float(next(clock)))

        return run

    samples = alternate({"slow": rival("slow"), "fast": rival("fast")}, Repeats(3))
    assert turns == ["slow", "fast"] * 3
    assert ratio(samples["slow"], samples["fast"]) == Spread(median=3 / 4, low=1 / 2, high=5 / 6, count=3)


def test_no_round_begins_that_would_end_too_late_but_the_first_is_run() -> None:
    samples = alternate({"one": timed(lambda: None, CPU)}, Repeats(50, within=0.0))
    assert len(samples["one"]) == 1


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not tell the peak")
def test_the_peak_is_what_a_run_takes_at_most_beyond_what_was_held() -> None:
    allocated = torch.ones(10_000_000)
    samples = [timed(partial(torch.ones, count), CPU)() for count in (25_000_000, 2_500_000)]
    peaks = [peak_of([sample]) for sample in samples]
    assert peaks[0] == pytest.approx(4 * 25_000_000, rel=0.2)
    assert peaks[1] == pytest.approx(4 * 2_500_000, rel=0.5), "an earlier run's peak does not count"
    assert allocated.sum() == len(allocated)


def test_a_place_in_a_document_is_filled_and_filled_again(tmp_path: Path) -> None:
    path = tmp_path / "document.md"
    path.write_text("before\n<!-- one -->\nold\n<!-- /one -->\nafter\n")
    for cell in ("first", r"second \1"):
        put(path, "one", Table("Title", ("a", "b"), [[cell, "2"]], ["A note."]).text())
        text = path.read_text()
        assert text.startswith("before\n")
        assert text.endswith("after\n")
        assert f"| {cell} | 2" in text
        assert "A note." in text
    assert "old" not in text
    assert "first" not in text
    with pytest.raises(ValueError, match="<!-- two -->"):
        put(path, "two", "")


def test_a_goal_that_nobody_measured_says_so() -> None:
    rows = goal_table([Goal("a", "2 times"), Goal("b", "2 times", "3 times", True), Goal("c", "2", "1", False)]).rows
    assert [row[-1] for row in rows] == ["not measured", "yes", "no"]


def test_reports_of_one_title_are_one_table() -> None:
    parts = [Report([Table(title, ("a",), [[cell]])], [Goal(cell, "")]) for title, cell in ("x1", "x2", "y3")]
    report = joined(parts)
    assert [(table.title, [row[0] for row in table.rows]) for table in report.tables] == [
        ("x", ["1", "2"]),
        ("y", ["3"]),
    ]
    assert [goal.what for goal in report.goals] == ["1", "2", "3"]


@pytest.mark.pictures
@pytest.mark.slow
def test_the_bench_command_puts_each_rival_beside_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "performance.md"
    shipped = (ROOT / "docs" / "performance.md").read_text()
    path.write_text(re.sub(r"(<!-- ([a-z-]+) -->).*?(<!-- /\2 -->)", r"\1\n\3", shipped, flags=re.DOTALL))
    monkeypatch.setattr(sys, "argv", ["bench.py", "--quick", "--write", str(path)])
    commands = startup._commands

    def but_dagster(*arguments: Any, **options: Any) -> dict[str, list[str]]:
        """Leave out Dagster: it starts slowly, and has tests of its own."""
        return {name: command for name, command in commands(*arguments, **options).items() if "dagster" not in name}

    monkeypatch.setattr(startup, "_commands", but_dagster)
    bench.main()
    parts = document(path)
    sampling_rows = rows(parts["decoding"], "Sampling")
    assert [row["way"] for row in sampling_rows] == 2 * [
        "upstream",
        "KronosPredictor",
        "sample_paths",
        "sample_paths, bf16",
    ]
    assert [row["way"] for row in rows(parts["tickers"], "Forecasts of")] == ["one by one", "in one call"]
    training_rows = rows(parts["training"], "Full fine-tune")
    assert [row["way"].split(",")[0] for row in training_rows] == ["upstream's loop", "KronosTrainer", "KronosTrainer"]
    adapter_rows = rows(parts["adapters"], "3 adapters")
    assert [row["way"].split(",")[0] for row in adapter_rows] == ["plain PEFT loop", "train_adapter", "train_adapters"]
    for row in (*sampling_rows, *training_rows, *adapter_rows):
        assert re.match(r"\d", row["times"]), row
        assert re.fullmatch(r"[\d,]+ MB|not measured", row["peak memory"]), row
    startup_rows = rows(parts["start-up"], "Commands from start to end")
    assert "kronos --help" in [row["command"] for row in startup_rows]
    assert "| read and split " in parts["data"]
    goals = rows(parts["goals"], "Goals")
    assert [row["goal"].split(" ")[0] for row in goals] == ["sampling", "sampling", "full", "kronos"]
    assert {row["reached"] for row in goals} <= {"yes", "no"}
    assert (tmp_path / "images" / "performance.png").stat().st_size > 10_000
    assert [name for name, text in parts.items() if not text] == ["gpu"], "each other place is filled"
    assert set(parts) == {"machine", "goals", "gpu", *bench.PARTS}


@pytest.mark.slow
def test_the_capacity_command_measures_the_location_every_tick_and_the_summary() -> None:
    """In a process of its own: it sets the environment of a code location."""
    command = [sys.executable, str(ROOT / "benchmarks/capacity.py"), "--tickers", "3", "--no-pages"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    measured = {row["what"]: row for row in rows(ended.stdout, "Dagster with 3 tickers on SQLite")}
    sensors = ("artifacts_on_disk", "changed_csvs", "drifted_champions", "failed_runs", "killed_runs", "new_symbols")
    assert {f"{sensor}, {tick} tick" for sensor in sensors for tick in ("first", "next")} <= measured.keys()
    assert {"load of the code location", "adapters_on_weekday_nights", "clean_weekly"} <= measured.keys()
    assert measured["the events of the morning summary"]["found"] == "3 trained"
    assert all(re.fullmatch(r"[\d,]+", row["queries"]) for row in measured.values())
