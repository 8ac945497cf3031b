"""Write ``README.md`` from the scripts' questions and the JSON files that they left."""

import argparse
import ast
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timing import HERE, shown

APART = {"timing", "trainings", "tables", "graphs", "gpu_check"}  # no question of any machine
ON_GPU = HERE / "on_gpu"  # what gpu_check.py leaves

HEAD = """# Speed

<!-- tables.py writes this page from the scripts and the JSON files beside them: do not edit it. -->

One script a question. Each measures the things it compares side by side in one run, a few calls at
a time, so that a slow or busy machine slows them alike: read the ratios first. Each prints a table
and writes a JSON file beside itself with the machine, versions, thread count and every repeat.

```bash
make speed                                                  # all of them, then this page
.venv/bin/python benchmarks/speed/training.py --help        # or one alone
.venv/bin/python benchmarks/speed/training.py --root DIR    # on DIR/train/<class>/*, not on noise
```

Run them on an idle machine: the goals are on wall time. On a busy one take `--threads 1` and read
the processor time, which counts a script and its processes alone. A bare step is what the machine
can do with a model; absolute speeds say more about the machine than about the project.

Images of small sets stay on the device and are augmented there in batches, and networks are
channels-last, always. `--trainer.precision bf16-mixed` and `--model.compile true` round otherwise
and are switches, so that a config means the same on any device: `switches.py` says what they gain.

| script | question |
| --- | --- |
"""

NO_GPU = """

Nothing here was measured on a GPU. What the same scripts find on one is open, and with it what
bf16, compiling, CUDA graphs and jobs that share a GPU (`--pack`) gain there: `make gpu-check` asks,
in less than ten minutes."""


def scripts() -> dict[str, tuple[str, str]]:
    """Return the question of each script, and how it answers it, by name."""
    found = {}
    for path in sorted(HERE.glob("*.py")):
        if path.stem not in APART:
            text = ast.get_docstring(ast.parse(path.read_text())) or ""
            question, _, how = text.partition("\n\n")
            found[path.stem] = " ".join(question.split()), how.replace("``", "`").strip()
    return found


def section(title: str, how: str, result: dict[str, Any]) -> str:
    """Lay out how a script measures, and what it found."""
    machine, setting = result["machine"], result["setting"]
    load = machine["load"][0]
    told = ", ".join(
        f"{key.replace('_', ' ')} {f'{value:g}' if isinstance(value, float) else value}"
        for key, value in setting.items()
        if isinstance(value, str | int | float)
    )
    lines = [f"### {title}", "", *([how, ""] if how else [])]
    lines += [
        f"{machine['cpu']}, {machine['threads']} threads, {machine['device']}, load average "
        f"{load:.1f}{'; ' if told else ''}{told}.",
        "",
        "| | goal | wall time | processor time | |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for row in result["answer"]:
        wall, processor = (shown(row.get(clock)) for clock in ("wall", "processor"))
        unit = f" {row['unit']}" if "unit" in row else ""
        verdict = {True: "met", False: "**not met**", None: ""}[row.get("met")]
        title = row["title"]
        lines.append(
            f"| {title} | {row.get('goal', '')} | {wall}{unit} | {processor} | {verdict} |"
        )
    return "\n".join(lines)


def on_gpu(folder: Path) -> str:
    """Return the section of what ``gpu_check.py`` left in a folder; empty if it left nothing."""
    results = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    if not results:
        return ""
    parts = [section(name, result["question"], result) for name, result in results.items()]
    return "\n\n".join(["## On a GPU\n\nMeasured by `make gpu-check`.", *parts])


def page(folder: Path = HERE, gpu_folder: Path = ON_GPU) -> str:
    """Return the page.

    Args:
        folder: Where the JSON files are.
        gpu_folder: Where those are that ``gpu_check.py`` left.
    """
    questions = scripts()
    results = {
        name: json.loads(path.read_text())
        for name in questions
        if (path := folder / f"{name}.json").exists()
    }
    verdicts = [row["met"] for found in results.values() for row in found["answer"] if "met" in row]
    devices = {found["machine"]["device"] for found in results.values()}
    of_gpu = on_gpu(gpu_folder)
    gpu = NO_GPU if devices == {"no GPU"} and not of_gpu else ""
    parts = [
        HEAD + "\n".join(f"| `{name}.py` | {text} |" for name, (text, _) in questions.items()),
        f"## Measured\n\n{sum(verdicts)} of {len(verdicts)} goals are met on wall time.{gpu}",
        *([of_gpu] if of_gpu else []),
        *(section(f"{name}.py", questions[name][1], found) for name, found in results.items()),
    ]
    if missing := [f"`{name}.py`" for name in questions if name not in results]:
        parts.append(f"Not measured yet: {', '.join(missing)}.")
    return "\n\n".join(parts) + "\n"


def main(words: Sequence[str] | None = None) -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--folder", type=Path, default=HERE, help="of the JSON files")
    parser.add_argument("--output", type=Path, default=HERE / "README.md")
    args = parser.parse_args(words)
    args.output.write_text(page(args.folder))
    print(f"Written: {args.output}")


if __name__ == "__main__":
    main()
