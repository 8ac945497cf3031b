"""What a run is: its record, its identity, its folder. Importing this package needs no torch."""

from ltbench.records.files import (
    clear_parts,
    parse_yaml,
    read_npz,
    require_place,
    write_json,
    write_npz,
    write_text,
    write_whole,
)
from ltbench.records.folder import Predictions, RunFolder, plain_name
from ltbench.records.identity import (
    canonical,
    job_id,
    recipe,
    recorded_revisions,
    revisions,
)
from ltbench.records.locks import locked
from ltbench.records.provenance import git_state, versions
from ltbench.records.schema import SCHEMA, Record, read_record, write_record

__all__ = [
    "SCHEMA",
    "Predictions",
    "Record",
    "RunFolder",
    "canonical",
    "clear_parts",
    "git_state",
    "job_id",
    "locked",
    "parse_yaml",
    "plain_name",
    "read_npz",
    "read_record",
    "recipe",
    "recorded_revisions",
    "require_place",
    "revisions",
    "versions",
    "write_json",
    "write_npz",
    "write_record",
    "write_text",
    "write_whole",
]
