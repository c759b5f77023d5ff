"""The fields of the schema as text: for error messages, `nvae config` and docs/config.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from pydantic.fields import FieldInfo

from nvae.schema import AUTO, AUTO_KEYS, Section


class Located(NamedTuple):
    """A place in a config: the names of the section and of the key, and the schema's field at this place.

    allowed: the allowed values as a noun phrase, '' for an unknown key. words: those that are listed texts.
    """

    parent: str
    name: str
    section: type[Section]
    allowed: str
    words: list[str]

    @property
    def key(self) -> str:
        """The dotted key."""
        return join(self.parent, self.name)


def locate(model: type[Section], loc: Sequence[str | int]) -> Located:
    """Follow the location that pydantic gives for a problem in a config of class `model`."""
    keys: list[str] = []
    section: type[Section] = model
    annotation: Any = model
    for part in loc:
        annotation = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
        options = sections_of(annotation)
        if len(options) > 1:  # pydantic names the chosen member of a union, which is no key
            annotation = section = next(o for o in options if part in get_args(o.model_fields["name"].annotation))
            continue
        keys.append(str(part))
        if options:
            section = options[0]
            field = section.model_fields.get(part) if isinstance(part, str) else None
            annotation = Any if field is None else annotation_of(field)
        elif get_origin(annotation) is tuple and isinstance(part, int):
            annotation = get_args(annotation)[part]
        else:
            annotation = Any
    parent, name = ".".join(keys[:-1]), keys[-1] if keys else ""
    return Located(parent, name, section, allowed_for(join(parent, name), annotation), words_of(annotation))


def join(section: str, key: str | None) -> str:
    """Return a dotted key; either part may be missing."""
    return ".".join(part for part in (section, key) if part)


def annotation_of(field: FieldInfo) -> Any:
    """Return the field's type together with its bounds, which pydantic stores separately."""
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


def sections_of(annotation: Any) -> list[type[Section]]:
    """Return the section classes that an annotation allows: none, one, or the members of a union."""
    if get_origin(annotation) is Annotated:
        return sections_of(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [section for part in get_args(annotation) for section in sections_of(part)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, Section) else []


def words_of(annotation: Any) -> list[str]:
    """Return the texts that an annotation lists as allowed."""
    if get_origin(annotation) is Literal:
        return [word for word in get_args(annotation) if isinstance(word, str)]
    return [word for part in get_args(annotation) for word in words_of(part)]


def choices(values: Iterable[Any]) -> str:
    """Return values as a list in words: 'a', 'b' or 'c'."""
    *rest, last = [repr(value) for value in values]
    return f"{', '.join(rest)} or {last}" if rest else last


def allowed_for(key: str, annotation: Any) -> str:
    """Return the allowed values of a key with this type, `auto` included."""
    allowed = allowed_values(annotation)
    return f"{allowed}, or {AUTO}" if key in AUTO_KEYS else allowed


def allowed_values(annotation: Any) -> str:
    """Return the allowed values of a type, such as 'a whole number from 1 to 8'; '' for an unknown type."""
    bounds: list[Any] = []
    if get_origin(annotation) is Annotated:
        annotation, *metadata = get_args(annotation)
        bounds = [b for m in metadata for b in (m.metadata if isinstance(m, FieldInfo) else [m])]
    origin, parts = get_origin(annotation), get_args(annotation)
    if sections := sections_of(annotation):
        return sections[0].ALLOWED
    if origin is Literal:
        return choices(parts)
    if origin in (Union, UnionType):
        phrases = [allowed_values(part) for part in parts if part is not NoneType]
        return ", or ".join([*phrases, "null"] if NoneType in parts else phrases)
    if origin is tuple:
        if parts[-1] is Ellipsis:  # of any length
            return f"a list, each {allowed_values(parts[0])}"
        return f"a list: {', '.join(map(allowed_values, parts))}"
    names = {bool: "True or False", str: "a text", int: "a whole number", float: "a number"}
    return " ".join([names.get(annotation, ""), _range(bounds)]).strip()


def _range(bounds: Iterable[Any]) -> str:
    low = high = multiple = ""
    for bound in bounds:
        match bound:
            case Ge(ge=value):
                low = f"from {_number(value)}"
            case Gt(gt=value):
                low = f"above {_number(value)}"
            case Le(le=value):
                high = f"to {_number(value)}"
            case Lt(lt=value):
                high = f"to below {_number(value)}"
            case MultipleOf(multiple_of=value):
                multiple = f", a multiple of {_number(value)}"
    return f"{low} {high}{multiple}".strip()


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"
