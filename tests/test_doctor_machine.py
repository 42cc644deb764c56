"""What `stones doctor` reads of a machine and how it judges that: planted machines, also hostile ones."""

from __future__ import annotations

import pytest

from profiles.machine import Machine, Ticks
from profiles.speed import findings
from profiles.speed.findings import MIB, Grade

CPU = "sys/devices/system/cpu"
PLANTED = {
    f"{CPU}/cpu0/cpufreq/scaling_governor": "powersave\n",
    f"{CPU}/cpu0/cpufreq/scaling_cur_freq": "1800000\n",
    f"{CPU}/cpu0/cpufreq/cpuinfo_max_freq": "3600000\n",
    f"{CPU}/intel_pstate/no_turbo": "1\n",
    f"{CPU}/smt/active": "1\n",
    "sys/devices/system/clocksource/clocksource0/current_clocksource": "hpet\n",
    "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
    "proc/loadavg": "0.50 0.40 0.30 3/112 4242\n",
    "proc/stat": "cpu  100 0 50 800 10 0 5 35 7 0\ncpu0 1 2 3\n",
    "proc/pressure/cpu": "some avg10=1.00 avg60=0.00 avg300=0.00 total=2500000\nfull avg10=0.00 total=0\n",
    "proc/meminfo": "MemTotal: 16 kB\nMemAvailable:    8388608 kB\n",
    "proc/self/cgroup": "0::/jobs/one\n",
    "sys/fs/cgroup/jobs/one/cpu.max": "150000 100000\n",
    "sys/fs/cgroup/jobs/one/cpu.stat": "usage_usec 1\nnr_periods 5\nnr_throttled 4\n",
    "sys/fs/cgroup/jobs/one/memory.max": "4294967296\n",
    "sys/fs/cgroup/jobs/one/memory.current": "1073741824\n",
}


def plant(root, files):
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Machine(root)


def told(machine):
    names = [name for name, value in vars(Machine).items() if isinstance(value, property) and name != "_folder"]
    return {name: getattr(machine, name) for name in names}


def test_a_planted_machine_is_read_as_it_is(tmp_path):
    assert told(plant(tmp_path, PLANTED)) == {
        "governor": "powersave",
        "megahertz": (1800, 3600),
        "turbo": False,
        "siblings": True,
        "clock_source": "hpet",
        "huge_pages": "madvise",
        "running": 3,
        "ticks": Ticks(35, 1000),
        "waited": 2.5,
        "available": 3 * 2**30,
        "quota": 1.5,
        "throttled": 4,
    }


def test_a_system_that_tells_nothing_tells_nothing(tmp_path):
    assert set(told(Machine(tmp_path)).values()) == {None}
    assert set(told(Machine(tmp_path / "nosuch")).values()) == {None}


@pytest.mark.parametrize(
    "content", ["", "\n", "garbage", "-1", "9" * 400, "[", "cpu x", b"\xff\x00\xfe", "0 0", "max 100000"]
)
def test_a_system_that_tells_garbage_raises_nothing(content, tmp_path):
    machine = plant(tmp_path, dict.fromkeys(PLANTED, content))
    found = told(machine)
    assert found["quota"] is None
    assert found["ticks"] is None
    for row in (findings.about_cores(2, 2, machine), findings.about_frequency(machine)):
        assert row.verdict in Grade


def test_directories_in_the_place_of_files_are_nothing_told(tmp_path):
    for name in PLANTED:
        (tmp_path / name).mkdir(parents=True)
    assert set(told(Machine(tmp_path)).values()) == {None}


def test_quotas_of_the_older_control_groups_are_read(tmp_path):
    files = {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}
    assert plant(tmp_path, files).quota == 0.5
    assert plant(tmp_path, {**files, "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1"}).quota is None


