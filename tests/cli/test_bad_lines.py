"""Bad command lines: each is refused before any work, in one line that names what came, and writes nothing."""

import json
import os
import shlex
import subprocess
import sys
import time

import numpy as np
import pytest
from typer.testing import CliRunner

import gas
from gas.classical.registry import Classical
from gas.cli.app import app
from gas.io import CHECKSUM, add_checksum
from support.covering import thinned

# By command: a line that would run, and what makes it a bad one when added to it (the last of two options counts).
# {pairs}, {solver} and the like are files of the fixture below.
LINES = {
    "pairs --model digits --seeds 8 --nfe 2 --out new": """
        --dtype x; --dtype ''; --dtype float16; --quantize x; --quantize int3; --offload x; --offload model
        --max-batch 0; --max-batch x
        --seeds 0; --seeds -1; --seeds 5:5; --seeds 9:3; --seeds 1:2:3; --seeds 1e23; --seeds 100000000000000000000000
        --seeds 1.5; --seeds x; --seeds ''; --seeds nan; --seeds 99999999999; --seeds :5; --seeds 5:
        --seeds 9223372036854775800:9223372036854775809; --seeds 1_000
        --nfe 0; --nfe -3; --nfe 99999999; --nfe 1e9; --nfe x; --nfe 2.5; --nfe nan; --nfe 1001; --nfe ''; --nfe 4-6
        --teacher x; --teacher Heun; --teacher ''; --teacher heun --nfe 3; --teacher unipc-3-bh2/log_snr
        --grid x; --grid ''; --grid 1,x; --grid 1,0.5; --grid 0.5,1; --grid 1,nan; --grid 1,,0; --grid LOG_SNR
        --grid 1,1
        --guidance nan; --guidance inf; --guidance -inf; --guidance x; --guidance 1e30; --guidance ''
        --shard 0; --shard -1; --shard x; --shard ''; --shard 1e3; --shard 99999999999; --shared=3
        --max-time ''; --max-time 0s; --max-time x; --max-time 3; --max-time -3h; --max-time 3x; --max-time nan
        --max-time 99999h; --max-time 99999999999999999999h; --max-time 3:00; --max-time h; --shared --max-time 1d
        --batch 0; --batch -1; --batch x; --batch 1.5; --batch 99999999999999999999; --batch nan
        --prompts nowhere; --prompts .; --prompts {text}; --call x; --call height=3; --call =; --call height
        --device meta; --device x; --device cuda:99; --device mps; --device xla; --device ''; --device cpu:x
        --device 7
        --device vulkan; --device hpu; --device privateuseone
        --precision x; --precision ''; --precision float64; --precision FP16
        --model x; --model DIGITS; --model ''; --model nowhere.safetensors; --model diffusers:
        --model diffusers:nowhere
        --model published:; --model published:nowhere; --model preset:x; --model preset:; --model {solver}
        --model published:{text}; --model .
        --out /proc/x; --out /proc/x/y; --out {text}; --out {text}/x; --out /sys/x; --out {long}; --out /dev/null
        --out /dev/null/x
        --nosuch; extra; --seeds; --json=3; --decoded
    """,
    "train --model digits --pairs {pairs} --validation 8 --nfe 2 --iterations 1 --out new.json": """
        --dtype x; --dtype ''; --dtype float16; --quantize x; --quantize int3; --offload x; --offload model
        --max-batch 0; --max-batch x
        --budget 0; --budget x; --budget 1.5; --budget -1; --budget 5; --budget 5000 --method adam
        --pairs nowhere; --pairs {solver}; --pairs .; --pairs ''; --pairs {unfinished}; --pairs {other}
        --model mnist --student; --pairs {unfinished} --student; --quantize int8; --pairs {other} --quantize int4
        --nfe 0; --nfe 99999999; --nfe 3-99999999; --nfe 6-3; --nfe x; --nfe 3,; --nfe ''; --nfe 3--4; --nfe 1e3
        --nfe -4
        --validation 0; --validation 1; --validation 24; --validation 99999; --validation -3; --validation x
        --validation 1e99; --validation 2.5
        --loss x; --loss L2; --loss ''; --loss l2,l1
        --method x; --method ''; --method ADAM; --method gauss-newton --loss l1
        --start x; --start ddim/x; --start ''; --start unipc; --start heun --nfe 3; --start heun --solver s4s
        --start ddim/1,2; --start ddim/1,x; --start nowhere.json; --start {solver} --nfe 4; --start {mnist}
        --start {solver} --solver ld3
        --solver x; --solver GS; --solver ''; --solver ld3 --no-theory; --solver bns --no-theory
        --iterations -1; --iterations 1e20; --iterations 100000000000000000000; --iterations x; --iterations nan
        --iterations 1.5; --iterations 1000001
        --batch 0; --batch -1; --batch x; --batch 99999999999999999999
        --learning-rate nan --method adam; --learning-rate 0 --method adam; --learning-rate -1 --method adam
        --learning-rate inf --method adam; --learning-rate x; --learning-rate 1e-3; --learning-rate 1e9 --method adam
        --relax nan --method adam; --relax -1 --method adam; --relax 0.1; --relax x; --relax inf --method adam
        --forwards x; --forwards 0; --forwards 6-5; --forwards 4; --forwards 99999999
        --pairs {pairs}; --pairs {pairs} --forwards 4; --pairs {pairs} --budget 9999; --pairs {pairs} --method adam
        --pairs {pairs} --objective gas; --pairs {pairs} --loss l1; --pairs {pairs} --solver bns
        --pairs {pairs} --no-theory
        --objective x; --objective GS; --objective ''
        --weight 1; --weight nan --objective gas; --weight -1 --objective gas; --weight inf --objective gas
        --weight 1 --balance 1 --objective gas; --weight x; --objective gas --forwards 6
        --balance 1; --balance nan --objective gas; --balance -1 --objective gas; --balance 1e300 --objective gas
        --critic x --objective gas; --critic classic; --critic '' --objective gas
        --pairing x --objective gas; --pairing paired; --pairing x; --pairing ''
        --gas-iterations 0 --objective gas; --gas-iterations 5; --gas-iterations 100000000000 --objective gas
        --gas-iterations x
        --critic-weights nowhere --objective gas; --critic-weights {text} --objective gas; --critic-weights {text}
        --critic-weights . --objective gas
        --critic-steps 0 --objective gas; --critic-steps 2; --critic-steps 99999999 --objective gas; --critic-steps x
        --lift-iterations 5; --lift-width 8; --lift-patch 1; --lift-share 0.1; --lift --lift-iterations 0
        --lift --lift-width 0 --lift-patch 1; --lift --lift-width 8; --lift --lift-patch 2; --lift --lift-share nan
        --lift --lift-width 8 --lift-patch 1 --lift-share 0.1; --lift --lift-width x; --lift --lift-share -1
        --lift --lift-width 9999 --lift-patch 1; --lift --lift-width 8 --lift-patch 3; --lift --lift-share x
        --lift --forwards 4; --lift --budget 9999; --lift --pairs {pairs}; --lift=3
        --seed -1; --seed x; --seed 1e5; --seed 99999999999999999999999; --seed 1.5
        --checkpointing x; --checkpointing ''; --checkpointing 3; --checkpointing 0 --method adam
        --checkpointing NONE --method adam
        --out {pairs}; --out /proc/x.json; --out {solver}; --out {solver}/x.json; --out /dev/full; --out {long}.json
        --overwrite --out {pairs}
        --prompts {text}; --call height=3; --device meta; --precision x; --model mnist; --model x; --theory=3
    """,
    "train --model digits --judge classifier --nfe 2 --iterations 1 --out new.json": """
        --judge x; --judge ''; --judge nowhere; --judge {folder}; --judge http://; --judge ftp://a/b; --judge http://a:x
        --judge http://127.0.0.1:9/; --radius 0; --radius -1; --radius nan; --radius x; --guidance nan; --guidance x
        --guidance 1e9; --real {folder}; --objective gas; --pairs {pairs} --pairs {pairs}; --pairs {pairs} --guidance 2
        --pairs {unfinished}; --pairs {other}; --start unipc-3-bh2; --start nowhere.json; --start {mnist}
        --start {solver} --nfe 4; --forwards 4; --validation 8; --solver bns; --loss l1; --method adam; --relax 1
        --balance 1; --critic-steps 2; --budget 0; --batch 0; --nfe x; --out {solver}; --iterations -1
    """,
    "train --model digits --real {folder} --objective gas --nfe 2 --out new.json": """
        ; --real nowhere; --real {text}; --real {npz}; --real {pairs}; --pairs {pairs}; --objective gs; --radius 2
        --weight 1; --balance 1; --pairing paired; --budget 5000; --iterations 5; --loss l1; --guidance x
        --start ddim; --student
    """,
    "train --model digits --nfe 2 --out new.json": """
        ; --guidance 2; --radius 2; --objective gas
    """,
    "sample --model digits --solver {solver} --nfe 2 --seeds 4 --out new.npz": """
        --dtype x; --dtype ''; --dtype float16; --quantize x; --quantize int3; --offload x; --offload model
        --max-batch 0; --max-batch x
        --solver nowhere; --solver .; --solver {text}; --solver {pairs}; --solver ''; --solver {damaged}
        --solver {mnist}
        --out new; --out new.txt; --out new.gif; --out 'o[/x]'; --out ''; --out {pairs}; --out /proc/x.npz
        --out {text}/x.npz; --out {folder}; --out {long}.npz; --out [red].jpg
        --nfe 0; --nfe 7; --nfe x; --nfe 99999999; --nfe -1; --nfe 1; --nfe 2.5
        --forwards 4; --forwards 0; --forwards x
        --guidance 3; --guidance x; --guidance nan; --guidance 1e30; --guidance ''
        --seeds 0; --seeds x; --seeds 3:1; --seeds 1e23; --seeds 1,2; --seeds 99999999999; --seeds 2000 --out new.png
        --label 10; --label -1; --label x; --label 1.5; --label 99999999999999999999999
        --batch 0; --batch -5; --batch x; --batch 1e3; --batch 99999999999999999999
        --prompts {text}; --prompts nowhere; --call a=1; --call height
        --device meta; --device x; --precision x; --model x; --model mnist; --nosuch 3; more
    """,
    "evaluate --model digits --solver {solver} --nfe 2 --seeds 50:54": """
        --dtype x; --dtype ''; --dtype float16; --quantize x; --quantize int3; --offload x; --offload model
        --max-batch 0; --max-batch x
        --solver nowhere; --solver .; --solver {text}; --solver {pairs}; --solver {mnist}; --solver {damaged}
        --solver {guided}
        --solver {solver}; --solver {badseeds}; --solver {badteacher}; --solver {badshape}; --solver {hugeteacher}
        --nfe x; --nfe 0; --nfe 99999999; --nfe 9; --nfe 3-2
        --guidance 3; --guidance x; --guidance inf; --guidance ''
        --seeds 1; --seeds x; --seeds 5:6; --seeds 0; --seeds 1e23; --seeds 9999999999
        --teacher x; --teacher ''; --grid x; --grid 1,x; --grid 1,0.5 ; --teacher-nfe 0; --teacher-nfe 99999999
        --teacher-nfe x; --teacher heun --teacher-nfe 7; --teacher-nfe 1e9
        --baselines x; --baselines ddim/x; --baselines ddim,ddim; --baselines best; --baselines ,
        --baselines heun --nfe 3; --baselines uniform
        --real nowhere; --real {pairs}; --real {text}; --real .
        --features x; --features inception; --features Inception; --features ''; --features clip --weights nowhere
        --features inception --weights {text}; --weights {text}; --weights nowhere
        --reference nowhere; --reference .; --reference {text}; --reference {solver}
        --metrics x; --metrics lpips,x; --metrics ,; --metrics clip-score --metric-weights {folder}
        --metrics lpips,lpips
        --metric-weights nowhere; --metric-weights {text}; --metrics lpips --metric-weights {folder}
        --picture x; --picture x.jpg; --picture /proc/x.png; --picture {folder}; --picture {text}/x.png
        --prompts {text}; --call a=1
        --device meta; --precision x; --model x; --model mnist; --nosuch; more; --every=1; --transfer --model mnist
    """,
    "compare --model digits --pairs {pairs} --validation 8 --seeds 50:54 --nfe 2 --solvers ddim --out new": """
        --dtype x; --dtype ''; --dtype float16; --quantize x; --quantize int3; --offload x; --offload model
        --max-batch 0; --max-batch x
        --pairs nowhere; --pairs {text}; --pairs .; --out {text}; --out /proc/x; --out {text}/x; --out /dev/null
        --solvers x; --solvers ''; --solvers ,; --solvers gs@x; --solvers ddim@best; --solvers ddim/x; --solvers DDIM
        --solvers gs@ddim/x; --solvers ddim,ddim; --solvers ddim/; --solvers @
        --nfe x; --nfe 0; --nfe 99999999; --nfe 4-2
        --unseen nowhere; --unseen {text}; --unseen {pairs} --count 99999; --unseen {pairs}; --count 3; --count x
        --unseen .
        --seeds x; --seeds 1; --seeds 1e23; --seeds 9:9
        --validation 0; --validation 24; --validation 1e9; --validation x
        --rank 0; --rank x; --rank 99999999999999999; --guides 0; --guides x; --guides 1e30
        --start {solver}; --start nowhere.json
        --start x; --start ''; --start ddim/x; --start best/x; --loss x; --method x; --method gauss-newton --loss l1
        --iterations -1; --iterations x; --iterations 1e20; --iterations 100000000000; --batch 0; --batch x
        --learning-rate nan; --learning-rate 1; --relax nan; --relax 1; --relax x
        --metrics x; --metrics mse,x; --metric-weights nowhere; --metrics lpips --metric-weights {folder}
        --gas-iterations 0; --gas-iterations x; --gas-iterations 99999999999; --seed -1; --seed x
        --real nowhere; --real {pairs}; --features x; --features inception; --weights {text}; --reference nowhere
        --reference {text}; --features dinov2 --weights {text}
        --prompts {text}; --prompts nowhere; --call a=1; --device meta; --precision x; --model x; --model mnist
    """,
    "plan --model digits": """
        --dtype x; --dtype ''; --dtype float16; --quantize x; --quantize int3; --offload x; --offload model
        --max-batch 0; --max-batch x
        --nfe 0; --nfe x; --nfe 99999999; --seeds 0; --seeds x; --seeds 99999999; --teacher-nfe 0; --teacher-nfe x
        --validation 0; --validation x; --validation 99999999; --validation 2000
        --guidance nan; --guidance inf; --guidance x; --guidance 2000
        --model DIGITS; --model x; --prompts nowhere; --prompts {text}; --call a; --call a=1
        --device x; --device meta; --precision x; --nosuch 3; more
    """,
    "studio --out new": """
        --port 0; --port 65536; --port x; --port -1; --host 1.2.3.4; --host ''; --host x..y; --host 127.0.0.1:80
        --out {text}; --out {text}/x; --device x; --device meta; more; --nosuch; --share
    """,
    "inspect {solver}": """
        --json --nfe 2; --json --forwards 99
        more; --nfe 0; --nfe 7; --nfe x; --nfe 99999999; --picture x; --picture /proc/x.png; --picture {folder}
        --picture {folder}/x.pdf; --json=1; --nosuch; --picture {text}/x.png
        --forwards x; --forwards 7; --forwards 0; --nfe 2 --forwards 2
        --guidance x; --guidance nan; --guidance 2000; --guidance 5
    """,
    "inspect": """
        ''; nowhere; .; {text}; {pairs}; {damaged}; {badseeds}; {badteacher}; {badshape}; {hugeteacher}; /dev/null
        {nometa} --picture new.png; {npz}
    """,
    "export --solver {solver} --model digits --nfe 2 --onnx new.onnx": """
        --solver nowhere; --solver {text}; --solver .; --onnx new; --onnx new.pt; --onnx /proc/x.onnx; --onnx {folder}
        --nfe 0; --nfe 7; --nfe x; --nfe 99999999; --row 2; --row -1; --row x; --row 99999999; --row 0
        --residual 0; --residual -2; --residual x; --residual 99999999; --row 0 --residual 0
        --model x; --model mnist; --model mnist-latent; --model diffusers:nowhere; --device cpu
    """,
    "demo --model digits --out new": """
        --nfe 0; --nfe -1; --nfe x; --nfe 99999999; --iterations -1; --iterations x; --iterations 1e20
        --iterations 99999999999; --seed -1; --seed x; --device meta; --device x; --model x; --model published:x
        --out {text}; --out /proc/x; --out {text}/x; more; --model DIGITS; --model diffusers:nowhere
    """,
    "paper doctor": """
        x; --set batch=8; --preset-weights .; --device meta; cifar10 more; CIFAR10
        cifar10 --set x; cifar10 --set x=1; cifar10 --set batch=x; cifar10 --set batch=
        cifar10 --set batch=0; cifar10 --set batch=-1; cifar10 --set batch=1.5
        cifar10 --set learning_rate=nan; cifar10 --set iterations=1e20
        cifar10 --set ema=2; cifar10 --set teacher_nfe=1000000000; cifar10 --set solver=x
        cifar10 --set batch=99999999999999999999; cifar10 --set memory=x
        cifar10 --set nfes=x; cifar10 --set guidance=nan; cifar10 --set objective=x
        cifar10 --set validate_every=0; cifar10 --set seed=-1; cifar10 --set start=x
        cifar10 --set pairing=x; cifar10 --set decay=x
        cifar10 --set iterations=99999999999; cifar10 --set samples=-1
    """,
    "paper pairs cifar10 --preset-weights {folder}": """
        --set batch=0; --nfe 4; --nfe 0; --objective x; --objective ''; --teacher ddim; --grid log_snr; --guidance 2
        --model digits; --out {text}; --prompts nowhere; --device meta; --precision x; --preset-weights nowhere
        --cuda-graphs --set x=1; --seeds x; ; --batch 0; --call a=1; more; --shared --shard 0; --max-time x
    """,
    "paper pairs": "; x; coco; PRESET; --preset cifar10",
    "paper train cifar10 --preset-weights {folder}": """
        --nfe 4,5 --out new.json; --cuda-graphs; --loss l2; --validation 8; --set iterations=x; ; --nfe x
        --pairs nowhere; --out {folder}; --prompts nowhere; --device meta; --precision x
        --set iterations=-1 --dry-run; --out new.json --nfe 4,6 --dry-run; --checkpointing 3; --theory; --objective x
    """,
    "paper train": "; x; --preset cifar10",
    "sample --model preset:cifar10 --solver {solver} --out new.npz": "; --call a=1; --seeds x",
    "paper evaluate cifar10 --preset-weights {folder} --solver {solver}": """
        ; --teacher ddim; --nfe x; --model digits; --seeds x; --solver nowhere; --baselines x; --metrics x
        --metric-weights nowhere; --picture x; --features x; --weights nowhere; --reference nowhere; --real nowhere
        --set x=1; --prompts nowhere; --device meta; --precision x; --guidance x; --guidance nan
    """,
    "paper convert {text} new.json": """
        ; --schedule x; --t-end nan; --t-end 0; --t-end 1; --t-end -1; --t-end x; --guidance nan; --guidance x
        --form x
        --model digits --schedule edm; more; --json=1; --guidance inf; --form ''; --schedule EDM; --model x
    """,
    "paper convert": """
        nowhere new.json; . new.json; {solver} new.json; {text}; {text} {folder}; {text} /proc/x.json; {npz} new.json
        {text} {text}/x; {damaged} new; /dev/null new.json
    """,
    "paper reproduce table2a": """
        --preset-weights . --set y; --only x; --prompts nowhere; --precision x
        --set x; --set x=1; --set batch=0; --set batch; --features x; --features inception; --weights {text}
        --features inception --weights nowhere; --reference nowhere; --real nowhere
        --markdown /proc/x.md; --markdown {folder}; --results {text}; --run --results /proc/x; --device meta; more
        --run --features x; --run --weights nowhere; --nosuch; --measure x
    """,
    "paper reproduce": """
        x; TABLE2A; table; list --run; list --only x; list --markdown x.md; list --set batch=8; ''; list x
    """,
    "paper": "x; --nosuch; PAIRS",
    "zoo": "x; LIST; list; train digits; --seed 3; --out new; --device cpu; --json x; --json=1",
    "statistics --out new.npz": """
        ; --pairs {pairs} --images {folder}; --pairs nowhere; --pairs {text} --model digits; --images nowhere
        --features x --pairs {pairs}; --features inception --pairs {pairs}; --weights {text} --pairs {pairs}
        --images {folder}; --images {folder} --model digits --features inception --weights {text}
        --features inception --weights nowhere --images {folder}; --pairs {pairs} --model x
        --pairs {pairs} --model mnist
        --features inception --weights {text} --images {folder}; --pairs {pairs} --model digits --device meta
        --pairs {pairs} --model digits --out new; --pairs {pairs} --model digits --out /proc/x.npz
        --pairs {pairs} --model digits --out {folder}; more; --images {npz} --features inception --weights {text}
    """,
    "": "x; --nosuch; --debug=3; Train; trian; --device; -m; ''",
}

