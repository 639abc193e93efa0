"""Checks of the container images without building them: Dockerfile, compose.yaml, locks and pages.

`scripts/release/container_check` builds and runs them.
"""

import json
import re
import shlex
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

pytest.importorskip("packaging")
pytest.importorskip("yaml")
import yaml
from diffseg.cli.app import app as command_line
from diffseg.engines.bundle.manifest import ENCODER
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version
from typer.main import get_command

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = ROOT / "containers"
PAGES = {page: (ROOT / page).read_text() for page in ("README.md", "docs/containers.md", "docs/edge.md")}
TARGETS = {
    "cpu": ("cpu", "serve"),
    "gpu": ("gpu", "serve"),
    "tensorrt": ("cpu", "rtx", "tensorrt", "serve"),
    "export": ("export", "rtx-build"),
}
BY_HAND = {"tensorrt": "nvidia", "export": "torch"}
"""Locks of packages that are not on PyPI."""
MACHINES = [
    {"python_version": python, "python_full_version": f"{python}.0", "platform_machine": machine}
    | {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}
    for python in ("3.11", "3.12", "3.13", "3.14")
    for machine in ("x86_64", "aarch64")
]


# --- locks


def read_lock(name):
    """`(requirement, hashes)` of each entry."""
    text = re.sub(r"^#.*\n", "", (LOCKS / f"{name}.lock").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    entries = [re.split(r"\s+--hash=", line.strip()) for line in text.splitlines() if line.strip()]
    return [(Requirement(first), hashes) for first, *hashes in entries]


def pinned(target, machine):
    """Versions by name that a machine installs for a target."""
    names = [target, *([BY_HAND[target]] if target in BY_HAND else [])]
    entries = [r for name in names for r, _ in read_lock(name) if r.marker is None or r.marker.evaluate(machine)]
    versions = {canonicalize_name(r.name): Version(str(r.specifier).removeprefix("==")) for r in entries}
    assert len(versions) == len(entries), "a package is locked twice"
    return versions


def wanted(extras, machine):
    """The requirements in pyproject.toml, with some extras, on a machine."""
    optional = PROJECT["project"]["optional-dependencies"]
    waiting = [*PROJECT["project"]["dependencies"], *(text for extra in extras for text in optional[extra])]
    while waiting:
        requirement = Requirement(waiting.pop())
        if requirement.marker is not None and not requirement.marker.evaluate(machine):
            continue
        if requirement.name == "diffseg":
            waiting += [text for extra in requirement.extras for text in optional[extra]]
        else:
            yield requirement


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: f"{m['python_version']}-{m['platform_machine']}")
@pytest.mark.parametrize("target", TARGETS)
def test_a_lock_has_what_the_project_asks_for(target, machine):
    versions = pinned(target, machine)
    for requirement in wanted(TARGETS[target], machine):
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is not locked: run scripts/release/lock"
        assert requirement.specifier.contains(version, prereleases=True), f"{version}, wanted {requirement}"
    assert not {"onnxruntime", "onnxruntime-gpu"} <= set(versions), "the two share one module"


@pytest.mark.parametrize("lock", sorted(path.stem for path in LOCKS.glob("*.lock")))
def test_every_file_of_a_lock_has_its_hash_and_none_an_address(lock):
    for requirement, hashes in read_lock(lock):
        assert re.fullmatch(r"==[^,=*]+", str(requirement.specifier)), requirement
        assert hashes, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", text) for text in hashes)
    assert not re.search(r"://|^-|/(home|tmp|root|opt)/", (LOCKS / f"{lock}.lock").read_text(), re.MULTILINE)


def test_the_tools_that_build_wheels_are_those_of_the_project():
    versions = {r.name: str(r.specifier).removeprefix("==") for r, _ in read_lock("build")}
    for requirement in map(Requirement, PROJECT["build-system"]["requires"]):
        assert requirement.specifier.contains(versions[requirement.name])


def test_the_exporter_is_locked_with_the_torch_of_the_tests_and_without_cuda():
    (torch,) = (str(r.specifier) for r, _ in read_lock("torch"))
    (tested,) = re.findall(r"torch(==[\d.]+)", (ROOT / "scripts" / "test").read_text())
    assert torch == f"{tested}+cpu"
    assert not [r.name for r, _ in read_lock("export") if re.match("nvidia|cuda|triton|torch$", r.name)]


