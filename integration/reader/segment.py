"""FORMAT.md, "Segment": lines in, records out, everything checked against the footer."""

import base64
import binascii
import hashlib
import json
import re

from forms import *

LINE_BYTES_MAX = 6509559808
UNCHANGED = False


def text_or_bytes(value):
    if isinstance(value, dict):
        refuse_unless(value.keys() == {"b64"}, "an object that is no b64")
        try:
            return base64.b64decode(string(value["b64"]), validate=True)
        except (binascii.Error, ValueError):
            raise Refused("no base64") from None
    return string(value)


def cell(value):
    return value if value is None or value is UNCHANGED else text_or_bytes(value)


def sent_cell(value):
    refuse_unless(value is not UNCHANGED, "false outside the new row of an update")
    return cell(value)


def segment_version(value):
    refuse_unless(U32(value) in (1, 2, 3), f"version {value} of a segment is not known")
    return value


NEW, SENT = array(cell), array(sent_cell)
COLUMN = record(name=string, type=string, oid=U32, mod=I32, key=boolean)
RECORDS = {
    "H": dict(
        v=segment_version,
        source=SOURCE_ID,
        lineage=LINEAGE_ID,
        start=lsn,
        server=U32,
        encoding=optional(string),
    ),
    "R": dict(
        rel=U32,
        schema=string,
        table=string,
        identity=one_of("default", "nothing", "full", "index"),
        columns=array(COLUMN),
    ),
    "B": dict(xid=U32, lsn=lsn, time=time, until=optional(time)),
    "I": dict(rel=U32, new=SENT),
    "U": dict(rel=U32, key=optional(SENT), old=optional(SENT), new=NEW),
    "D": dict(rel=U32, key=optional(SENT), old=optional(SENT)),
    "T": dict(rels=array(U32, 1), cascade=boolean, restart_identity=boolean),
    "M": dict(transactional=boolean, lsn=lsn, prefix=text_or_bytes, content=text_or_bytes),
    "S": dict(lsn=lsn, sequences=array(tuple_of(string, string, string, boolean))),
    "C": dict(lsn=lsn, end=lsn),
    "F": dict(
        end=lsn,
        transactions=U64,
        commit_times=nullable(record(min=time, max=time)),
        observed_through=nullable(time),
        rows=lambda value: value,
        bytes=U64,
        sha256=DIGEST,
    ),
}
PARSERS = {letter: record(t=string, **fields) for letter, fields in RECORDS.items()}


def lines(chunks):
    """Lines with their ends; a last one without is refused."""
    rest = bytearray()
    for chunk in chunks:
        rest += chunk
        while (end := rest.find(b"\n")) >= 0:
            yield bytes(rest[: end + 1])
            del rest[: end + 1]
        refuse_unless(len(rest) < LINE_BYTES_MAX, "a line is too long")
    refuse_unless(not rest, "the last line has no end")


class Segment:
    """Reads one segment; `read` yields its lines and returns only if everything agrees."""

    def __init__(self):
        self.header = self.footer = self.open = self.floor = None
        self.transactions = self.bytes = 0
        self.sha256 = hashlib.sha256()
        self.times = []
        self.relations, self.counts = {}, {}

    def read(self, chunks):
        for line in lines(chunks):
            refuse_unless(self.footer is None, "something follows the footer")
            match = re.match(rb'\{"t":"(.)"', line)
            refuse_unless(match and match[1].decode("latin-1") in PARSERS, "an unknown record")
            letter = match[1].decode()
            value = parse_json(line)
            if letter == "H":
                segment_version(value.get("v"))
            fields = PARSERS[letter](value)
            refuse_unless((letter == "H") == (self.header is None), "H is not the first line")
            getattr(self, f"take_{letter}")(fields)
            if letter == "F":
                refuse_unless(line == self.canonical_footer(fields), "the footer does not agree")
                self.footer = fields
            self.sha256.update(line)
            self.bytes += len(line)
            yield line, fields
        refuse_unless(self.footer is not None, "there is no footer")

    def inside(self):
        refuse_unless(self.open is not None, "a change outside a transaction")

    def outside(self):
        refuse_unless(self.open is None, "inside a transaction")

    def count(self, rel, place):
        refuse_unless(rel in self.relations, f"relation {rel} is not described")
        self.counts[rel][place] += 1

    def rows(self, fields, place, *names):
        self.inside()
        self.count(fields["rel"], place)
        columns = self.relations[fields["rel"]]["columns"]
        for name in names:
            if name in fields:
                refuse_unless(len(fields[name]) == len(columns), "a row of another length")

    def take_H(self, fields):
        named = "encoding" in fields
        refuse_unless(named == (fields["v"] > 1), "version 1 names no encoding, later ones do")
        self.header, self.floor = fields, fields["start"]

    def take_R(self, fields):
        self.relations[fields["rel"]] = fields
        self.counts.setdefault(fields["rel"], [0, 0, 0, 0])

    def take_B(self, fields):
        self.outside()
        refuse_unless(fields["lsn"] >= self.floor, "commit LSNs go backwards")
        if "until" in fields:
            refuse_unless(self.header["v"] > 2, "only version 3 says until when")
            refuse_unless(fields["until"] >= fields["time"], "committed until a moment before")
        self.open = fields

    def take_I(self, fields):
        self.rows(fields, 0, "new")

    def take_U(self, fields):
        refuse_unless(not ("key" in fields and "old" in fields), "both key and old")
        self.rows(fields, 1, "key", "old", "new")

    def take_D(self, fields):
        refuse_unless(("key" in fields) != ("old" in fields), "not exactly one of key and old")
        self.rows(fields, 2, "key", "old")

    def take_T(self, fields):
        self.inside()
        for rel in fields["rels"]:
            self.count(rel, 3)

    def take_M(self, fields):
        self.inside() if fields["transactional"] else self.outside()

    def take_S(self, fields):
        self.outside()

    def take_C(self, fields):
        self.inside()
        refuse_unless(fields["lsn"] == self.open["lsn"], "a commit that is not its begin's")
        refuse_unless(fields["end"] > fields["lsn"], "a transaction ends before its commit")
        self.times.append(self.open["time"])
        self.transactions += 1
        self.open, self.floor = None, fields["end"]

    def take_F(self, fields):
        self.outside()
        refuse_unless(fields["end"] >= self.floor, "the segment ends before its last transaction")

    def canonical_footer(self, fields):
        times = self.times and {"min": time_text(min(self.times)), "max": time_text(max(self.times))}
        observed = fields["observed_through"]
        footer = {
            "t": "F",
            "end": lsn_text(fields["end"]),
            "transactions": self.transactions,
            "commit_times": times or None,
            "observed_through": None if observed is None else time_text(observed),
            "rows": {str(rel): self.counts[rel] for rel in sorted(self.counts)},
            "bytes": self.bytes,
            "sha256": self.sha256.hexdigest(),
        }
        return json.dumps(footer, separators=(",", ":")).encode() + b"\n"
