"""The manifests of Kubernetes and Ray Serve fit the command line and the image. An integration checks their schemas."""

from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")

from dataclasses import fields  # noqa: E402

from diffseg.cli.app import app  # noqa: E402
from diffseg.scale.serve import ServeOptions  # noqa: E402
from typer.main import get_command  # noqa: E402

CONTAINERS = Path(__file__).parents[3] / "containers"
JOB = yaml.safe_load((CONTAINERS / "kubernetes" / "batch-job.yaml").read_text())
SERVER = {path.stem: yaml.safe_load(path.read_text()) for path in (CONTAINERS / "kubernetes" / "server").glob("*.yaml")}
PODS = {"job": JOB["spec"]["template"]["spec"], "server": SERVER["deployment"]["spec"]["template"]["spec"]}


@pytest.mark.parametrize("pod", PODS)
class TestPod:
    def test_its_arguments_are_those_of_the_command(self, pod):
        command, *words = PODS[pod]["containers"][0]["args"]
        known = get_command(app).commands[command].params
        options = {option for parameter in known for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= options

    def test_it_is_locked_down_and_writes_where_it_may(self, pod):
        spec = PODS[pod]
        (container,) = spec["containers"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert (spec["securityContext"]["runAsUser"], spec["automountServiceAccountToken"]) == (10001, False)
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
        assert container["resources"]["limits"]["memory"]


def test_the_job_has_a_pod_per_shard_and_folders_that_are_mounted():
    args = PODS["job"]["containers"][0]["args"]
    assert JOB["spec"]["completionMode"] == "Indexed"
    assert JOB["spec"]["completions"] == int(args[args.index("--shards") + 1])
    mounts = {mount["mountPath"]: mount for mount in PODS["job"]["containers"][0]["volumeMounts"]}
    assert mounts[args[1]]["readOnly"]
    assert "readOnly" not in mounts[args[args.index("-o") + 1]]
    assert args[args.index("--model") + 1] in mounts


def test_the_job_needs_no_package_that_the_image_lacks():
    args = PODS["job"]["containers"][0]["args"]
    assert args[args.index("--format") + 1] in {"webdataset", "coco"}  # Parquet needs pyarrow


def test_the_server_scales_by_a_metric_that_it_has():
    (metric,) = SERVER["autoscaler"]["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    service = (CONTAINERS.parent / "runtime" / "serving" / "http" / "service.py").read_text()
    assert name.startswith("diffseg_")
    assert f'("{name.removeprefix("diffseg_")}", ' in service
    assert "replicas" not in SERVER["deployment"]["spec"]


def test_the_kustomization_names_every_file():
    files = {path.name for path in (CONTAINERS / "kubernetes" / "server").glob("*.yaml")} - {"kustomization.yaml"}
    assert set(SERVER["kustomization"]["resources"]) == files


def test_the_application_takes_the_arguments_of_the_config_file():
    config = yaml.safe_load((CONTAINERS / "ray" / "serve.yaml").read_text())
    (application,) = config["applications"]
    assert set(application["args"]) <= {field.name for field in fields(ServeOptions)}
    module, _, name = application["import_path"].partition(":")
    assert (module, name) == ("diffseg.scale.serve", "app")
    assert application["deployments"][0]["name"] == "diffseg"