def quiet(root):
    return plant(root, {f"{CPU}/cpu0/cpufreq/scaling_governor": "performance"})


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (findings.about_threads(2, 2), "ok"),
        (findings.about_threads(3, 2), "bad"),
        (findings.about_load(0.2, 1, 2), "ok"),
        (findings.about_load(1.7, 2, 2), "caution"),
        (findings.about_load(3.6, 5, 2), "bad"),
        (findings.about_load(None, None, 2), "unknown"),
        (findings.about_steal(Ticks(0, 0), Ticks(0, 1000)), "ok"),
        (findings.about_steal(Ticks(5, 0), Ticks(25, 1000)), "caution"),
        (findings.about_steal(Ticks(0, 0), Ticks(60, 1000)), "bad"),
        (findings.about_steal(None, Ticks(0, 1)), "unknown"),
        (findings.about_steal(Ticks(0, 7), Ticks(0, 7)), "unknown"),
        (findings.about_waiting(1.0, 1.0, 10), "ok"),
        (findings.about_waiting(0.0, 2.0, 10), "caution"),
        (findings.about_waiting(0.0, 9.0, 10), "bad"),
        (findings.about_waiting(0.0, None, 10), "unknown"),
        (findings.about_throttling(4, 4), "ok"),
        (findings.about_throttling(4, 6), "caution"),
        (findings.about_throttling(4, 40), "bad"),
        (findings.about_timer(4e-8, 5e-8, "tsc"), "ok"),
        (findings.about_timer(4e-8, 5e-6, "hpet"), "caution"),
        (findings.about_timer(1e-3, 5e-8, None), "bad"),
        (findings.about_denormals(False, 1.0), "ok"),
        (findings.about_denormals(True, 1.0), "caution"),
        (findings.about_allocator(True, 2.0, 6000), "ok"),
        (findings.about_allocator(False, 1.0, None), "caution"),
        (findings.about_pages("always"), "ok"),
        (findings.about_pages(None), "unknown"),
        (findings.about_memory(2048 * MIB), "ok"),
        (findings.about_memory(512 * MIB), "caution"),
        (findings.about_memory(100 * MIB), "bad"),
        (findings.about_memory(None), "unknown"),
        (findings.about_torch("2", ["oneDNN"], "AVX2"), "ok"),
        (findings.about_torch("2", [], "AVX2"), "caution"),
        (findings.about_torch("2", ["oneDNN"], "DEFAULT"), "caution"),
        (findings.about_cuda(None, []), "ok"),
        (findings.about_cuda("12.8", ["one"]), "ok"),
        (findings.about_noise("n", "w", (0.01, 0.02), 0, 4), "ok"),
        (findings.about_noise("n", "w", (0.01, 0.02), 1, 4), "caution"),
        (findings.about_noise("n", "w", (0.01, 0.08), 0, 4), "caution"),
        (findings.about_noise("n", "w", (0.01, 0.30), 0, 4), "bad"),
        (findings.about_noise("n", "w", (0.01, 0.02), 3, 4), "bad"),
        (findings.about_drift(0.05), "ok"),
        (findings.about_drift(0.3), "caution"),
    ],
)
def test_bounds_are_where_they_are_said_to_be(row, verdict):
    assert row.verdict == verdict
    assert row.found
    if verdict != "ok":
        assert row.advice


def test_governors_and_quotas_are_judged(tmp_path):
    assert findings.about_frequency(plant(tmp_path / "a", PLANTED)).verdict is Grade.CAUTION
    assert findings.about_frequency(quiet(tmp_path / "b")).verdict is Grade.OK
    assert findings.about_cores(2, 2, plant(tmp_path / "c", PLANTED)).verdict is Grade.CAUTION
    assert findings.about_cores(2, 2, quiet(tmp_path / "d")).verdict is Grade.OK
    assert findings.about_cores(1, 8, quiet(tmp_path / "e")).verdict is Grade.CAUTION
    half = {"sys/fs/cgroup/cpu.max": "50000 100000"}
    assert findings.about_cores(4, 4, plant(tmp_path / "f", half)).verdict is Grade.BAD
    assert findings.about_throttling(None, 4) is None
