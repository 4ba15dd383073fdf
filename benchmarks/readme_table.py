"""Print the README's table from JSON of ``gas evaluate``: ``python benchmarks/readme_table.py FILE.json ...``."""

import argparse
import json
from pathlib import Path

from gas.display import significant

NAMES = {"dpmpp-3m": "DPM-Solver++(3M)", "unipc-3-bh2": "UniPC-3", "ipndm-3": "iPNDM-3", "GS": "**GS**"}


def main() -> None:
    """Print one Markdown table a model: mean (and median) squared error to the teacher over NFE."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reports", type=Path, nargs="+")
    for path in parser.parse_args().reports:
        report = json.loads(path.read_text())
        rows = report["rows"]
        teacher = next(row for row in rows if row["name"].endswith("(teacher)"))
        nfes = sorted({row["nfe"] for row in rows if row is not teacher})
        first, stop = report["seeds"]
        print(f"`{report['model']}`, {rows[0]['samples']} samples, seeds {first} to {stop - 1}\n")
        print("| MSE to the teacher, x 1000 | " + " | ".join(f"{n} call{'s' * (n > 1)}" for n in nfes) + " |")
        print("|---|" + "---|" * len(nfes))
        by_name = {}
        for row in rows:
            name = "best of all classical" if "best of all" in row["name"] else row["name"].split(" / ")[0]
            by_name.setdefault(name, {})[row["nfe"]] = row
        by_name.pop(teacher["name"], None)
        for key in [*NAMES, "best of all classical"]:
            if key in by_name and key != "GS":
                print(line(NAMES.get(key, key), [by_name[key].get(n) for n in nfes]))
        print(line(NAMES["GS"], [by_name["GS"][n] for n in nfes], bold=True))
        print(f"\nThe teacher is {teacher['name'].removesuffix(' (teacher)')}, {teacher['nfe']} calls.\n")


def scaled(value: float) -> str:
    """The thousandfold with three significant digits."""
    return significant(1000 * value, 3)


def line(name: str, cells: list[dict | None], bold: bool = False) -> str:
    """One row of the table."""
    mark = "**" if bold else ""
    shown = [f"{mark}{scaled(c['mse'])}{mark} ({scaled(c['mse_median'])})" if c else "" for c in cells]
    return f"| {name} | " + " | ".join(shown) + " |"


if __name__ == "__main__":
    main()
