"""A bundle: a folder of ONNX graphs and their manifest, checked before anything in it runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from diffseg.engines.bundle.external_data import external_data
from diffseg.engines.bundle.hub import blobs_folder, is_hub_id, snapshot
from diffseg.engines.bundle.manifest import ATTENTION, MANIFEST, UNET, File, Form, Graph, Manifest, read_manifest
from diffseg.engines.bundle.methods import for_method, has_both
from diffseg.engines.bundle.settings import Method
from diffseg.engines.errors import BundleError, BundleNotFoundError
from diffseg.engines.files import atomic_folder, expand_user
from diffseg.engines.text import quoted
from msgspec.structs import replace

MODELS = Path(__file__).parents[1] / "models"
PLANS = "plans"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle folder and its manifest."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path) -> Bundle:
        """Read a bundle and check the names and sizes of its files, but not their contents.

        Raises:
            BundleError: a file is missing or has another size; `verify` also compares contents.
        """
        manifest = read_manifest(folder)
        for name, file in manifest.files.items():
            path = folder / name
            try:
                found = path.stat().st_size if path.is_file() else None
            except OSError as error:
                raise BundleError(f"{folder}: {name} cannot be read ({error.strerror}); use another bundle") from None
            if found is None:
                raise BundleError(f"{folder}: {name} is missing; copy or export the bundle again")
            if found != file.bytes:
                raise BundleError(
                    f"{folder}: {name} has {found} bytes, expected {file.bytes}; copy or export the bundle again"
                )
        return cls(folder, manifest)

    @property
    def embedded(self) -> bool:
        """Whether the bundle ships with the package, so that commands accept its name instead of its folder."""
        return MODELS in self.folder.parents

    def for_method(self, method: Method | None = None) -> Bundle:
        """Return the bundle as if it had been exported for one kind of methods; see `methods.for_method`.

        Raises:
            ValueError: the bundle has no output for the method.
        """
        return Bundle(self.folder, for_method(self.manifest, method))

    @property
    def views(self) -> tuple[Bundle, ...]:
        """The bundle for each kind of methods that it has: one or two."""
        if not has_both(self.manifest):
            return (self,)
        return tuple(self.for_method(method) for method in self.manifest.methods)

    def contained(self, path: Path) -> Path:
        """Return the real path of a file or folder of the bundle, with its links followed.

        Raises:
            BundleError: it is a link that leaves the bundle. Only a hub's cache may have its contents elsewhere.
        """
        folder = self.folder.resolve()
        real = path.resolve()
        blobs = blobs_folder(folder)
        if folder not in real.parents and (blobs is None or blobs not in real.parents):
            raise BundleError(f"{path} is a link that leaves the bundle, to {real}; do not use this bundle")
        return real

    def has_form(self, graph: str, form: str) -> bool:
        """Whether the bundle has a form of a graph; bundles of schema 1 have only `attention`."""
        return form == ATTENTION or form in self.manifest.graphs[graph].forms

    def graph(self, graph: str, form: str | None = None) -> Graph:
        """Return the declaration of a graph, or of another form of it.

        Raises:
            BundleError: the bundle lacks that form.
        """
        declared = self.manifest.graphs[graph]
        if form is None or form == ATTENTION:
            return declared
        if form not in declared.forms:
            raise BundleError(f"{self.folder}: {graph} has no form {quoted(form)}; export the bundle again")
        return declared.forms[form]

    def graph_path(self, graph: str, form: str | None = None) -> Path:
        """Path of the ONNX file of a graph, or of another form of it."""
        return self.folder / self.graph(graph, form).file

    def graphs(self, form: Form = ATTENTION) -> dict[str, Graph]:
        """Return the graphs by name, with the UNet in one of its forms.

        Raises:
            BundleError: the bundle lacks that form.
        """
        return {name: self.graph(name, form if name == UNET else None) for name in self.manifest.graphs}

    def contents(self, form: Form = ATTENTION) -> dict[str, str]:
        """Return the `content_hash` of each of `graphs`.

        Raises:
            BundleError: the bundle lacks that form.
        """
        return {name: content_hash(graph, self.manifest.files) for name, graph in self.graphs(form).items()}

    def cpu_path(self, graph: str) -> Path:
        """Path of the ONNX file that a CPU runs for a graph."""
        return self.folder / (self.manifest.graphs[graph].cpu_file or self.manifest.graphs[graph].file)

    def content_hash(self, graph: str, form: str | None = None) -> str:
        """SHA-256 over a graph, or a form of it, and its external data, independent of the files' order."""
        return content_hash(self.graph(graph, form), self.manifest.files)

    def verify(self) -> Iterator[tuple[str, str | None]]:
        """Compare every file with its hash, and the external data that each graph names with the manifest.

        Yields:
            `(name, problem)` for each file of the folder except the plans; problem is None if the file is unchanged.
        """
        allowed = self._declared_data()
        for name, file in self.manifest.files.items():
            problem = file.problem(self.folder / name)
            if problem is None and name in allowed:
                unlisted = sorted(external_data(self.folder / name, name) - allowed[name])
                if unlisted:
                    problem = f"takes weights from {quoted(unlisted[0])}, which the manifest does not list"
            yield name, problem
        for name in _listing(self.folder):
            if name not in self.manifest.files and name != MANIFEST:
                yield name, "not in the manifest"

    def _declared_data(self) -> dict[str, set[str]]:
        """Return the files of external data that each file of a graph may name."""
        declared: dict[str, set[str]] = {}
        for graph in self.manifest.graphs.values():
            for form in (graph, *graph.forms.values()):
                for file in (form.file, form.cpu_file):
                    if file is not None:
                        declared[file] = declared.get(file, set()) | set(form.external_data)
        return declared


