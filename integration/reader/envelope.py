"""FORMAT.md, "Keys" and "Envelope": an object's bytes in, its content out."""

import base64
import binascii
import re

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from forms import KEY_ID, SOURCE_ID, parse_json, record, refuse_unless, string, version

HEADER_BYTES = 56
SEALED_CHUNK_BYTES = 65552
TAG_BYTES = 16
WINDOW_BYTES_MAX = 1 << 23
PIECE_BYTES = 1 << 16


def hkdf(ikm, salt, info, length):
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=salt, info=info).derive(ikm)


def base64_bytes(text, length, what):
    try:
        data = base64.b64decode(string(text), validate=True)
    except (binascii.Error, ValueError):
        data = b""
    refuse_unless(len(data) == length, f"the {what} is not {length} bytes in base64")
    return data


class MasterKey:
    def __init__(self, text):
        self.secret = base64_bytes(text.strip(), 32, "master key")
        label = b"lastgood master key fingerprint v1"
        self.fingerprint = hkdf(self.secret, None, label, 8).hex()

    def unwrap(self, repository, key_id, data):
        """The source and data key in `keys/<key id>-<fingerprint>.json`."""
        wrap = WRAP(parse_json(data))
        refuse_unless(wrap["id"] == key_id, "a wrapped key under another id")
        refuse_unless(wrap["master"] == self.fingerprint, "a key wrapped by another master key")
        key = hkdf(self.secret, base64_bytes(wrap["salt"], 32, "salt"), b"lastgood key wrap v1", 32)
        bound = f"lastgood key v1\n{repository}\n{wrap['source']}\n{key_id}\n".encode()
        wrapped = base64_bytes(wrap["wrapped"], 48, "wrapped key")
        return wrap["source"], unseal(key, bytes(12), wrapped, bound, "the wrapped key")


WRAP = record(v=version, id=KEY_ID, source=SOURCE_ID, master=KEY_ID, salt=string, wrapped=string)


def unseal(key, nonce, data, associated, what):
    try:
        return AESGCM(key).decrypt(nonce, data, associated)
    except InvalidTag:
        refuse_unless(False, f"{what} does not open")


def context(path):
    """What an encrypted object is bound to: its key without suffix, a segment's up to its start."""
    stem = path.removesuffix(".zst.enc")
    segment = re.match(r"(.*/(?:segments|merged)/[0-9a-f]{16})-[^/]*\.ndjson$", stem)
    return segment[1] if segment else stem


def frame(file, path, data_keys):
    """The pieces of the zstd frame in an encrypted object."""
    header = file.read(HEADER_BYTES)
    refuse_unless(len(header) == HEADER_BYTES, "shorter than its header")
    refuse_unless(header[:8] == b"lastgood", "not an encrypted object")
    refuse_unless(header[8:16] == b"\x01" + bytes(7), "an unknown version of the envelope")
    key_id = header[16:24].hex()
    source = path.split("/")[1]
    refuse_unless((source, key_id) in data_keys, f"no data key {key_id} of source {source}")
    info = b"lastgood object key v1\n" + context(path).encode()
    key = hkdf(data_keys[source, key_id], header[24:], info, 32)
    sealed, number, last = file.read(SEALED_CHUNK_BYTES), 0, False
    while not last:
        ahead = file.read(SEALED_CHUNK_BYTES)
        last = not ahead
        refuse_unless(len(sealed) > TAG_BYTES, "a chunk is too short")
        nonce = bytes(3) + number.to_bytes(8, "big") + bytes([last])
        yield unseal(key, nonce, sealed, header, f"chunk {number}")
        sealed, number = ahead, number + 1


def content(file, path, data_keys):
    """The content of an object, in pieces. Worth nothing before the last one has come."""
    pieces = frame(file, path, data_keys) if path.endswith(".enc") else iter(lambda: file.read(PIECE_BYTES), b"")
    decoder = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES_MAX).decompressobj()
    first = True
    for piece in pieces:
        if first:
            first = False
            try:
                parameters = zstandard.get_frame_parameters(piece)
            except zstandard.ZstdError as error:
                refuse_unless(False, f"no zstd frame: {error}")
            refuse_unless(parameters.has_checksum, "the frame has no checksum")
            refuse_unless(parameters.dict_id == 0, "the frame needs a dictionary")
        refuse_unless(not decoder.eof, "bytes follow the frame")
        try:
            plain = decoder.decompress(piece)
        except zstandard.ZstdError as error:
            refuse_unless(False, f"it does not decompress: {error}")
        refuse_unless(not decoder.unused_data, "bytes follow the frame")
        if plain:
            yield plain
    refuse_unless(decoder.eof, "the frame is cut off")
