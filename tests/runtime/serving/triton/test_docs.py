"""The commands in docs/triton.md run unchanged. Its Python client runs in test_served.py."""

import os
import re
import shlex
import sys
from pathlib import Path

import pytest
import typer
from diffseg.cli import app as cli
from diffseg.serving.protocol.tensors import INPUTS, MODEL, OUTPUTS

from tests.plans import plan_of
from tests.runtime.serving.samples import blocks

ROOT = Path(__file__).parents[4]
PAGE = (ROOT / "docs" / "triton.md").read_text(encoding="utf-8")
ELSEWHERE = {
    "tritonserver --model-repository=model_repository": "test_served.py does",
    "scripts/release/triton_check --out record.json": "runs these tests",
}


COMMANDS = [line for block in blocks("sh") for line in block.splitlines()]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in ELSEWHERE])
def test_command(command, fake_bundle, tmp_path, monkeypatch):
    plan_of(fake_bundle)
    fake_bundle.folder.rename(tmp_path / "sd15-fp16")
    monkeypatch.chdir(tmp_path)
    program, *arguments = shlex.split(command)
    assert program == "diffseg"
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert (tmp_path / arguments[arguments.index("-o") + 1] / MODEL / "config.pbtxt").is_file()


def test_what_runs_elsewhere_is_there():
    assert set(ELSEWHERE) <= set(COMMANDS)
    assert os.access(ROOT / "scripts" / "release" / "triton_check", os.X_OK)


def test_the_services_of_kserve():
    yaml = pytest.importorskip("yaml", reason="needs PyYAML, which comes with the extra 'export'")
    own, triton = (yaml.safe_load(block) for block in blocks("yaml"))
    for service in (own, triton):
        assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    (container,) = own["spec"]["predictor"]["containers"]
    command, *arguments = container["args"]
    assert container["command"] == ["diffseg"]
    parsed = typer.main.get_command(cli.app).commands[command].make_context(command, list(arguments)).params
    assert parsed["port"] == container["ports"][0]["containerPort"] == container["readinessProbe"]["httpGet"]["port"]
    assert parsed["host"] == "0.0.0.0"  # noqa: S104 - else nobody would reach it
    assert all(isinstance(argument, str) for argument in arguments)
    model, volumes = triton["spec"]["predictor"]["model"], triton["spec"]["predictor"]["volumes"]
    assert model["protocolVersion"] == "v2"
    assert [mount["name"] for mount in model["volumeMounts"]] == [volume["name"] for volume in volumes]


def test_tensors_are_named():
    for tensor in (*INPUTS, *OUTPUTS):
        assert f"`{tensor['name']}` {tensor['datatype']}" in PAGE


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
