"""Benchmark runs, models, ONNX files or parts of zoo."""

from __future__ import annotations

from pathlib import Path

import click

from zoo.cli._shared import Finite, Name, UserPath, as_json, described, input_size, limited, registered, run_names


@click.command("bench")
@click.argument("what", nargs=-1, type=Name(run_names, registered("models")), metavar="[RUN|FILE|MODEL|PART]...")
@click.option(
    "--quick", is_flag=True, help="Finish in seconds: fewer rounds, no torch.compile, no batch size that takes over 30 s."
)
@click.option("--batches", help="Batch sizes, separated by commas (default: 1,8,64,256; with --quick 1,8,64).")
@click.option(
    "--devices", "--device", help="Devices, such as cpu,cuda (default: all available devices); a missing device is an error."
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of each contender (default: the available cores).")
@click.option(
    "--seconds",
    type=Finite(min=0, min_open=True),
    help="Time limit for the whole command, in seconds; batch sizes that do not fit are skipped.",
)
@click.option(
    "--allow-cpu-fallback", is_flag=True, help="Fall back to the CPU if a GPU cannot run the model; the rows are marked."
)
@click.option(
    "--serve", is_flag=True, help="Measure throughput and latency under load for several numbers of workers and threads."
)
@click.option("--scenario", type=click.Choice(["single", "multi", "server", "offline"]),
              help="Run a scenario of MLPerf Inference: for 10 minutes, as its rules require, or for --seconds (marked as not valid).")  # fmt: skip
@click.option(
    "--qps",
    type=Finite(min=0, min_open=True),
    help="Queries per second of --scenario server (default: the highest rate within the latency bound).",
)
@click.option(
    "--latency-ms", type=Finite(min=0, min_open=True), help="Latency bound of --scenario server, in ms (default: 15)."
)
@click.option("--data", default="", metavar="NAME",
              help="Data set or folder for measuring the accuracy of a file or run (default: the run's data set).")  # fmt: skip
@click.option("--data-dir", type=UserPath(), help="Folder of the data set in --data.")
@click.option("--split", type=click.Choice(["test", "all"]), default="test", show_default=True, help="Images of --data to use.")
@described
@input_size
@click.option("--skip-bad", is_flag=True, help="Skip images of --data that cannot be read.")
@click.option("--self-check", is_flag=True, help="Measure the overhead of zoo's timing relative to a bare loop.")
@click.option("--compare", is_flag=True, help="Compare two CSV files of earlier benchmarks.")
@click.option(
    "--out",
    type=UserPath(),
    help="CSV file (default: bench.csv or serve.csv in the run folder or runs/bench; for a part in a checkout, bench/results/PART.csv).",
)
@limited("opening and running a model file once")
@as_json
def command(
    what: tuple[str, ...],
    quick: bool,
    batches: str | None,
    devices: str | None,
    threads: int | None,
    seconds: float | None,
    allow_cpu_fallback: bool,
    serve: bool,
    scenario: str | None,
    qps: float | None,
    latency_ms: float | None,
    data: str,
    data_dir: Path | None,
    split: str,
    classes: Path | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    size: int,
    skip_bad: bool,
    self_check: bool,
    compare: bool,
    out: Path | None,
    max_memory: int,
    timeout: float,
    as_json: bool,
) -> None:
    """Benchmark runs, models, ONNX files or parts of zoo.

    The parts are depthwise, focal_loss, image_files, int8_graph, int8_repair (takes runs), loadgen, onnx_graph, recipes, startup
    and training. Without an argument, the latest run is measured in PyTorch and every installed runtime.

    \b
    zoo bench --batches 1,64
    zoo bench resnet32 alexnet --devices cpu --seconds 120
    zoo bench --serve
    zoo bench --scenario single
    zoo bench model.onnx --data photos --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
    zoo bench --compare before.csv after.csv
    zoo bench focal_loss --quick
    """
    import zoo.bench

    if compare:
        if len(what) != 2:
            raise click.UsageError(f"--compare takes two CSV files, not {len(what)}: zoo bench --compare a.csv b.csv")
        zoo.bench.compare(Path(what[0]), Path(what[1]), as_json=as_json)
        return
    if sum(map(bool, (serve, self_check, scenario))) > 1:
        raise click.UsageError("--serve, --scenario and --self-check are mutually exclusive; give one of them")
    images = zoo.bench.Images(
        data=data, folder=str(data_dir or ""), split=split, labels=classes, mean=mean, std=std, skip_bad=skip_bad
    )
    request = zoo.bench.Request(
        quick=quick, batches=batches, devices=devices, threads=threads or 0, seconds=seconds or 0.0,
        allow_cpu_fallback=allow_cpu_fallback, serve=serve, self_check=self_check, scenario=scenario or "",
        rate=qps or 0.0, latency_ms=latency_ms or 0.0, images=images, size=size, out=out, max_memory=max_memory,
        timeout=timeout, as_json=as_json,
    )  # fmt: skip
    zoo.bench.command(what, request)
