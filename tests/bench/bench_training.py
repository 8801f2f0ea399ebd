"""What FSDP2 saves: memory of each worker, by the number of workers that train together, and the time of a step.

    python tests/bench/bench_training.py

Processes on this machine over gloo, float32. `held` is counted from the tensors (weights, and AdamW's moments: between
steps there are no gradients), `grown` is what the process's memory grew by at most, gathered layers, activations and
the sums of gradients included.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from model.checkpoint.folder import save_folder
from model.config import preset
from model.network.streamchat import StreamChat
from tests.bench.measure.report import Plot, int_list, make_parser, print_table, save_result, setup
from tests.training.worker_pool import WorkerPool
from training.data.row_micro_batches import write_row_table
from training.live_world.smoke_clips import question_rows
from training.live_world.tiny_tokenizer import make_tokenizer
from training.live_world.write_clips import write_clips
from training.run.plan import Plan
from training.run.recipe import smoke

WIDE: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
}


def make_plan(work: Path, *, wide: bool) -> Plan:
    """A few steps on two clips, by a model with random weights."""
    start = work / "start"
    tokenizer = make_tokenizer(start)
    torch.manual_seed(0)
    save_folder(StreamChat(preset("tiny", vocab_size=len(tokenizer), **(WIDE if wide else {}))), start)
    write_clips(7, 2, work / "clips")
    num = write_row_table(work / "rows.arrow", question_rows(work / "clips"))
    recipe = replace(smoke(), steps=4, global_batch=4, micro_batch=1)
    return Plan(
        recipe=recipe, initial_model=start, out=work / "out", row_table=work / "rows.arrow", num_rows=num,
        frame_cache=work / "cache",
    )  # fmt: skip


def measure(plan: Plan, workers: int, work: Path) -> dict[str, Any]:
    """One run: the most that any worker held and grew by, and the median time of a step after the first."""
    with WorkerPool(workers) as pool:  # new processes: how far one has grown it does not forget
        reports = pool.train(plan, workers, work)
    return {
        "workers": workers,
        "held_mb": round(max(sum(t["bytes"].values()) for t in reports) / 1e6, 1),
        "grown_mb": round(max(t["grown_bytes"] for t in reports) / 1e6, 1),
        "step_s": round(statistics.median(s["duration_s"] for s in reports[0]["steps"][1:]), 3),
    }


def main() -> None:
    """Read the command line, measure, keep."""
    parser = make_parser(__doc__)
    parser.add_argument("--workers", default="1,2,4", help="numbers of workers")
    options = parser.parse_args()
    setup(options)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        plan = make_plan(work, wide=not options.quick)
        rows = [measure(plan, num, work / f"{num}") for num in int_list(options.workers)]
    for row in rows:
        row["held_share"] = round(row["held_mb"] / rows[0]["held_mb"], 3)
    print_table(rows)
    plot = Plot("Training: memory of each worker", 2)
    workers = [row["workers"] for row in rows]
    plot.line(0, workers, [row["held_mb"] for row in rows], "weights and moments")
    plot.line(0, workers, [row["grown_mb"] for row in rows], "growth of the process")
    plot.line(0, workers, [rows[0]["held_mb"] * workers[0] / num for num in workers], "1 / workers")
    plot.label(0, "workers", "MB a worker", log_x=True, log_y=True)
    plot.line(1, workers, [row["step_s"] for row in rows])
    plot.label(1, "workers", "seconds a step", log_x=True)
    save_result("training", {"rows": rows}, plot, options, torch.device("cpu"))


if __name__ == "__main__":
    main()
