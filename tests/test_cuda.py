"""Timing on a CUDA device: events, cold caches, graphs, peak memory. Here only what can be known without one, too."""

from __future__ import annotations

import pytest
import torch
from command_line import invoke

from layers.catalog import stone
from profiles.errors import Refusal
from profiles.speed.bench import Bench, bench
from profiles.speed.cases import case
from profiles.speed.clocks import Job, clock_for
from profiles.speed.jobs import jobs
from profiles.speed.timing import Plan
from profiles.subject import Setup, subject
from stones_cli.status import Status

SMALL = Setup(shape=(2, 8, 4, 4))
HAS_DEVICE = torch.cuda.is_available()


def test_graphs_are_of_cuda_devices_and_not_of_a_lone_backward():
    with pytest.raises(Refusal, match="--cuda-graph needs --device cuda, not cpu"):
        case(subject(stone("in"), {}, SMALL), graph=True)
    on_cuda = subject(stone("in"), {}, Setup(shape=(2, 8, 4, 4), device="cuda"))
    with pytest.raises(Refusal, match="take --both"):
        case(on_cuda, "backward", graph=True)
    assert case(on_cuda, "forward+backward", graph=True).graph
    assert invoke("bench", "in", "--cuda-graph").exit_code == Status.MISUSE


if HAS_DEVICE:  # pragma: no cover  # collected where there is a device
    CUDA = Setup(shape=(16, 64, 56, 56), device="cuda")

    def test_events_see_the_device_and_cold_caches_cost():
        x = torch.randn(2**20, device="cuda")  # fits any level-2 cache
        y, clock = torch.empty_like(x), clock_for("cuda")
        job = Job("copy", lambda: y.copy_(x))
        cold = clock.block(job, 50)
        clock.flush = lambda: None
        assert 0 < clock.block(job, 50) < cold

    @pytest.mark.parametrize("direction", ["forward", "forward+backward"])
    def test_a_graph_replays_the_same_work(direction):
        made = case(subject(stone("gn"), {}, CUDA), direction, graph=True)
        for job in jobs(made):
            job.run()
        torch.cuda.synchronize()
        record = bench(Bench((made,), Plan(seconds=0.5)))["cases"][0]
        assert record["cuda_graph"]
        assert all(row["ms"] > 0 for row in record["candidates"])

    @pytest.mark.parametrize("name", ["bn", "gn", "in", "ln", "pono"])
    def test_a_bench_on_the_device_tells_times_ratios_and_the_peak(name):
        record = bench(Bench((case(subject(stone(name), {}, CUDA), "forward+backward"),), Plan(seconds=0.5)))
        assert record["plan"]["clock"] == "cuda-events"
        assert record["plan"]["cache"] == "cold"
        own = record["cases"][0]["candidates"][0]
        assert own["peak_bytes"] >= 16 * 64 * 56 * 56 * 4
