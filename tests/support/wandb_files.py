"""Reading back what wandb wrote offline."""

import json
import struct

import pytest

from tests.support.tracked_runs import is_number


def wandb_records(run_dir):
    """What lies in the offline files of a run folder: by file, the run's record and its rows of history."""
    pb = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    found = []
    for path in sorted(run_dir.glob("wandb/*run-*/*.wandb")):
        run, rows, summary = None, [], {}
        for part in wandb_blocks(path.read_bytes()):
            record = pb.Record()
            record.ParseFromString(part)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                run = record.run
            elif kind == "history":
                items = record.history.item
                rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
            elif kind == "summary":
                for item in record.summary.update:
                    summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        found.append((run, rows, summary))
    return found


def wandb_alerts(run_dir):
    """(title, text, level) of the alerts in the offline files of a run folder."""
    pb = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    found = []
    for path in sorted(run_dir.glob("wandb/*run-*/*.wandb")):
        for part in wandb_blocks(path.read_bytes()):
            record = pb.Record()
            record.ParseFromString(part)
            if record.WhichOneof("record_type") == "alert":
                found.append((record.alert.title, record.alert.text, record.alert.level))
    return found


def numbers_of(rows):
    """name of a curve -> [(step, value), ...] of the rows of wandb's history."""
    found = {}
    for row in rows:
        for name, value in row.items():
            if name.partition("/")[0] in ("train", "valid", "test", "perf") and is_number(value):
                found.setdefault(name, []).append((row["step"], value))
    return found


def wandb_blocks(data):
    """The records of wandb's file: blocks of 32 KiB as in leveldb's log, a record in one part or several."""
    position, part = 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, size, kind = struct.unpack("<IHB", data[position : position + 7])
        if kind not in (1, 2, 3, 4) or position + 7 + size > len(data):
            return
        part += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):
            yield part
            part = b""