def test_the_parts_of_tensorrt_are_of_one_version():
    found = {str(r.specifier) for r, _ in read_lock("tensorrt") if r.name.startswith("tensorrt-cu13")}
    assert found == {str(r.specifier) for r, _ in read_lock("nvidia")}


# --- Dockerfile


def read_dockerfile():
    """`{stage: (parent, [(instruction, arguments)])}`, in order."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    stages = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, _, arguments = line.partition(" ")
        if instruction == "FROM":
            parent, _, name = arguments.partition(" AS ")
            stages[name] = (parent, [])
        elif stages:
            stages[name][1].append((instruction, " ".join(arguments.split())))
    return stages


STAGES = read_dockerfile()
IGNORED = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]


def steps(stage):
    """Instructions of a stage, those of its parents first."""
    parent, own = STAGES[stage]
    return [*(steps(parent) if parent in STAGES else []), *own]


def last(target, instruction):
    """Arguments of the last instruction of a kind."""
    return [arguments for name, arguments in steps(target) if name == instruction][-1]


def environment(target):
    return dict(
        item.split("=", 1) for name, text in steps(target) if name == "ENV" for item in shlex.split(text) if "=" in item
    )


def is_sent(path):
    """Whether .dockerignore lets a path of the repository through: the last rule that matches it decides."""
    parts = Path(path).parts
    sent = True
    for rule in IGNORED:
        pattern = rule.removeprefix("!").rstrip("/")
        prefixes = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        if pattern.startswith("**/"):
            matches = any(fnmatch(part, pattern[3:]) for part in parts)
        else:
            matches = any(fnmatch(p, pattern) and p.count("/") == pattern.count("/") for p in prefixes)
        if matches:
            sent = rule.startswith("!")
    return sent


@pytest.mark.parametrize("target", TARGETS)
class TestTarget:
    def test_runs_as_a_number_that_is_not_root(self, target):
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last(target, "USER"))

    def test_starts_the_program_itself_so_that_signals_reach_it(self, target):
        assert json.loads(last(target, "ENTRYPOINT")) == ["diffseg"]
        check_options(json.loads(last(target, "CMD")))
        assert last(target, "STOPSIGNAL") == "SIGTERM"

    def test_writes_to_one_volume_alone(self, target):
        assert {environment(target)["HOME"], environment(target)["DIFFSEG_CACHE"]} == {last(target, "VOLUME")}

    def test_has_labels(self, target):
        labels = dict(item.split("=", 1) for item in shlex.split(last(target, "LABEL")))
        prefix = "org.opencontainers.image."
        assert labels[f"{prefix}version"] == PROJECT["project"]["version"]
        assert labels[f"{prefix}licenses"] == PROJECT["project"]["license"]
        assert {f"{prefix}{name}" for name in ("title", "description", "base.name")} <= set(labels)

    def test_takes_a_whole_environment_and_the_program_last(self, target):
        copies = [arguments for name, arguments in steps(target) if name == "COPY"]
        assert copies == [f"--from={target}-packages /opt/diffseg /opt/diffseg", "--from=program /program /"]

    def test_installs_from_its_locks_with_hashes(self, target):
        stage = f"{target}-packages"
        assert environment(stage)["PIP_REQUIRE_HASHES"] == "1"
        assert environment(stage)["PIP_ONLY_BINARY"] == ":all:"
        names = {target, *([BY_HAND[target]] if target in BY_HAND else [])}
        for instruction, arguments in STAGES[stage][1]:
            if instruction == "RUN":
                assert "REQUIRE_HASHES" not in arguments
                assert set(re.findall(r"-r /locks/(\w+)\.lock", arguments)) - {"build"} == names
                assert set(re.findall(r"--index-url (\S+)", arguments)) <= {'"${NVIDIA_INDEX}"', '"${TORCH_INDEX}"'}
        assert set(re.findall(r"containers/(\w+)\.lock", last(stage, "COPY"))) == names


@pytest.mark.parametrize("target", [target for target in TARGETS if target != "export"])
class TestServer:
    def test_is_healthy_when_it_is_ready(self, target):
        pytest.importorskip("fastapi", reason="needs the extra 'serve'")
        from diffseg.serving.http.inference import router

        (path,) = re.findall(r"'(/v2[^']*)'", last(target, "HEALTHCHECK"))
        assert path in [route.path for route in router.routes]
        port = json.loads(last(target, "CMD"))[-1]
        assert last(target, "EXPOSE") == port
        assert f"'127.0.0.1', {port}," in last(target, "HEALTHCHECK")

    def test_lets_nobody_in_without_a_token(self, target):
        command = json.loads(last(target, "CMD"))
        assert "--no-token" not in command
        assert command[command.index("--host") + 1] == "0.0.0.0"  # noqa: S104 - which is what asks for a token


def test_the_stage_that_is_built_unasked_is_the_small_one():
    assert list(STAGES)[-1] == "cpu"


def test_nothing_is_fetched_but_by_pip():
    lines = [line for _, (_, instructions) in STAGES.items() for line in instructions]
    assert not [arguments for name, arguments in lines if name == "ADD"]
    assert not [arguments for _, arguments in lines if re.search(r"\b(curl|wget|apt-get|git)\b", arguments)]
    assert {parent for parent, _ in STAGES.values()} <= {"${BASE}", *STAGES}


def test_what_is_copied_is_there_and_is_sent_to_the_builder():
    sources = [
        word
        for _, (_, instructions) in STAGES.items()
        for name, arguments in instructions
        if name == "COPY" and "--from=" not in arguments
        for word in arguments.split()[:-1]
    ]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source == "." or is_sent(source), source
    for path in PROJECT["tool"]["setuptools"]["package-dir"].values():
        assert is_sent(path), path
    for path in ("pyproject.toml", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]):
        assert is_sent(path), path


def test_what_is_large_or_private_stays_here():
    kept = (
        ".git",
        ".venv",
        "tests/golden",
        "docs/profile.png",
        "scripts",
        "secrets/token",
        "demo",
        "evaluation",
        ".env",
    )
    assert not [path for path in (*kept, "runtime/__pycache__/cli.pyc", "containers/notes") if is_sent(path)]
    assert is_sent("engines/models/tiny/unet.onnx")


# --- compose.yaml

COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())


def default(text):
    """Replace ${NAME:-default} by its value."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


