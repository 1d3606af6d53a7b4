"""FORMAT.md, "Scalars" and the shape of JSON objects: each check returns what it was given, parsed."""

import datetime
import json
import re


class Refused(Exception):
    """What FORMAT.md does not allow."""


def refuse_unless(condition, message):
    if not condition:
        raise Refused(message)



def lsn(value):
    match = isinstance(value, str) and re.fullmatch(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})", value)
    refuse_unless(match, f"no LSN: {value!r}")
    return int(match[1], 16) << 32 | int(match[2], 16)


def lsn_text(value):
    return f"{value >> 32:X}/{value & 0xFFFFFFFF:X}"


TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)")


def time(value):
    """Microseconds since 2000-01-01 UTC."""
    match = isinstance(value, str) and TIME.fullmatch(value)
    refuse_unless(match, f"no time: {value!r}")
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    try:
        whole = datetime.datetime(year, month, day, hour, minute, second)
    except ValueError:
        raise Refused(f"no time: {value!r}") from None
    offset = 0
    if match[8] != "Z":
        offset = int(match[8][1:3]) * 3600 + int(match[8][4:6]) * 60
        offset = -offset if match[8][0] == "-" else offset
    delta = whole - datetime.datetime(2000, 1, 1)
    micros = int((match[7] or "0")[:6].ljust(6, "0"))
    return (delta.days * 86400 + delta.seconds - offset) * 1_000_000 + micros


def time_text(micros):
    moment = datetime.datetime(2000, 1, 1) + datetime.timedelta(microseconds=micros)
    return f"{moment.year:04}-" + moment.strftime("%m-%dT%H:%M:%S.") + f"{moment.microsecond:06}Z"


def string(value):
    refuse_unless(isinstance(value, str), "no string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Refused("half a surrogate pair") from None
    return value


def boolean(value):
    refuse_unless(isinstance(value, bool), "no boolean")
    return value


def integer(low, high):
    def check(value):
        plain = isinstance(value, int) and not isinstance(value, bool)
        refuse_unless(plain and low <= value <= high, f"no number of {low} to {high}")
        return value

    return check


U32, U64 = integer(0, 2**32 - 1), integer(0, 2**64 - 1)
I32, I64 = integer(-(2**31), 2**31 - 1), integer(-(2**63), 2**63 - 1)


def pattern(text, what):
    def check(value):
        refuse_unless(isinstance(value, str) and re.fullmatch(text, value), f"no {what}: {value!r}")
        return value

    return check


KEY_ID = SOURCE_ID = pattern("[0-9a-f]{16}", "source id")
LINEAGE_ID = pattern("[0-9a-f]{8}-[0-9a-f]{8}", "lineage id")
BASE_ID = pattern("[0-9a-f]{16}-[0-9a-f]{8}", "base id")
DIGEST = pattern("[0-9a-f]{64}", "digest")


def one_of(*values):
    def check(value):
        refuse_unless(value in values and isinstance(value, str), f"unknown value {value!r}")
        return value

    return check


def array(item, least=0):
    def check(value):
        refuse_unless(isinstance(value, list) and len(value) >= least, "no array, or too short")
        return [item(one) for one in value]

    return check


def tuple_of(*items):
    def check(value):
        refuse_unless(isinstance(value, list) and len(value) == len(items), "not that many items")
        return tuple(item(one) for item, one in zip(items, value))

    return check


def version(value):
    refuse_unless(U32(value) == 1, f"version {value} is not known")
    return value


def optional(check):
    check_it = lambda value: check(value)  # noqa: E731
    check_it.optional = True
    return check_it


def nullable(check):
    return lambda value: None if value is None else check(value)


def record(**fields):
    """An object with these fields, no other, none missing."""

    def check(value):
        refuse_unless(isinstance(value, dict), "no object")
        refuse_unless(not value.keys() - fields.keys(), f"unknown field in {sorted(value)}")
        out = {}
        for name, field in fields.items():
            if name in value:
                out[name] = field(value[name])
            else:
                refuse_unless(getattr(field, "optional", False), f"field {name} is missing")
        return out

    return check


def unique(pairs):
    out = dict(pairs)
    refuse_unless(len(out) == len(pairs), "a field comes twice")
    return out


def no_constant(name):
    raise Refused(f"{name} is no JSON")


def parse_json(data):
    try:
        text = data.decode()
        return json.loads(text, object_pairs_hook=unique, parse_constant=no_constant)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise Refused(f"no JSON: {type(error).__name__}") from None
