"""Signatures of real modules, and doubles that are held to them."""

import functools
import importlib
import inspect
import re


class MisuseError(AssertionError):
    """A call that the real library refuses, or whose effect it leaves undefined."""


def signatures(real, name):
    """Signatures of a callable, one per overload: from `inspect`, else from the docstring that its binding generated.

    Cython writes `name(int device, stream=None)`, pybind11 `name(self: module.Class, name: str) -> bool`.
    """
    try:
        signature = inspect.signature(real)
        plain = [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]
        return [signature.replace(parameters=plain)]
    except (ValueError, TypeError):
        pass
    pattern = re.compile(rf"^(?:\d+\. )?(?:\w+\.)*{re.escape(name)}\((.*?)\)(?: -> .*)?$", re.MULTILINE)
    found = [match[1] for match in pattern.finditer(real.__doc__ or "")]
    overloads = [text for text in found if text != "*args, **kwargs"]
    if not overloads:
        raise MisuseError(f"{name} has no signature to compare calls with")
    return [_parse(text) for text in overloads]


def _parse(text):
    kind, parameters = inspect.Parameter.POSITIONAL_OR_KEYWORD, []
    for item in _split(text):
        if item == "*":
            kind = inspect.Parameter.KEYWORD_ONLY
            continue
        match = re.fullmatch(r"(?:[\w.]+ )*?(\w+)(?:: (.+?))?(?: ?= ?(.+))?", item)
        default = inspect.Parameter.empty if match[3] is None else match[3]
        annotation = inspect.Parameter.empty if match[2] is None else match[2]
        parameters.append(inspect.Parameter(match[1], kind, default=default, annotation=annotation))
    return inspect.Signature(parameters)


def _split(text):
    """Split at commas outside of brackets."""
    depth, start = 0, 0
    for i, character in enumerate(text):
        depth += (character in "[(<") - (character in "])>")
        if character == "," and depth == 0:
            yield text[start:i].strip()
            start = i + 1
    if text[start:].strip():
        yield text[start:].strip()


def check_call(real, name, arguments, keywords):
    """Raise `MisuseError` unless one of the signatures takes the arguments."""
    problems = []
    for signature in signatures(real, name):
        try:
            bound = signature.bind(*arguments, **keywords)
        except TypeError as error:
            problems.append(str(error))
            continue
        wrong = [
            f"{key}: {signature.parameters[key].annotation}, found {type(value).__name__}"
            for key, value in bound.arguments.items()
            if key != "self" and not _fits(value, signature.parameters[key].annotation)
        ]
        if not wrong:
            return
        problems += wrong
    raise MisuseError(f"{name}: {'; or '.join(problems)}")


def _fits(value, annotation):  # noqa: PLR0911 - one per kind of annotation
    if not isinstance(annotation, str):
        return True
    plain = {"str": str, "tuple": tuple, "list": list, "bool": bool}
    if annotation in plain:
        return isinstance(value, plain[annotation])
    if annotation == "typing.SupportsInt":
        return hasattr(value, "__int__")
    if annotation == "typing_extensions.Buffer":
        try:
            memoryview(value)
        except TypeError:
            return False
        return True
    if "." in annotation or "::" in annotation:  # a class of the module's own
        wanted = re.split(r"\.|::", annotation)[-1]
        real = getattr(type(value), "mirrored", type(value))
        return value is None or wanted in {base.__name__ for base in real.__mro__}
    return True


def mirrors(real):
    """Decorate a double of the class `real`: it has no other public names, and its methods take the same arguments.

    Those of the constructor are compared if the class says `_constructed = True`: users of the library call it.
    """

    def decorate(double):
        for name, member in list(vars(double).items()):
            if name.startswith("_") and name != "__init__":
                continue
            original = inspect.getattr_static(real, name, None)
            if original is None and isinstance(member, property) and re.search(rf"\b{name} \(", real.__doc__ or ""):
                continue  # an attribute of instances, which the docstring lists
            if original is None:
                raise MisuseError(f"{real.__name__} has no {name}")
            if name != "__init__" and isinstance(member, property) == callable(original):
                raise MisuseError(f"{real.__name__}.{name} is a {type(original).__name__}")
            if callable(member) and (name != "__init__" or getattr(double, "_constructed", False)):
                setattr(double, name, _checked(getattr(real, name), name, member))
        double.mirrored = real
        double.__setattr__ = _setter(real)
        double.__getattr__ = _missing(real)
        return double

    return decorate


def _checked(original, name, member):
    @functools.wraps(member)
    def method(self, *arguments, **keywords):
        check_call(original, name, (self, *arguments), keywords)
        return member(self, *arguments, **keywords)

    return method


def _setter(real):
    def set_attribute(self, name, value):
        original = inspect.getattr_static(real, name, None)
        if not name.startswith("_"):
            if original is None:
                raise MisuseError(f"{real.__name__} has no attribute {name}")
            setter = getattr(original, "fset", None)
            if setter is not None and setter.__doc__:
                annotation = list(signatures(_Documented(setter.__doc__), "")[0].parameters.values())[1].annotation
                if not _fits(value, annotation):
                    raise MisuseError(f"{real.__name__}.{name}: {annotation}, found {type(value).__name__}")
        object.__setattr__(self, name, value)

    return set_attribute


class _Documented:
    def __init__(self, text):
        self.__doc__ = text.strip()


def _missing(real):
    def get_attribute(_, name):
        if hasattr(real, name):
            raise NotImplementedError(f"the double of {real.__name__} has no {name}, the real class has: add it")
        raise AttributeError(f"{real.__name__} has no {name}")

    return get_attribute


def function_like(real, name=None):
    """Decorate a function that stands for the function `real`: it takes the same arguments."""

    def decorate(double):
        @functools.wraps(double)
        def function(*arguments, **keywords):
            check_call(real, name or double.__name__, arguments, keywords)
            return double(*arguments, **keywords)

        return function

    return decorate


def real_module(name):
    """Import a module; behind its double, if that was put in its place already."""
    module = importlib.import_module(name)
    return module._real if isinstance(module, ModuleDouble) else module


class ModuleDouble:
    """The part of a real module that has doubles. Enumerations and error types are the real ones."""

    def __init__(self, real, **members):
        self._real, self._missing = real, set()
        for name, member in members.items():
            if not hasattr(real, name):
                raise MisuseError(f"{real.__name__} has no {name}")
            setattr(self, name, member)

    def __getattr__(self, name):
        if name in self._missing:
            raise AttributeError(name)
        member = getattr(self._real, name)
        if name.startswith("__") or isinstance(member, str):
            return member
        if isinstance(member, type) and (
            issubclass(member, Exception) or hasattr(member, "__members__") or name.startswith("I")
        ):
            return member
        raise NotImplementedError(f"the double of {self._real.__name__} has no {name}: add it")
