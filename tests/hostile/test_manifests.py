"""Changed manifests and records of plans open, or are refused in one line. HOSTILE_EXAMPLES sets how many are tried."""

import json
import os
import time
import unicodedata

import msgspec
from diffseg.engines.bundle.bundle import Bundle
from diffseg.engines.bundle.manifest import MANIFEST, Manifest
from diffseg.engines.errors import BundleError
from diffseg.engines.inspect import inspect_bundle
from diffseg.engines.records import RecordError, read_record
from diffseg.engines.tensorrt.plan import RECORD, SCHEMA, PlanRecord
from diffseg.serving.triton.config import RepositoryOptions, model_configs
from diffseg.serving.triton.pbtxt import to_text
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engines.doubles.plans import put_plan
from tests.hostile.manifests import manifests

EXAMPLES = int(os.environ.get("HOSTILE_EXAMPLES", "400"))
MANY = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
SECONDS = 5  # of processor time; usual ones take milliseconds
LONGEST = 600


def check_characters(line):
    assert not [c for c in line if unicodedata.category(c) in {"Cc", "Zl", "Zp", "Cs"}], repr(line)


def check_line(error):
    line = str(error)
    assert len(line) <= LONGEST, line
    check_characters(line)


def texts(value):
    """Every text of parsed JSON, with the keys of its objects."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        yield from texts(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts(item)


@given(data=st.data())
@MANY
def test_a_changed_manifest_opens_or_is_refused_in_a_line(fake_bundle, formed_bundle, data):
    # Both fixtures are of the same folder; the second one has a form more.
    valid = [json.loads(bundle.manifest.to_json()) for bundle in (fake_bundle, formed_bundle)]
    for manifest in valid:
        manifest["source"]["licence"] = "as is"
        manifest |= {"versions": {"numpy": "2"}, "parity": {"latent": {"worst": 0.5}}}
    file = data.draw(manifests(valid))
    (formed_bundle.folder / MANIFEST).write_bytes(file)
    start = time.process_time()
    try:
        bundle = Bundle.open(formed_bundle.folder)
    except BundleError as error:
        check_line(error)
    else:
        assert Manifest.from_json(bundle.manifest.to_json()) == bundle.manifest
        for text in texts(msgspec.to_builtins(bundle.manifest)):
            check_characters(text)
        assert bundle.manifest.name in inspect_bundle(bundle).name
        for name, problem in bundle.verify():
            check_line(f"{name}: {problem}")
        for config in model_configs(bundle.manifest, RepositoryOptions()).values():
            lines = to_text(config).splitlines()
            assert not [line for line in lines if "EXECUTION_ENV_PATH" in line], "parameters from a manifest"
    assert time.process_time() - start < SECONDS


@given(data=st.data())
@MANY
def test_a_changed_record_of_a_plan_opens_or_is_refused_in_a_line(fake_bundle, data):
    if not (fake_bundle.folder / "plans").exists():
        put_plan(fake_bundle)
    (folder,) = (fake_bundle.folder / "plans").iterdir()
    original = (folder / RECORD).read_bytes()
    file = data.draw(manifests([json.loads(original)]))
    start = time.process_time()
    try:
        (folder / RECORD).write_bytes(file)
        for plan in inspect_bundle(fake_bundle).plans:
            check_line(plan.problem or plan.purpose)
        record = read_record(folder / RECORD, PlanRecord, SCHEMA)
        for text in (*texts(msgspec.to_builtins(record)), record.spec.key, record.spec.purpose):
            check_characters(text)
    except RecordError as error:
        check_line(error)
    finally:
        (folder / RECORD).write_bytes(original)
    assert time.process_time() - start < SECONDS
