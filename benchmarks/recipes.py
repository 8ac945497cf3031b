"""Write docs/recipes.md: where each part of each recipe comes from, and what holds it there.

    python benchmarks/recipes.py

A config that cites a paper says it in the last line of its opening comment, which `ltbench show`
prints; a test compares the page with what this script makes.
"""

import re
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ltbench import catalog

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "recipes.md"
PARTS = ("network", "init", "views", "optimiser", "schedule", "selection", "data")
STATUSES = {  # in a config -> in the table
    "Released": "as released",  # by the authors' code
    "Stated": "as stated",  # in the paper, which has no code for it
    "Changed": "told deviation",  # the method's card says how
    "Ours": "ours",  # nothing is published
}
SENTENCE = re.compile(rf"({'|'.join(STATUSES)})(?: \(([^)]+)\))?: ([a-z, ]+)\.")
CITED = re.compile(r"\b\d{4}\.\d{5}\b")

# The tests that hold what is released or stated: configs -> part -> test. The first match counts.
BACKBONES, STEPS = "tests/models/test_backbones.py", "tests/methods/test_paco_steps.py"
SEMI, PACO = "tests/test_semi_configs.py", "tests/methods/test_paco_runs.py"
DEIT, CBGAN = "tests/methods/test_deit_lt_recipes.py", "tests/methods/test_cbgan_recipes.py"
OF_CIFAR = "tests/test_configs.py::test_cifar_recipes_have_the_constants_of_the_paper"
OF_LARGE = "tests/test_configs.py::test_large_recipes_have_the_constants_of_the_paper"
SIZES = f"{BACKBONES}::test_parameter_counts_are_the_published_ones"
RESNET50 = "tests/test_configs.py::test_branches_of_resnet50_start_as_torchvisions"
RESNET32 = f"{BACKBONES}::test_resnet_starts_he_normal_with_torch_biases"
OF_SEMI = f"{SEMI}::test_the_constants_of_the_papers_code"
OF_IMAGENET100 = f"{SEMI}::test_the_constants_of_imagenet100"
OF_PACO = f"{PACO}::test_recipes_have_the_constants_of_the_paper"
OF_DEIT = f"{DEIT}::test_recipes_have_the_constants_of_the_paper"
OF_CBGAN = f"{CBGAN}::test_the_cifar_config_has_the_published_constants"
OF_SELMIX = f"{SEMI}::test_the_constants_of_selmix"
OF_RIDE = "tests/methods/test_ride.py::test_the_recipe_has_the_constants_of_the_paper"
OF_HEADS = "tests/methods/test_decoupled.py::test_configs_have_the_published_constants"
STUDENT, EXPERTS = "tests/models/test_distilled_vit.py", "tests/models/test_experts.py"
OF_INAT = (
    "tests/data/test_inaturalist.py"
    "::test_labels_are_the_official_ones_and_validation_is_the_test_split"
)
TEXTS = "tests/data/test_text.py::test_the_shipped_configs_take_the_published_network"
HELD: dict[str, dict[str, str]] = {
    r"(ce|cedrw|ldamdrw|vs)(sam)?_cifar100?": {
        **{"network": SIZES, "init": RESNET32},
        **dict.fromkeys(("views", "optimiser", "schedule"), OF_CIFAR),
    },
    r"(ce|cedrw|ldamdrw)(sam)?_(imagenetlt|inat)": {
        **{"init": RESNET50},
        **dict.fromkeys(("network", "views", "optimiser", "schedule", "data"), OF_LARGE),
    },
    r"paco(sam)?_(imagenetlt|inat)": {"init": RESNET50},
    r"paco(sam)?_.*": {
        **{"network": OF_PACO, "init": RESNET32},
        **dict.fromkeys(("views", "optimiser", "schedule"), OF_PACO),
    },
    r"(csst|csst_coverage|fixmatch|fixmatch_la)_(cifar100?|stl10)": {
        **{"init": f"{BACKBONES}::test_wide_resnet_starts_he_normal_by_fan_out"},
        **dict.fromkeys(("network", "views", "schedule"), OF_SEMI),
    },
    r"(csst|fixmatch_la)_imagenet100": {
        **{"init": f"{SEMI}::test_imagenet100_has_timms_resnet50"},
        **dict.fromkeys(("network", "views", "schedule"), OF_IMAGENET100),
    },
    r"(csst|uda)_(imdb|dbpedia14)": {"network": TEXTS, "init": TEXTS},
    r"selmix_.*": dict.fromkeys(("network", "optimiser", "selection"), OF_SELMIX),
    r"deitlt_.*": {
        "network": f"{STUDENT}::test_the_published_student",
        "init": f"{STUDENT}::test_the_start_is_deits",
        **dict.fromkeys(("views", "optimiser", "schedule", "data"), OF_DEIT),
    },
    r"cbgan_.*": {
        **{"network": "tests/models/test_gan.py::test_sizes_of_the_published_networks"},
        **{"init": "tests/models/test_gan.py::test_both_players_start_orthogonal"},
        **dict.fromkeys(("views", "optimiser", "schedule"), OF_CBGAN),
    },
    r"ride_.*": {
        "network": f"{EXPERTS}::test_parameter_counts_are_those_of_the_released_network",
        "init": f"{BACKBONES}::test_experts_start_he_normal",
        **dict.fromkeys(("views", "optimiser", "schedule"), OF_RIDE),
    },
    r"(crt|mislas|cemixup)_.*": {"optimiser": OF_HEADS, "schedule": OF_HEADS},
    r".*_imagenetlt": {"data": "tests/data/test_lists.py::test_the_published_lists_by_their_names"},
    r".*_inat": {"data": OF_INAT},
    r".*_cifar10": {"data": "tests/data/test_profiles.py::test_cifar10_subset_of_seed_0"},
    r".*_cifar100": {"data": "tests/data/test_profiles.py::test_cifar100_subset_of_seed_0"},
}

