"""FORMAT.md, the JSON files: one check for each."""

from forms import *

NAME = pattern("[A-Za-z0-9._-]{1,64}", "name of a point")
SAMPLE = pattern("-?[0-9]+", "decimal number")

REPOSITORY = record(v=version, id=SOURCE_ID, created=time, encryption=one_of("aes-256-gcm", "none"))

SOURCE = record(
    v=version, id=SOURCE_ID, name=string, database=string, system_id=U64, created=time
)

LINEAGE = record(
    v=version,
    id=LINEAGE_ID,
    system_id=U64,
    timeline=U32,
    slot=string,
    publication=string,
    publication_oid=U32,
    server_version=U32,
    server_encoding=string,
    database=string,
    start=lsn,
    created=time,
    writer=optional(U32),
)

END = record(
    v=version,
    end=lsn,
    reason=one_of(
        "slot_missing",
        "slot_lost",
        "slot_ahead",
        "publication_changed",
        "system_changed",
        "timeline_changed",
        "server_behind",
        "forked",
        "budget_exceeded",
        "stopped",
    ),
    detail=string,
    time=time,
)

POINT = record(v=version, name=NAME, lsn=lsn, time=time)

SHAPE = record(v=version, **{"from": lsn}, to=lsn, fingerprint=string, detail=string, time=time)

ARCHIVE = record(
    name=pattern("main|globals|table-(?:0|[1-9][0-9]*)", "archive name"),
    table=optional(tuple_of(string, string)),
    bytes=U64,
    stored_bytes=U64,
    sha256=DIGEST,
)

TABLE = record(
    oid=U32,
    schema=string,
    name=string,
    kind=one_of("r", "p", "f", "m"),
    protection=one_of(
        "full", "no_identity", "excluded", "unlogged", "not_owned", "foreign", "derived"
    ),
    identity_index=optional(string),
    rows_estimate=optional(U64),
    bytes=U64,
)

SEQUENCE = record(
    schema=string,
    name=string,
    last_value=optional(SAMPLE),
    is_called=boolean,
    increment=I64,
    owner=optional(tuple_of(string, string, string)),
)

LOCALE = record(
    provider=one_of("c", "i", "b"),
    collate=string,
    ctype=string,
    name=optional(string),
    icu_rules=optional(string),
)

BASE = record(
    v=version,
    id=BASE_ID,
    consistent_point=lsn,
    fingerprint=string,
    snapshot_time=time,
    started=time,
    finished=time,
    server_version=U32,
    pg_dump_version=string,
    database=string,
    encoding=string,
    archives=array(ARCHIVE),
    tables=array(TABLE),
    sequences=array(SEQUENCE),
    large_objects=U64,
    locale=optional(LOCALE),
)
