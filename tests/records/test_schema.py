"""A record has every part of its schema, when it is written and when it is read."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import record_of

from ltbench import records
from ltbench.data.sources import SOURCES
from ltbench.errors import UserError
from ltbench.naming import resolve
from ltbench.records import canonical, read_record, schema, write_json, write_record

PARTS = {name: None for name in schema.PARTS} | record_of()
PARTS["data"]["head_mid_tail"] = [1, 1, 1]

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    # a lone surrogate is no text and has no UTF-8
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@settings(deadline=None)  # a disk may be busy
@given(content=VALUES)
def test_a_record_is_read_back_as_it_was_written(content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "round_trip.json"
    config = {"seed_everything": content}
    write_record(path, **PARTS | {"config": config})
    assert read_record(path) == {**PARTS, "schema": 1, "config": canonical(config)}


@pytest.mark.parametrize("text", ["", '{"schema": 1', "[]", "{}", "3", '{"job_id": "x"}'])
def test_what_is_not_a_record_is_refused_by_name(text, tmp_path):
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"record\.json"):
        read_record(path)


def test_a_missing_record_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"record\.json"):
        read_record(tmp_path / "record.json")


def test_a_record_of_a_newer_ltbench_is_refused(tmp_path):
    path = tmp_path / "record.json"
    write_json(path, record_of(schema=records.SCHEMA + 1))
    with pytest.raises(UserError, match="upgrade ltbench"):
        read_record(path)


def test_a_record_is_written_with_every_part_of_its_shape_or_not_at_all(tmp_path):
    path = tmp_path / "record.json"
    with pytest.raises(TypeError, match="seed"):
        write_record(path, **{name: part for name, part in PARTS.items() if name != "seed"})
    with pytest.raises(TypeError, match="colour"):
        write_record(path, **PARTS, colour="red")
    with pytest.raises(UserError, match="seed"):
        write_record(path, **PARTS | {"seed": "one"})
    assert not path.exists()


def test_an_old_record_is_read_in_the_present_form(tmp_path):
    path = tmp_path / "record.json"
    old = record_of(dataset="cifar100")
    old["data"] |= {"class_names": ["x"] * 100, "class_counts": [5] * 100}
    old["config"]["model"]["class_path"] = "ltbench.methods.erm.ERM"
    write_json(path, old)
    record = read_record(path)
    assert record["data"]["head_mid_tail"] == [36, 35, 29]
    assert record["config"]["model"]["class_path"] == "ERM"
    write_json(path, old | {"dataset": "folder"})  # of 100 classes, too
    assert read_record(path)["data"]["head_mid_tail"] is None


def test_old_records_have_the_sizes_that_the_sources_declare():
    for name, sizes in schema._HEAD_MID_TAIL.items():
        assert tuple(sizes) == resolve("source", name, SOURCES).head_mid_tail
