#!/usr/bin/env python3
"""Reads a lastgood repository with nothing but FORMAT.md: a proof that the page is enough.

Written from FORMAT.md alone; where the two disagree, the page is what has to be mended. It
opens every object, checks digests, counts, order, names and chains, prints the records of all
segments, and exits 1 at the first thing that FORMAT.md does not allow.

    pip install cryptography zstandard
    read_segment.py REPOSITORY [--key-file FILE] [--source ID] [--quiet]
    read_segment.py --examples FORMAT.md         the examples of the page itself

REPOSITORY is a local folder, or a synchronised copy of a bucket.
"""

import argparse
import hashlib
import io
import os
import re
import sys

import manifest
from envelope import MasterKey, content
from forms import *
from segment import Segment

SEGMENT = re.compile(
    r"(segments|merged)/([0-9a-f]{16})-([0-9a-f]{16})-([0-9a-f]{16})-([0-9a-f]{16})\.ndjson"
)
SHAPE = re.compile(r"shapes/([0-9a-f]{16})-([0-9a-f]{16})\.json")
POINT = re.compile(r"([0-9a-f]{16})-([A-Za-z0-9._-]{1,64})\.json")
ARCHIVE = re.compile(r"(main|globals|table-(?:0|[1-9][0-9]*))\.dump")


class Repository:
    def __init__(self, folder, master):
        self.folder = folder
        described = manifest.REPOSITORY(parse_json(self.small("lastgood.json")))
        self.id = described["id"]
        encrypted = described["encryption"] != "none"
        refuse_unless(encrypted == (master is not None), "a master key is needed or is too much")
        self.suffix = ".zst.enc" if encrypted else ".zst"
        self.data_keys = {}
        if encrypted:
            self.unwrap(master)

    def unwrap(self, master):
        names = [name for name in os.listdir(os.path.join(self.folder, "keys"))]
        wraps = [re.fullmatch(r"([0-9a-f]{16})-([0-9a-f]{16})\.json", name) for name in names]
        ours = [wrap for wrap in wraps if wrap and wrap[2] == master.fingerprint]
        refuse_unless(ours or not any(wraps), "the master key is another one")
        for wrap in ours:
            source, key = master.unwrap(self.id, wrap[1], self.small(f"keys/{wrap[0]}"))
            self.data_keys[source, wrap[1]] = key

    def small(self, key):
        with open(os.path.join(self.folder, key), "rb") as file:
            data = file.read(65537)
        refuse_unless(len(data) <= 65536, f"{key} is too long")
        return data

    def keys(self, source):
        """Keys of a source without their suffix; whatever has no such form is passed over."""
        top = os.path.join(self.folder, "sources", source)
        for folder, folders, files in os.walk(top):
            folders.sort()
            for name in sorted(files):
                key = os.path.relpath(os.path.join(folder, name), self.folder)
                if key.endswith(self.suffix):
                    yield key[: -len(self.suffix)]

    def open(self, key):
        path = key + self.suffix
        with open(os.path.join(self.folder, path), "rb") as file:
            yield from content(file, path, self.data_keys)

    def json(self, key):
        return parse_json(b"".join(self.open(key)))