# How a method's card begins to tell what is changed: method -> part -> beginnings of entries.
LAST = "The last epoch is reported"
SEMI_SUPERVISED = {
    "views": "CIFAR is normalised",
    "optimiser": "Biases, not only batch norm",
    "selection": LAST,
    "data": "Images are drawn independently",
}
TOLD: dict[str, dict[str, str]] = {
    "erm": {"optimiser": "Batch norm statistics move", "selection": LAST},
    "fixmatch": SEMI_SUPERVISED,
    "csst": SEMI_SUPERVISED,
    "selmix": {
        "network": "Batch norm keeps its statistics",
        "init": "The start is not chosen on test images",
        "views": "CIFAR is normalised",
        "schedule": "The learning rate falls cycle by cycle",
        "data": "Validation images are seen once",
    },
    "deit_lt": {"views": "Images are normalised by", "selection": LAST},
    "cbgan": {"selection": "The last iteration is reported", "data": "The last batch of an epoch"},
    "ride": {"selection": LAST},
    "decoupled": {"selection": LAST},
    "mislas": {"selection": LAST},
}


class Part(NamedTuple):
    """Where a part of a recipe comes from."""

    status: str  # a key of STATUSES
    source: str  # paper whose release it is, or that states it; else empty
    backing: str  # the test that holds it, or the entry of the card; empty for what is ours


def comment(config: Path) -> str:
    """Return the opening comment of a config."""
    return re.match(r"(#.*\n)*", config.read_text()).group()  # type: ignore[union-attr]


