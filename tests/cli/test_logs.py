"""The JSON lines of logs."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import subprocess
import sys

from gruve.cli.output.logs import AccessLog, JsonLines


def test_a_line_has_the_extra_fields_and_no_second_message_with_colours():
    extra = {"port": 8080, "color_message": "Started on \x1b[1m%d\x1b[0m"}
    record = logging.getLogger("uvicorn.error").makeRecord(
        "uvicorn.error", 20, "f", 1, "Started", (), None, extra=extra
    )
    fields = json.loads(JsonLines().format(record))
    assert (fields["message"], fields["port"]) == ("Started", 8080)
    assert "color_message" not in fields


def test_an_access_log_that_cannot_be_written_fails_no_call_and_says_so_once(tmp_path, caplog):
    folder, call = tmp_path / "logs", {"method": "Generate", "code": "OK"}
    folder.mkdir()
    write = AccessLog(str(folder / "access"), "text")
    for _ in range(2):
        shutil.rmtree(folder)
        write(call)
        write(call)
        folder.mkdir()
        write(call)
    assert (folder / "access").read_text().count("\n") == 1
    whys = [record.why for record in caplog.records]
    assert (len(whys), {"No such file" in why for why in whys}) == (2, {True})
    write.close()


def test_a_full_disk_costs_lines_of_the_access_log_and_prints_no_trace(caplog, capsys):
    write = AccessLog("/dev/full", "json")
    write({"method": "Generate", "code": "OK"})
    write({"method": "Generate", "code": "OK"})
    assert [record.why for record in caplog.records] == ["[Errno 28] No space left on device"]
    assert capsys.readouterr().err == ""
    with contextlib.suppress(OSError):
        write.close()


UNEXPECTED = """
import asyncio, logging, threading, warnings
from gruve.cli.output.logs import log_to_standard_error

class Broken:
    def __del__(self):
        raise ValueError("in a destructor")

def fail(where):
    raise ValueError(where)

async def lose_a_task():
    asyncio.get_running_loop().call_soon(fail, "in a callback")
    asyncio.ensure_future(asyncio.sleep(0, "x")).add_done_callback(lambda _: fail("in a task"))
    await asyncio.sleep(0.01)

log_to_standard_error("info")
Broken()
thread = threading.Thread(target=fail, args=("in a thread",))
thread.start()
thread.join()
warnings.warn("a warning")
asyncio.run(lose_a_task())
fail("at last")
"""


def test_whatever_nothing_handles_is_one_line_of_json_each():
    ran = subprocess.run([sys.executable, "-c", UNEXPECTED], capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in ran.stderr.splitlines()]
    traces = [line.get("trace", "").rpartition("ValueError: ")[2] for line in lines]
    assert traces == ["in a destructor", "in a thread", "", "in a callback", "in a task", "at last"]
    assert "UserWarning: a warning" in lines[2]["message"]
    assert lines[1]["where"].startswith("Thread-1")
    assert (ran.returncode, lines[-1]["level"]) == (1, "critical")
