"""The README's Python runs as it stands, block after block."""

import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def test_the_python_blocks_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    *blocks, pipeline = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert (
        len(blocks) == 2 and "from_pipeline(pipe, prompts)" in pipeline
    )  # tests/test_pipelines.py runs those
    names = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    printed = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert printed[-1] < 0.5 * printed[0]
    assert names["images"].shape == (10, 1, 8, 8)
    # N(0, 1) data: the exact flow is the identity, so the sampler must return its own noise.
    assert abs(float(names["x0"].std()) - 1) < 0.05
