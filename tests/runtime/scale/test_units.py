"""Which images share a file, and which shard does it."""

from diffseg.scale.units import Unit, container_unit, file_units, of_shard, unit_count

KEYS = [f"/photos/{i}.jpg" for i in range(1000)]


def test_each_image_is_in_one_unit():
    units = file_units(KEYS, unit_count(len(KEYS), 50, 1))
    assert sorted(key for unit in units for key in unit.items) == sorted(KEYS)
    assert len({unit.name for unit in units}) == len(units) == 20
    assert max(len(unit.items) for unit in units) < 100


def test_the_unit_of_an_image_does_not_depend_on_the_others():
    whole = {key: unit.number for unit in file_units(KEYS, 20) for key in unit.items}
    part = {key: unit.number for unit in file_units(KEYS[::-7], 20) for key in unit.items}
    assert part.items() <= whole.items()


def test_shards_share_the_work():
    units = [*file_units(KEYS, 20), container_unit("tar", "a.tar"), container_unit("parquet", "b.parquet", (0, 1), "x")]
    shards = [of_shard(units, shard, 3) for shard in range(3)]
    assert sorted(unit.name for shard in shards for unit in shard) == sorted(unit.name for unit in units)
    assert all(shards)


def test_there_are_as_many_units_as_shards():
    assert unit_count(10, 100, 8) == 8
    assert unit_count(0, 100, 1) == 1


def test_names_follow_from_what_is_in_the_unit():
    first, other = Unit(3, "files", ("a", "b")), Unit(3, "files", ("a",))
    assert first.name.startswith("part-000003-")
    assert first.name != other.name
    assert first.without(["b", "c"]) == other
    assert container_unit("parquet", "t", (0,), "x").name != container_unit("parquet", "t", (1,), "x").name


def test_a_unit_survives_the_journey_as_text():
    for unit in (Unit(3, "files", ("ä", "b")), container_unit("parquet", "t", (0, 2), "x")):
        assert Unit.decode(unit.encode()) == unit