@pytest.mark.parametrize("name", COMPOSE["services"])
class TestService:
    def test_is_locked_down(self, name):
        service = COMPOSE["services"][name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert not {"privileged", "user", "network_mode", "cap_add", "pid"} & set(service)
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert service["deploy"]["resources"]["limits"]["memory"]
        assert service["profiles"] == [name]

    def test_writes_where_the_image_does(self, name):
        bundle, cache = COMPOSE["services"][name]["volumes"]
        assert (bundle["target"], bundle["read_only"]) == ("/bundle", True)
        assert (ROOT / default(bundle["source"]) / f"{ENCODER}.onnx").exists()
        volume, target = cache.split(":")
        assert volume in COMPOSE["volumes"]
        assert target == last(name, "VOLUME")
        assert COMPOSE["services"][name]["tmpfs"] == ["/tmp"]  # noqa: S108

    def test_serves_with_a_token(self, name):
        service = COMPOSE["services"][name]
        command = service["command"]
        check_options(command)
        assert command[command.index("--token-file") + 1] == f"/run/secrets/{service['secrets'][0]}"
        assert set(service["secrets"]) == set(COMPOSE["secrets"])
        assert not is_sent(default(COMPOSE["secrets"]["token"]["file"]).removeprefix("./"))
        assert service["ports"][0].rpartition(":")[2] == last(name, "EXPOSE")

    def test_is_built_from_the_dockerfile_and_checked_as_it_says(self, name):
        service = COMPOSE["services"][name]
        assert default(service["build"]["target"]) in TARGETS
        options, _, command = last(name, "HEALTHCHECK").partition(" CMD ")
        assert service["healthcheck"]["test"] == ["CMD", *json.loads(command)]
        told = {f"--{key.replace('_', '-')}={value}" for key, value in service["healthcheck"].items() if key != "test"}
        assert told == set(options.split())

    def test_has_time_to_finish(self, name):
        limits = pytest.importorskip("diffseg.serving.http.limits", reason="needs the extra 'serve'").Limits()
        grace = int(COMPOSE["services"][name]["stop_grace_period"].removesuffix("s"))
        assert grace > limits.deadline + limits.body_seconds


# --- the pages


def check_options(words):
    """Check the words after `diffseg` against the options of the command line."""
    command = get_command(command_line)
    options = {"--help", *(option for parameter in command.params for option in parameter.opts)}
    for number, word in enumerate(words):
        if word in getattr(command, "commands", {}) and number == 0:
            options |= {option for parameter in command.commands[word].params for option in parameter.opts}
        elif word.startswith("-"):
            assert word in options, f"{word!r} of {shlex.join(words)}"


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)


