"""How a command starts: threads that share a machine, interrupts while modules load, the version."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import gas
from gas.machine import group_processors, set_thread_defaults

GROUPS = {
    "two of version 2": ("0::/a/b\n", {"a/cpu.max": "200000 100000"}, 2.0),
    "the tightest of version 2": (
        "0::/a/b\n",
        {"a/cpu.max": "400000 100000", "a/b/cpu.max": "50000 100000"},
        0.5,
    ),
    "no quota of version 2": ("0::/a\n", {"a/cpu.max": "max 100000"}, None),
    "version 1": (
        "4:cpu,cpuacct:/a\n1:memory:/b\n",
        {"cpu/a/cpu.cfs_quota_us": "150000", "cpu/a/cpu.cfs_period_us": "100000"},
        1.5,
    ),
    "no quota of version 1": (
        "4:cpu:/a\n",
        {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"},
        None,
    ),
    "damaged": ("0::/a\n", {"a/cpu.max": "many 0"}, None),
    "a period of nothing": ("0::/a\n", {"a/cpu.max": "100 0"}, None),
    "no groups": (None, {}, None),
}


def machine(root, groups, files):
    texts = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    if groups is not None:
        texts["proc/self/cgroup"] = groups
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.mark.parametrize("name", GROUPS)
def test_a_quota_of_processors_is_read_from_the_control_groups(tmp_path, name):
    groups, files, expected = GROUPS[name]
    assert group_processors(machine(tmp_path, groups, files)) == expected


def test_threads_sleep_while_they_wait(tmp_path):
    environ = {}
    set_thread_defaults(environ, machine(tmp_path, "0::/a\n", {"a/cpu.max": "max 100000"}))
    assert environ == {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}


@pytest.mark.parametrize(("quota", "threads"), [(10_000, "1"), (100_000, "1"), (10**9, None)])
def test_a_container_starts_no_more_threads_than_it_has_processors(tmp_path, monkeypatch, quota, threads):
    monkeypatch.setattr("gas.machine._usable", lambda: 64)
    environ = {}
    set_thread_defaults(environ, machine(tmp_path, "0::/a\n", {"a/cpu.max": f"{quota} 100000"}))
    assert environ.get("OMP_NUM_THREADS") == threads


@pytest.mark.parametrize(
    "given",
    [
        {"OMP_WAIT_POLICY": "ACTIVE"},
        {"GOMP_SPINCOUNT": "1000"},
        {"KMP_BLOCKTIME": "200"},
        {"KMP_LIBRARY": "turnaround"},
    ],
)
def test_waiting_as_the_user_has_set_it_stands(tmp_path, given):
    environ = dict(given)
    set_thread_defaults(environ, tmp_path)
    assert environ == given


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_a_count_of_threads_that_the_user_has_set_stands(tmp_path, monkeypatch, name):
    monkeypatch.setattr("gas.machine._usable", lambda: 64)
    environ = {name: "7"}
    set_thread_defaults(environ, machine(tmp_path, "0::/a\n", {"a/cpu.max": "200000 100000"}))
    assert environ[name] == "7" and not {"OMP_NUM_THREADS", "MKL_NUM_THREADS"} - {name} & environ.keys()


def python(code, **environ):
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "KMP_", "GOMP_"))
    }
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**clean, **environ}, timeout=300
    )


@pytest.mark.parametrize("home", ["gas.__main__", "gas.cli"])
def test_the_command_line_settles_threads_before_torch_loads(home):
    code = (
        "import os, sys\n"
        f"from {home} import main\n"
        "sys.argv = ['gas', '--version']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules\n"
        "print(os.environ['OMP_WAIT_POLICY'])"
    )
    done = python(code)
    assert done.stdout.split()[-1:] == ["PASSIVE"], done.stderr


@pytest.mark.slow
def test_the_library_leaves_a_users_environment_alone():
    code = "import os\nbefore = dict(os.environ)\nimport gas\ngas.Table\nassert dict(os.environ) == before"
    done = python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("typer", "--help"),
        ("rich.progress", "--help"),
        ("gas.cli.zoo", "--help"),
        ("torch", f"inspect {__file__}"),
        ("gas.solver_file", f"inspect {__file__}"),
        ("torch", "pairs --model digits --out none"),  # an option's own import, before the command
    ],
)
def test_an_interrupt_while_modules_load_is_one_line(module, words):
    code = f"""
import sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
sys.argv = ["gas", *{words.split()!r}]
from gas.__main__ import main
main()
"""
    done = python(code)
    assert (done.returncode, done.stdout) == (130, ""), done.stderr
    assert done.stderr.splitlines() == ["interrupted."]


def test_the_version_is_that_of_the_installed_package():
    done = subprocess.run(
        [sys.executable, "-m", "gas", "--version"], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout) == (0, f"gas-solver {version('gas-solver')}\n"), done.stderr
    assert gas.__version__ == version("gas-solver")


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    ("setting", "waiting"),
    [
        ({}, "PASSIVE,,0,"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE,,,"),
        ({"GOMP_SPINCOUNT": "5"}, ",5,,"),
        ({"KMP_BLOCKTIME": "200"}, ",,200,"),
        ({"KMP_LIBRARY": "turnaround"}, ",,,turnaround"),
    ],
)
def test_the_makefile_lets_threads_sleep_unless_the_user_says_otherwise(setting, waiting):
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
    shown = ",".join(f"$${name}" for name in names)
    done = subprocess.run(
        ["make", "-s", "-f", "-", "show"],
        input=f"include Makefile\nshow:\n\t@echo {shown}\n",
        cwd=Path(__file__).parents[2],
        env={name: value for name, value in os.environ.items() if name not in names} | setting,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == waiting