class Source:
    def __init__(self, repository, source, quiet):
        self.repository, self.id, self.quiet = repository, source, quiet
        self.top = f"sources/{source}"

    def read(self):
        keys = [key.removeprefix(self.top + "/") for key in self.repository.keys(self.id)]
        described = "source.json" in keys
        if described:
            file = manifest.SOURCE(self.repository.json(f"{self.top}/source.json"))
            refuse_unless(file["id"] == self.id, "source.json is another source's")
            print(f"source {self.id} \"{file['name']}\", database {file['database']}", file=sys.stderr)
        lineages = {}
        for key in keys:
            lineage, _, rest = key.partition("/")
            if re.fullmatch("[0-9a-f]{8}-[0-9a-f]{8}", lineage):
                lineages.setdefault(lineage, []).append(rest)
        for lineage, rest in sorted(lineages.items()):
            self.lineage(lineage, rest)

    def lineage(self, id, keys):
        top = f"{self.top}/{id}"
        if "lineage.json" not in keys:
            print(f"lineage {id} was never begun", file=sys.stderr)
            return
        file = manifest.LINEAGE(self.repository.json(f"{top}/lineage.json"))
        refuse_unless(file["id"] == id, "lineage.json is another lineage's")
        print(f"lineage {id} from {lsn_text(file['start'])}, slot {file['slot']}", file=sys.stderr)
        runs = self.chain(keys, file["start"])
        for run in runs:
            for name, start, end, latest, observed in run:
                self.segment(id, f"{top}/{name}", start, end, latest, observed)
        self.bases(top, keys)
        for key in keys:
            point = re.fullmatch("points/(.*)", key)
            point = point and POINT.fullmatch(point[1])
            if point:
                fields = manifest.POINT(self.repository.json(f"{top}/{key}"))
                same = fields["lsn"] == int(point[1], 16) and fields["name"] == point[2]
                refuse_unless(same, f"{key} is another point")
                print(f"  point \"{fields['name']}\" at {lsn_text(fields['lsn'])}", file=sys.stderr)
            shape = SHAPE.fullmatch(key)
            if shape:
                fields = manifest.SHAPE(self.repository.json(f"{top}/{key}"))
                same = (fields["from"], fields["to"]) == (int(shape[1], 16), int(shape[2], 16))
                refuse_unless(same, f"{key} is another shape")
                print(f"  shape from {lsn_text(fields['from'])}: {fields['detail']}", file=sys.stderr)
        if "end.json" in keys:
            end = manifest.END(self.repository.json(f"{top}/end.json"))
            print(f"  ended at {lsn_text(end['end'])}: {end['reason']}, {end['detail']}", file=sys.stderr)

    def chain(self, keys, start):
        """The runs of segments: the chain first, then what stands behind a hole."""
        segments = []
        for key in keys:
            match = SEGMENT.fullmatch(key)
            if match:
                first, end, latest, observed = (int(field, 16) for field in match.groups()[1:])
                refuse_unless(end > first, f"{key} ends before it starts")
                segments.append((key, first, end, key_time(latest), key_time(observed)))
        # Whatever takes the place of a segment comes before it.
        segments.sort(key=lambda segment: (segment[1], -segment[2], segment[0]))
        left, merged = [], None
        for segment in segments:
            if merged and replaces(merged, segment):
                print(f"  superseded: {segment[0]}", file=sys.stderr)
                continue
            if is_merged(segment) and (not merged or merged[2] < segment[2]):
                merged = segment
            left.append(segment)
        runs = []
        for segment in left:
            before = runs[-1][-1] if runs else None
            refuse_unless(not before or before[2] <= segment[1], f"a fork at {lsn_text(segment[1])}")
            if before and before[2] == segment[1]:
                runs[-1].append(segment)
            else:
                runs.append([segment])
        if runs and runs[0][0][1] != start:
            print(f"  the chain begins at {lsn_text(runs[0][0][1])}", file=sys.stderr)
        for run in runs[1:]:
            print(f"  orphans from {lsn_text(run[0][1])}", file=sys.stderr)
        times = [segment[4] for run in runs for segment in run if segment[4] is not None]
        refuse_unless(times == sorted(times), "the observed time goes backwards")
        return runs

    def segment(self, lineage, key, start, end, latest, observed):
        segment = Segment()
        for line, _ in segment.read(self.repository.open(key)):
            if not self.quiet:
                sys.stdout.buffer.write(line)
        header, footer = segment.header, segment.footer
        times = footer["commit_times"]
        found = (header["source"], header["lineage"], header["start"], footer["end"])
        refuse_unless(found == (self.id, lineage, start, end), f"{key} is another segment")
        found = (times and times["max"], footer["observed_through"])
        refuse_unless(found == (latest, observed), f"the times of {key} are not its content's")
        rows = [sum(counts) for counts in zip(*segment.counts.values())]
        print(
            f"  segment {lsn_text(start)} to {lsn_text(end)}: {segment.transactions} transactions, rows {rows}",
            file=sys.stderr,
        )

    def bases(self, top, keys):
        archives = {}
        for key in keys:
            match = re.fullmatch(r"bases/([0-9a-f]{16}-[0-9a-f]{8})/(.+)", key)
            name = match and ARCHIVE.fullmatch(match[2])
            if name:
                archives.setdefault(match[1], set()).add(name[1])
        for key in keys:
            match = re.fullmatch(r"bases/([0-9a-f]{16}-[0-9a-f]{8})/manifest\.json", key)
            if match:
                self.base(f"{top}/bases/{match[1]}", match[1], archives.get(match[1], set()))

    def base(self, folder, id, stored):
        base = manifest.BASE(self.repository.json(f"{folder}/manifest.json"))
        refuse_unless(base["id"] == id, "manifest.json is another base's")
        refuse_unless(base["consistent_point"] == int(id[:16], 16), "another consistent point")
        names = [archive["name"] for archive in base["archives"]]
        refuse_unless(len(set(names)) == len(names) and "main" in names, "archives are missing")
        refuse_unless(set(names) <= stored, f"no {set(names) - stored} of base {id}")
        for archive in base["archives"]:
            key = f"{folder}/{archive['name']}.dump"
            digest, length = hashlib.sha256(), 0
            for piece in self.repository.open(key):
                digest.update(piece)
                length += len(piece)
            size = os.path.getsize(os.path.join(self.repository.folder, key + self.repository.suffix))
            found = (length, size, digest.hexdigest())
            expected = (archive["bytes"], archive["stored_bytes"], archive["sha256"])
            refuse_unless(found == expected, f"{key} is not what its manifest says")
        print(
            f"  base {id}: {len(base['tables'])} tables, archives {', '.join(names)}",
            file=sys.stderr,
        )


