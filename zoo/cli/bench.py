"""Benchmark runs, models, ONNX files or a part of zoo."""

from __future__ import annotations

from pathlib import Path

import click

from zoo.cli._shared import Finite, Name, as_json, limited, registered, run_names


@click.command("bench")
@click.argument("what", nargs=-1, type=Name(run_names, registered("models")), metavar="[RUN|FILE|MODEL|PART]...")
@click.option(
    "--quick", is_flag=True, help="Seconds instead of minutes: fewer rounds, nothing compiled, no batch that takes over 30 s."
)
@click.option("--batches", help="Batch sizes, e.g. 1,8,64.")
@click.option("--devices", "--device", help="E.g. cpu,cuda; one that isn't there is an error, never a silent fallback.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads for all contenders (default: the cores really available).")
@click.option(
    "--seconds", type=Finite(min=0, min_open=True), help="Time for the whole command; batch sizes that do not fit are left out."
)
@click.option("--allow-cpu-fallback", is_flag=True, help="Go on where a GPU cannot run the model; the rows then say so.")
@click.option("--serve", is_flag=True, help="Workers x threads under load: throughput against latency.")
@click.option("--scenario", type=click.Choice(["single", "multi", "server", "offline"]),
              help="A load pattern of MLPerf inference by its rules: 10 minutes, or --seconds (then marked as not valid).")  # fmt: skip
@click.option(
    "--qps", type=Finite(min=0, min_open=True), help="Queries per second of --scenario server (default: searched for)."
)
@click.option("--latency-ms", type=Finite(min=0, min_open=True), help="Bound of --scenario server (default: 15).")
@click.option("--self-check", is_flag=True, help="What zoo's own timing costs, against a bare loop.")
@click.option("--compare", is_flag=True, help="Compare two CSV files of earlier benchmarks.")
@click.option("--out", type=click.Path(path_type=Path), help="CSV file (default: bench.csv in the run folder, or runs/bench).")
@limited("to open and run once")
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
    self_check: bool,
    compare: bool,
    out: Path | None,
    max_memory: int,
    timeout: float,
    as_json: bool,
) -> None:
    """Benchmark runs, models, ONNX files, or one of zoo's own parts (focal_loss, image_files, startup, training).

    \b
    zoo bench --batches 1,64
    zoo bench resnet32 alexnet --devices cpu --seconds 120
    zoo bench --serve
    zoo bench --scenario single
    zoo bench --compare before.csv after.csv
    zoo bench focal_loss --quick
    """
    import zoo.bench

    if compare:
        if len(what) != 2:
            raise click.UsageError(f"--compare takes two CSV files, not {len(what)}; e.g. zoo bench --compare a.csv b.csv")
        zoo.bench.compare(Path(what[0]), Path(what[1]), as_json=as_json)
        return
    if sum(map(bool, (serve, self_check, scenario))) > 1:
        raise click.UsageError("--serve, --scenario and --self-check are different benchmarks; give one of them")
    request = zoo.bench.Request(
        quick=quick, batches=batches, devices=devices, threads=threads or 0, seconds=seconds or 0.0,
        allow_cpu_fallback=allow_cpu_fallback, serve=serve, self_check=self_check, scenario=scenario or "",
        rate=qps or 0.0, latency_ms=latency_ms or 0.0, out=out, max_memory=max_memory,
        timeout=timeout, as_json=as_json,
    )  # fmt: skip
    zoo.bench.command(what, request)
