"""`gruve chat`: the lines that begin with a slash."""

from __future__ import annotations

import io

import pytest

from gruve.cli import main
from gruve.cli.commands.chat import OPTIONS
from gruve.errors import InvalidField
from gruve.serve.validation_generate import validate_generate
from gruve.v1.generation_pb2 import GenerateRequest


@pytest.fixture
def chat(fake, monkeypatch, capsys):
    """Runs `gruve chat` with lines of input: (exit code, standard output, standard error)."""

    def run(*lines: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
        code = main(["chat", "made-up", "--session", "s1", "--max-tokens", "7", "--address", fake.address])
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("/max-tokens -3", "/max-tokens is '-3'; must be 1 to 65536"),
        ("/max-tokens 100000", "/max-tokens is '100000'; must be 1 to 65536"),
        ("/max-tokens many", "/max-tokens is 'many'; must be a whole number"),
        ("/seed -1", "/seed is '-1'; must be 0 to 18446744073709551615"),
        ("/temperature nan", "/temperature is 'nan'; must be 0 to 100"),
        ("/max-tokens-per-second 0", "/max-tokens-per-second is '0'; must be 0.01 to 1000000"),
    ],
)
def test_a_bad_value_is_refused_at_once_and_the_chat_goes_on(fake, chat, line, why):
    fake.reset(text="abc")
    code, out, err = chat(line, "ROMEO:")
    assert (code, out) == (0, "abc")
    assert err.startswith(f"gruve: {why}; it stays as it was\ngruve chat made-up --session s1 goes on")
    assert fake.requests[-1].max_tokens == 7


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("max-tokens", 1, 65_536), ("temperature", 0, 100), ("max-tokens-per-second", 0.01, 1e6)],
)
def test_the_bounds_are_those_of_the_server(name, least, most):
    option, convert = name.replace("-", "_"), OPTIONS[name]

    def validate(value):
        place = {"sampling": {option: value}} if name == "temperature" else {option: value}
        validate_generate(GenerateRequest(model="m", text="a", **place), None, 60.0)

    for value in (least, most):
        assert convert(str(value).removesuffix(".0")) == value
        validate(value)
    with pytest.raises(InvalidField):
        validate(most + 1)


@pytest.mark.parametrize("line", ["/temp 0", "/max 3", "/rate 9", "/nonsense"])
def test_a_line_that_is_none_is_answered_with_those_that_are(chat, line):
    err = chat(line)[2]
    assert err.startswith(f"gruve: there is no line {line.split()[0]}; there are\n  TEXT ")
    assert "  /temperature X  temperature from here on" in err


@pytest.mark.parametrize(
    ("flag", "value", "why"),
    [
        ("--max-tokens", "100000", "--max-tokens is '100000'; must be 1 to 65536"),
        ("--max-tokens-per-second", "0", "--max-tokens-per-second is '0'; must be 0.01 to 1000000"),
        ("--temperature", "nan", "--temperature is 'nan'; must be 0 to 100"),
        ("--seed", "-1", "--seed is '-1'; must be 0 to 18446744073709551615"),
    ],
)
def test_a_flag_that_would_make_every_line_fail_is_refused_before_the_first(fake, capsys, flag, value, why):
    with pytest.raises(SystemExit) as ended:
        main(["chat", "made-up", flag, value, "--address", fake.address])
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", f"gruve: {why}; see `gruve chat --help`\n")
    assert fake.requests == []