CASES = [
    f"{line} {bad.strip()}".strip()
    for line, added in LINES.items()
    for bad in added.replace("\n", ";").split(";")
    if bad.strip() or added.strip().startswith(";")
]
CASES = list(dict.fromkeys(CASES))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The files that lines name, as ``{name}``."""
    folder = tmp_path_factory.mktemp("files")
    os.environ.pop("GAS_WEIGHTS", None)
    model, teacher = gas.zoo.load("digits"), Classical("unipc-3-bh2", "log_snr", 4, 1e-3)
    table = teacher.table(model.schedule)
    spec = gas.PairsSpec(range(24), teacher.config())
    list(gas.write_pairs(model, table, folder / "pairs", spec))
    running = gas.write_pairs(
        model, table, folder / "unfinished", gas.PairsSpec(range(24), teacher.config(), shard=8)
    )
    next(running), next(running)
    running.close()
    other = gas.OwnModel(lambda x, t: 0 * x, model.schedule, (1, 8, 8))
    list(gas.write_pairs(other, table, folder / "other", spec))
    tables = {n: Classical("ddim", "log_snr", n, 1e-3).table(model.schedule) for n in (2, 3)}
    document = {"model": model, "teacher": teacher.config(), "training": {"seeds": [0, 24]}}
    gas.save(folder / "solver.json", tables, **document)
    gas.save(folder / "mnist.json", tables, model=gas.zoo.load("mnist"))
    gas.save(folder / "nometa.json", tables)
    gas.save(folder / "guided.json", tables, guidance=2.0, **document)
    text = (folder / "solver.json").read_text()
    for name, old, new in (
        ("badseeds", '"seeds": [0, 24]', '"seeds": "x"'),
        ("badteacher", '"solver": "unipc-3-bh2"', '"solver": 3'),
        ("hugeteacher", '"nfe": 4,', '"nfe": 1000000000,'),
        ("badshape", '"sample_shape": [1, 8, 8]', '"sample_shape": 8'),
        ("damaged", '"times"', '"time"'),
    ):
        assert old in text
        (folder / f"{name}.json").write_text(_sealed(text.replace(old, new)))
    (folder / "text").write_text("a line of text\n")
    np.savez(folder / "npz.npz", x=np.zeros(3))
    (folder / "folder").mkdir()
    names = {path.stem: path for path in folder.iterdir()}
    return {**names, "long": "x" * 300}


def _sealed(text):
    """A solver file's text with the checksum of what it holds now."""
    content = {name: value for name, value in json.loads(text).items() if name != CHECKSUM}
    return json.dumps(add_checksum(content))


