"""YAML as configs and suites hold it: plain data, and no key twice in a mapping."""

from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """YAML in which no key is there twice: the later value would silently replace the first."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:  # noqa: ANN401 - as yaml's
        node = super().compose_mapping_node(anchor)  # before merges (<<) are resolved
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            problem = f"'{twice}' is there twice"
            raise yaml.composer.ComposerError(None, None, problem, node.start_mark)
        return node


def load(text: str) -> Any:  # noqa: ANN401 - YAML is recursive
    """Read YAML.

    Raises:
        yaml.YAMLError: It is malformed, has a key twice, or is nested beyond reason.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
