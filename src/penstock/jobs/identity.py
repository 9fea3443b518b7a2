"""Which answer belongs to which line: names for people, digests for the index, ids for the output."""

import dataclasses
import hashlib
import json

from penstock.jobs.errors import one_line
from penstock.jobs.index import KEY_BYTES
from penstock.jobs.request import Parsed

ID_PREFIX = "batch_req_"
ID_HEX = 24
DUPLICATE = "duplicate"


def identity(parsed: Parsed) -> str:
    """What a person knows the line by: its custom_id, else ``line-<number>``."""
    return parsed.custom_id if parsed.custom_id is not None else f"line-{parsed.number}"


def key(parsed: Parsed) -> bytes:
    """The digest that the line is found by; custom_ids and numbers are apart, whatever a custom_id is.

    A duplicate does not own its custom_id, so it goes by its number.
    """
    if parsed.custom_id is None or parsed.code == DUPLICATE:
        return key_of_line(parsed.number)
    return key_of_custom_id(parsed.custom_id)


def key_of_custom_id(custom_id: str) -> bytes:
    return _digest(b"c:" + custom_id.encode("utf-8", "surrogatepass"))


def key_of_line(number: int) -> bytes:
    return _digest(b"l:%d" % number)


def answer_id(fingerprint: str, parsed: Parsed) -> str:
    """The id of the line's answer, another one as soon as the job's fingerprint or the request is another."""
    digest = hashlib.blake2b(digest_size=ID_HEX // 2)
    for part in (fingerprint.encode(), key(parsed), parsed.canonical):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return ID_PREFIX + digest.hexdigest()


def as_duplicate(parsed: Parsed, first: int) -> Parsed:
    """The line as a fault, since line ``first`` has its custom_id already."""
    name = json.dumps(one_line(identity(parsed), 80), ensure_ascii=False)
    fault = f"custom_id {name} is that of line {first:,} already: give each line its own"
    return dataclasses.replace(parsed, fault=fault, code=DUPLICATE)


def _digest(form: bytes) -> bytes:
    return hashlib.blake2b(form, digest_size=KEY_BYTES).digest()
