"""gas.citation and CITATION.cff name the same library and paper; a solver file adds the paper of its method."""

import re
from pathlib import Path

import pytest

import gas

ROOT = Path(__file__).parents[1]


def entries(text):
    """Titles of BibTeX entries, without the braces that protect capitals."""
    return [re.sub(r"[{}]", "", title) for title in re.findall(r"title\s*= \{(.*)\},", text)]


def test_the_citation_file_agrees():
    yaml = pytest.importorskip("yaml")
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    text = gas.citation()
    assert entries(text) == [cff["title"], cff["references"][0]["title"]]
    assert cff["version"] == gas.__version__ and f"version = {{{gas.__version__}}}" in text
    assert "2510.17699" in text and cff["references"][0]["url"].endswith("2510.17699")
    for author in cff["references"][0]["authors"]:
        assert f"{author['family-names']}, {author['given-names']}" in text


@pytest.mark.parametrize(
    ("solver", "added"), [(gas.LD3, "2405.15506"), (gas.S4S, "2502.17423"), (gas.BNS, "2403.01329")]
)
def test_a_solver_file_adds_its_method(tmp_path, solver, added):
    schedule = gas.VPLinear()
    table = gas.Classical("ddim", "log_snr", 3, 1e-3).table(schedule)
    gas.save(tmp_path / "table.json", table)
    assert gas.citation(tmp_path / "table.json") == gas.citation()
    learned = solver(schedule, 3, 1e-3) if solver is not gas.BNS else solver.from_table(schedule, table, 1e-3)
    gas.save(tmp_path / "learned.json", learned)
    text = gas.citation(gas.load(tmp_path / "learned.json"))
    assert text.startswith(gas.citation().rstrip()) and added in text
    assert text.count("@") == 3 and text.count("{") == text.count("}")


def test_a_missing_solver_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        gas.citation(tmp_path / "x.json")