LINES = [
    (page, line.partition(" #")[0].strip())
    for page in PAGES
    for block in blocks(page, "sh")
    for line in block.replace("\\\n", " ").splitlines()
    if line.partition("#")[0].strip()
]


@pytest.mark.parametrize(("page", "line"), [(page, line) for page, line in LINES if "diffseg" in line])
def test_commands_of_the_pages_are_understood(page, line):
    words = shlex.split(line)
    for place, word in enumerate(words[:-1]):
        if word == "diffseg" or (re.fullmatch(r"diffseg:\w+", word) and "--tag" not in words):
            check_options(words[place + 1 :])
    for target in re.findall(r"--target (\w+)|diffseg:(\w+)", line):
        assert "".join(target) in TARGETS
    for script in re.findall(r"(?<!\S)scripts/\w+", line):
        assert (ROOT / script).exists()


@pytest.mark.parametrize("page", PAGES)
def test_links_of_the_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", PAGES[page]):
        assert (ROOT / page).parent.joinpath(target).exists(), target


def test_the_deployment_fits_the_image():
    (text,) = blocks("docs/containers.md", "yaml")
    (pod,) = (item["spec"]["template"]["spec"] for item in yaml.safe_load_all(text) if item["kind"] == "Deployment")
    (container,) = pod["containers"]
    check_options(container["args"])
    user, group = map(int, last("cpu", "USER").split(":"))
    security = pod["securityContext"]
    assert (security["runAsUser"], security["runAsGroup"], security["fsGroup"]) == (user, group, group)
    assert security["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert set(mounts) == {"/bundle", "/cache", "/tmp", "/run/secrets"}  # noqa: S108
    assert mounts["/bundle"]["readOnly"]
    assert {mount["name"] for mount in mounts.values()} == {volume["name"] for volume in pod["volumes"]}
    port = int(last("cpu", "EXPOSE"))
    assert container["ports"] == [{"name": "http", "containerPort": port}]
    ready = re.findall(r"'(/v2[^']*)'", last("cpu", "HEALTHCHECK"))
    assert [container["readinessProbe"]["httpGet"]["path"]] == ready
    router = pytest.importorskip("diffseg.serving.http.inference", reason="needs the extra 'serve'").router
    paths = {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert paths <= {route.path for route in router.routes}


def test_the_record_is_of_a_small_image():
    record = json.loads((ROOT / "scripts" / "results" / "container.json").read_text())["cpu"]
    assert record["megabytes_above_base"] < 250
    assert record["megabytes_above_base"] == pytest.approx(
        sum(layer["bytes"] for layer in record["layers"]) / 1e6, abs=0.1
    )
    for page in ("README.md", "docs/containers.md"):
        assert f"{record['megabytes_above_base']:.0f} MB" in PAGES[page]


def test_python_of_the_base_is_one_that_the_project_takes():
    (python,) = re.findall(r"^ARG BASE=python:([\d.]+)-slim", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert SpecifierSet(PROJECT["project"]["requires-python"]).contains(f"{python}.0")


def test_the_base_is_pinned_by_a_digest_as_the_script_reads_it():
    (base,) = re.findall(r"^ARG BASE=(.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert re.fullmatch(r"python:[\w.-]+@sha256:[0-9a-f]{64}", base)
    assert {parent for parent, _ in STAGES.values()} <= {"${BASE}", *STAGES}, "an image that is not pinned"
    for word in ("docs/containers.md", "SECURITY.md"):
        assert "python scripts/release/pin_base.py" in (ROOT / word).read_text()