def is_merged(segment):
    return segment[0].startswith("merged/")


def replaces(merged, segment):
    """Whether a merged segment takes the place of another one."""
    same = merged[1:3] == segment[1:3] and is_merged(segment)
    return merged[1] <= segment[1] and segment[2] <= merged[2] and not same


def key_time(field):
    """A time of a key in microseconds since 2000-01-01, None for none."""
    return field - 2**63 if field else None


def examples(path):
    """The values that FORMAT.md gives as examples."""
    text = open(path, encoding="utf-8").read()
    block = re.search(r'^## Segment$.*?^```\n(\{"t":"H".*?\n)```$', text, re.S | re.M)
    segment = Segment()
    for _ in segment.read([block[1].encode()]):
        pass
    print(f"the segment agrees: {segment.transactions} transactions")

    block = re.search(r"^### Example$.*?^```\n(.*?)```$", text, re.S | re.M)[1]
    value = lambda name: re.search(rf"^{name} +(\S+)", block, re.M)[1]  # noqa: E731
    master = MasterKey(value("master key"))
    refuse_unless(master.fingerprint == value("fingerprint"), "another fingerprint")
    key_id = re.search(r"keys/([0-9a-f]{16})-", block)[1]
    wrap = re.search(r"\{.*?\}", block, re.S)[0].encode()
    source, key = master.unwrap(value("repository id"), key_id, wrap)
    refuse_unless(key.hex() == value("data key"), "another data key")
    name, *data = re.search(r"^object +(.*)", block, re.S | re.M)[1].split()
    pieces = content(io.BytesIO(bytes.fromhex("".join(data))), name, {(source, key_id): key})
    plain = b"".join(pieces).decode()
    refuse_unless(f"`{plain}`" in text, "another content")
    print(f"the envelope agrees: {plain}")


def main():
    parser = argparse.ArgumentParser(description="Reads a lastgood repository by FORMAT.md alone.")
    parser.add_argument("repository", nargs="?")
    parser.add_argument("--key-file", help="the master key; without it the repository is in clear")
    parser.add_argument("--source", help="a source id; all without it")
    parser.add_argument("--quiet", action="store_true", help="check only, print no record")
    parser.add_argument("--examples", metavar="FORMAT.md")
    options = parser.parse_args()
    if options.examples:
        return examples(options.examples)
    if not options.repository:
        parser.error("a repository is needed")
    master = options.key_file and MasterKey(open(options.key_file, encoding="ascii").read())
    repository = Repository(options.repository, master)
    top = os.path.join(repository.folder, "sources")
    sources = sorted(os.listdir(top)) if os.path.isdir(top) else []
    for source in sources:
        if re.fullmatch("[0-9a-f]{16}", source) and options.source in (None, source):
            Source(repository, source, options.quiet).read()


if __name__ == "__main__":
    try:
        main()
    except Refused as refused:
        sys.exit(f"refused: {refused}")
