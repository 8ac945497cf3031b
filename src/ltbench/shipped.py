"""Where configs and suites lie, in a checkout as in an installed wheel, and how one is named."""

from pathlib import Path

from ltbench.errors import unknown_name


def folder(name: str) -> Path:
    """Return ``configs`` or ``benchmarks`` of the working folder, else those that ltbench ships."""
    package = Path(__file__).parent  # an installed wheel has them inside
    places = (Path(name), package / name, package.parents[1] / name)
    return next((place for place in places if place.is_dir()), places[-1])


def config_file(name: str) -> Path:
    """Return the file of a config, named by its path or as in ``ltbench list configs``."""
    path = Path(name)
    return path if path.suffix or path.is_file() else folder("configs") / f"{name}.yaml"


def existing_config(name: str) -> Path:
    """Do the same, but refuse an unknown name; a path need not exist.

    Raises:
        UserError: There is no config of that name.
    """
    path = config_file(name)
    if not (Path(name).suffix or path.is_file()):
        raise unknown_name("config", name, [p.stem for p in folder("configs").glob("*.yaml")])
    return path
