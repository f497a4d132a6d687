"""The JSON lines of logs."""

from __future__ import annotations

import json
import logging

from gruve.cli.logs import JsonLines


def test_a_line_has_the_extra_fields_and_no_second_message_with_colours():
    extra = {"port": 8080, "color_message": "Started on \x1b[1m%d\x1b[0m"}
    record = logging.getLogger("uvicorn.error").makeRecord(
        "uvicorn.error", 20, "f", 1, "Started", (), None, extra=extra
    )
    fields = json.loads(JsonLines().format(record))
    assert (fields["message"], fields["port"]) == ("Started", 8080)
    assert "color_message" not in fields
