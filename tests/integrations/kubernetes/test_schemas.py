"""The manifests against the schemas of Kubernetes. They were not applied to a cluster."""

from pathlib import Path

import kubernetes_validate
import pytest
import yaml

FOLDER = Path(__file__).parents[3] / "containers" / "kubernetes"
VERSIONS = ("1.33", "1.35")
FILES = sorted(path for path in FOLDER.rglob("*.yaml") if path.name != "kustomization.yaml")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_manifest_follows_the_schema(path, version):
    for manifest in yaml.safe_load_all(path.read_text(encoding="utf-8")):
        kubernetes_validate.validate(manifest, version, strict=True)


def test_a_wrong_manifest_does_not():
    (job,) = yaml.safe_load_all((FOLDER / "batch-job.yaml").read_text(encoding="utf-8"))
    job["spec"]["completionModus"] = job["spec"].pop("completionMode")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, VERSIONS[0], strict=True)