def origins(config: Path) -> dict[str, Part]:
    """Return the parts of a config that cites a paper, by the last line of its opening comment.

    Raises:
        ValueError: The line is missing, or does not name each part once; or nothing backs a part.
    """
    last = comment(config).splitlines()[-1]
    sentences = SENTENCE.findall(last)
    named = [(part, s, source) for s, source, parts in sentences for part in parts.split(", ")]
    if "# " + " ".join(m.group() for m in SENTENCE.finditer(last)) != last or sorted(
        part for part, _, _ in named
    ) != sorted(PARTS):
        raise ValueError(f"{config.name}: its last comment does not say where each part is from.")
    return {
        part: Part(status, source, _backing(config.stem, method(config), part, status))
        for part, status, source in sorted(named, key=lambda each: PARTS.index(each[0]))
    }


def method(config: Path) -> str:
    """Return the method of a config, as `ltbench list methods` names it."""
    return _methods()[yaml.safe_load(config.read_text())["model"]["class_path"]]


@cache
def _methods() -> dict[str, str]:
    return {name: method for method in catalog.methods() for name in catalog.classes(method)}


@cache
def _card(method: str) -> dict[str, Any]:
    return catalog.paper(method)


def _backing(config: str, method: str, part: str, status: str) -> str:
    if status == "Ours":
        return ""
    if status == "Changed":
        beginning = TOLD.get(method, {}).get(part)
        entries = [d for d in _card(method)["deviations"] if beginning and d.startswith(beginning)]
        if len(entries) != 1:
            raise ValueError(f"{config}: the card of {method} does not tell how {part} differs.")
        return entries[0]
    for pattern, tests in HELD.items():
        if re.fullmatch(pattern, config) and part in tests:
            return tests[part]
    raise ValueError(f"{config}: no test holds its {part}.")


def cited() -> list[Path]:
    """Return the configs that cite a paper, or say where they come from."""
    return [
        path
        for path in sorted((ROOT / "configs").glob("*.yaml"))
        if CITED.search(comment(path)) or SENTENCE.search(comment(path))
    ]


def page() -> str:
    """Return docs/recipes.md."""
    by_method: dict[str, dict[tuple[Part, ...], list[str]]] = defaultdict(lambda: defaultdict(list))
    covered = cited()
    for path in covered:
        by_method[method(path)][tuple(origins(path).values())].append(path.stem)
    others = [p.stem for p in sorted((ROOT / "configs").glob("*.yaml")) if p not in covered]
    lines = [
        "# Where each recipe comes from",
        "",
        "Made by `python benchmarks/recipes.py` from the configs and the methods' cards; a test",
        "compares. *As released*: as the authors' code has it, and a test holds it there.",
        "*As stated*: as the paper has it, of which no code is published. *Told deviation*:",
        "different, as the method's card and the record of each run say. *Ours*: nothing is",
        "published, or it is not a setting of a paper. `ltbench show CONFIG` prints the line of a",
        "config that this is read from.",
    ]
    for name, rows in sorted(by_method.items()):
        card = _card(name)
        lines += [
            "",
            f"## {name}",
            "",
            f"{card['title']}, {card['venue']}, arXiv {card['arxiv']}.",
            "",
        ]
        lines += [f"| configs | {' | '.join(PARTS)} |", "|---" * (len(PARTS) + 1) + "|"]
        notes: list[str] = []
        for parts, configs in sorted(rows.items(), key=lambda row: row[1]):
            cells = [_cell(part, notes) for part in parts]
            lines.append(f"| {', '.join(f'`{c}`' for c in configs)} | {' | '.join(cells)} |")
        lines += (
            ["", *(f"{number}. {note}" for number, note in enumerate(notes, 1))] if notes else []
        )
    lines += ["", "## Configs of no paper", "", ", ".join(f"`{name}`" for name in others) + "."]
    return "\n".join(lines) + "\n"


def _cell(part: Part, notes: list[str]) -> str:
    words = STATUSES[part.status]
    words += f" ({part.source})" if part.source else ""
    if not part.backing:
        return words
    note = f"Card: {part.backing}" if part.status == "Changed" else f"`{part.backing}`"
    if note not in notes:
        notes.append(note)
    return f"{words} [{notes.index(note) + 1}]"


if __name__ == "__main__":
    PAGE.write_text(page())
