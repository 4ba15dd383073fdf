"""What a container leaves of the memory, read from a file tree like Linux's."""

import pytest
import torch

from gas.machine import group_available
from gas.training.activation_checkpointing import available_bytes

CPU = torch.device("cpu")


def tree(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def version_2(path, limit, used, cache=0):
    folder = f"sys/fs/cgroup{path}"
    stat = f"anon 5\ninactive_file {cache}\nactive_file 7\n"
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.current": f"{used}\n",
        f"{folder}/memory.stat": stat,
    }


def version_1(path, limit, used, cache=0):
    folder = f"sys/fs/cgroup/memory{path}"
    return {
        f"{folder}/memory.limit_in_bytes": f"{limit}\n",
        f"{folder}/memory.usage_in_bytes": f"{used}\n",
        f"{folder}/memory.stat": f"inactive_file 1\ntotal_inactive_file {cache}\n",
    }


MACHINE = {"proc/meminfo": "MemTotal:       16 kB\nMemFree: 2 kB\nMemAvailable:   8000 kB\n"}
SECOND = {**MACHINE, "proc/self/cgroup": "0::/a/b\n"}
FIRST = {**MACHINE, "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/box\n0::/\n"}


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({**SECOND, **version_2("/a/b", 1000, 300)}, 700),
        ({**SECOND, **version_2("/a/b", 1000, 300, cache=200)}, 900),
        ({**SECOND, **version_2("/a/b", "max", 300)}, None),
        ({**SECOND, **version_2("/a/b", "max", 1), **version_2("/a", 500, 400)}, 100),  # a parent binds too
        ({**SECOND, **version_2("", 600, 50)}, 550),  # a container that sees only its own group, as the root
        ({**SECOND, **version_2("/a/b", 1000, 1300)}, 0),
        ({**SECOND, **version_2("/unified/a/b", 1000, 300)}, 700),
        ({**FIRST, **version_1("/box", 2000, 500)}, 1500),
        ({**FIRST, **version_1("/box", 2000, 500, cache=100)}, 1600),
        ({**FIRST, **version_1("", 900, 100)}, 800),
        ({**FIRST, **version_1("/box", 2000, "nonsense")}, None),
        (MACHINE, None),
    ],
)
def test_the_tightest_group_counts(tmp_path, files, left):
    assert group_available(tree(tmp_path, files)) == left


def test_a_container_may_have_less_than_the_machine_and_a_machine_less_than_its_container(tmp_path):
    assert available_bytes(CPU, tree(tmp_path / "none", MACHINE)) == 8000 * 1024
    tight = tree(tmp_path / "tight", {**SECOND, **version_2("/a/b", 1000, 300)})
    assert available_bytes(CPU, tight) == 700
    wide = tree(tmp_path / "wide", {**SECOND, **version_2("/a/b", 2**40, 300)})
    assert available_bytes(CPU, wide) == 8000 * 1024


def test_a_system_that_says_nothing_still_has_an_answer(tmp_path):
    assert available_bytes(CPU, tmp_path) > 0