def open_bundle(model: str | Path, method: Method | None = None) -> Bundle:
    """Open an embedded bundle by name, a bundle folder, or a bundle on the hub (`owner/name`, extra `hub`).

    Args:
        model: the bundle.
        method: the method to use by default; None: the bundle's. It chooses one of the networks of a bundle for both
            kinds of methods.

    Raises:
        BundleNotFoundError: `model` is none of the three.
        BundleError: the bundle is damaged.
        ValueError: the bundle has no output for the method.
    """
    return Bundle.open(find_bundle(model)).for_method(method)


def find_bundle(model: str | Path) -> Path:
    """Return the folder of an embedded bundle, a bundle folder or a bundle on the hub, without checking its files.

    Raises:
        BundleNotFoundError: `model` is none of the three.
    """
    name = str(model)
    if name in embedded_models():
        return MODELS / name
    folder = expand_user(model)
    try:
        complete, exists = (folder / MANIFEST).is_file(), folder.exists()
    except OSError as error:
        raise BundleNotFoundError(f"cannot open bundle {name!r}: {error.strerror}") from None
    if complete:
        return folder
    if exists:
        raise BundleNotFoundError(
            f"{folder} is not a bundle: it has no {MANIFEST}; `diffseg export` makes a bundle from a checkpoint"
        )
    if is_hub_id(name):
        return _download(name)
    raise BundleNotFoundError(
        f"no bundle {name!r}: not a folder, not an embedded model ({', '.join(embedded_models())}), "
        "not a hub id (owner/name)"
    )


def _download(name: str) -> Path:
    """Fetch the manifest first, because a repository that is not a bundle may contain large files."""
    folder = snapshot(name, [MANIFEST], required=[MANIFEST]).folder
    files = sorted(read_manifest(folder).files)
    return snapshot(name, [MANIFEST, *files], required=files).folder


def embedded_models() -> list[str]:
    """Names of the bundles that ship with the package."""
    return sorted(path.parent.name for path in MODELS.glob(f"*/{MANIFEST}"))


def content_hash(graph: Graph, files: dict[str, File]) -> str:
    """SHA-256 over the names and contents of a graph and its external data."""
    digest = hashlib.sha256()
    for name in sorted(graph.files):
        digest.update(f"{name}\0{files[name].sha256}\n".encode())
    return digest.hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Record size and hash of every file of `folder` in the manifest and write it. The last step of making a bundle."""
    files = {name: File.of(folder / name) for name in _listing(folder) if name != MANIFEST}
    sealed = replace(manifest, files=files)
    (folder / MANIFEST).write_text(sealed.to_json(), encoding="utf-8")
    return read_manifest(folder)


def new_bundle(target: Path, *, overwrite: bool = False) -> AbstractContextManager[Path]:
    """Yield a temporary folder that becomes the bundle `target` if the block succeeds.

    Raises:
        BundleError: `target` exists and `overwrite` is not set, it is not a bundle, or it can't be written.
    """
    return atomic_folder(target, kind="bundle", marker=MANIFEST, overwrite=overwrite)


def _listing(folder: Path) -> list[str]:
    """Names of the bundle's own files: without plans, and without hidden files that other tools create."""
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return sorted(
        p.as_posix() for p in paths if p.parts[0] != PLANS and not any(part.startswith(".") for part in p.parts)
    )