@pytest.fixture(scope="module", autouse=True)
def _imported():
    """Modules load once: what the lines cost is theirs."""

    CliRunner().invoke(app, ["inspect", "nowhere"])


def listing(*folders):
    """Every file with its size and time of change, and every folder (a probe for writing changes its time)."""
    paths = (path for folder in folders for path in folder.rglob("*"))
    return {path: path.is_dir() or (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


def check(status, stdout, stderr, line):
    assert status == 2, (line, status, stderr)
    assert "Traceback" not in stderr
    assert stderr.count("\n") == 1 and stderr.endswith("\n"), stderr
    assert stderr.startswith("error: ")
    assert len(stderr) <= 300
    assert not stdout


def test_the_corpus_is_large_and_has_every_option():
    import typer.main

    assert len(CASES) >= 300
    commands = dict(typer.main.get_command(app).commands)
    commands |= {f"paper {name}": command for name, command in commands.pop("paper").commands.items()}
    for name, command in commands.items():
        words = name.split()
        lines = [shlex.split(line) for line in CASES if line.split()[: len(words)] == words]
        assert lines, name
        for option in (
            opt for parameter in command.params for opt in parameter.opts[:1] if opt.startswith("--")
        ):
            if option not in FLAGS:
                assert any(option in words for words in lines), (name, option)


# Flags without a value, of which no value can be bad.
FLAGS = {"--help", "--json", "--compile", "--cuda-graphs", "--decoded", "--every", "--overwrite", "--theory"}
FLAGS |= {"--transfer", "--dry-run", "--run", "--student"}


@pytest.mark.parametrize("line", thinned(CASES, 17))
def test_a_bad_line_is_refused_at_once(line, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [word.format_map(files) for word in shlex.split(line)]
    before, began = listing(files["pairs"].parent, tmp_path), time.process_time()
    result = CliRunner().invoke(app, words)
    seconds = time.process_time() - began
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    check(result.exit_code, result.stdout, result.stderr, line)
    assert listing(files["pairs"].parent, tmp_path) == before
    assert seconds < 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "variables"),
    [
        ("zoo", {"WORLD_SIZE": "abc"}),
        ("zoo", {"RANK": "-1"}),
        ("zoo", {"MASTER_PORT": "x"}),
        ("pairs --device meta --out new", {}),
        ("sample --solver {solver} --out 'o[/x]'", {}),
        ("nosuch", {}),
    ],
)
def test_a_bad_line_is_refused_in_a_process_of_its_own(line, variables, files, tmp_path):
    words = [word.format_map(files) for word in shlex.split(line)]
    launch = {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    environment = {**os.environ, **(launch | variables if variables else {}), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "gas", *words]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    check(done.returncode, done.stdout, done.stderr, line)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("pairs --out new --guidance nan", "got 'nan'"),
        ("pairs --out new --seeds 1e23", "seeds must be like 1024 or 50000:51024"),
        ("pairs --out new --model DIGITS", "did you mean 'digits'?"),
        ("paper reproduce table2a --only x", "--only must be one of cifar10-gas-10, cifar10-gas-4"),
        ("train --validation abc", "got 'abc'"),
        ("inspect nowhere", "'nowhere' does not exist"),
        ("compare --pairs . --out new --start x.json", "a start for gas train only"),
    ],
)
def test_what_a_message_says(line, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in CliRunner().invoke(app, shlex.split(line)).stderr


def test_a_long_message_is_cut_and_shown_whole_on_request(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["paper", "reproduce", "list", *("more" for _ in range(200))]
    short = CliRunner().invoke(app, words).stderr
    assert short.endswith("... (gas --debug shows all)\n") and len(short) == 300
    assert len(CliRunner().invoke(app, ["--debug", *words]).stderr) > 1000
