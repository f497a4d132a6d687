"""The commands that make and measure models: evaluate, train and publish."""

from __future__ import annotations

import contextlib
import json
import re
import signal
from pathlib import Path

import pytest

from gruve.cli import main
from gruve.cli.interrupts import deferred_interrupt
from tunes import write_books

ROOT = Path(__file__).resolve().parents[2]


def test_the_small_model_is_measured_by_every_protocol(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("To be, or not to be: that is the question.\n" * 100)
    assert main(["evaluate", str(ROOT / "models" / "tiny"), str(tmp_path / "text.txt")]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[:3] for row in rows[1:]] == [
        ["validation", "carried", "430"],
        ["validation", "cold", "256"],
        ["validation", "cold, as nanoGPT", "256"],
    ]
    assert all(1 < float(row[3]) < 4 for row in rows[1:])
    assert main(["evaluate", "--json", str(ROOT / "models" / "tiny"), str(tmp_path / "text.txt")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [f"{loss['nats_per_token']:.4f}" for loss in report["losses"]] == [row[3] for row in rows[1:]]
    assert report["model"] == "tiny"


def test_a_model_of_tunes_is_measured_and_its_form_stands_beside_the_corpus(tmp_path, capsys):
    write_books(tmp_path)
    assert main(["evaluate", str(ROOT / "models" / "folk"), str(tmp_path), "--samples", "3", "--part", "all"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert rows[1][0] == "all"
    head = next(at for at, row in enumerate(rows) if row[0].lower() == "form")
    assert rows[head][1:] == ["corpus", "3 free tunes, temperature 0.95"]
    assert rows[head + 1][0] == "bars that equal an earlier bar of the tune"
    assert all(cell.endswith("%") for cell in rows[head + 1][1:])
    command = ["evaluate", str(ROOT / "models" / "folk"), str(tmp_path), "--samples", "3", "--part", "all", "--json"]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    figures = report["form"]["corpus"], report["form"]["model"]
    assert [f"{figure['bars_repeated']:.1%}" for figure in figures] == rows[head + 1][1:]
    assert (report["losses"][0]["part"], report["form"]["samples"]) == ("all", 3)


def test_an_evaluation_without_a_tune_says_what_became_of_the_tunes(tmp_path, capsys):
    (tmp_path / "book.abc").write_text("X:1\nT:A\nM:4/4\nL:1/8\nK:C\nC8|D8|E4|F8|]\n")
    assert main(["evaluate", str(ROOT / "models" / "tiny"), str(tmp_path)]) == 1
    assert "the part test in" in (said := capsys.readouterr().err)
    assert "0 of 1 tunes are kept; left out: 1 with wrong bars" in said


def test_a_tune_with_a_token_that_the_model_lacks_is_named(tmp_path, capsys):
    for number in range(1, 7):
        notes = "C" * number + "D" * (7 - number)
        (tmp_path / f"book{number}.abc").write_text(f"X:{number}\nM:4/4\nL:1/8\nK:C\n{notes}^e'|C8|]\n")
    command = ["evaluate", str(ROOT / "models" / "folk"), str(tmp_path), "--part", "all", "--samples"]
    for samples in ("0", "1"):
        assert main([*command, samples]) == 1
        said = capsys.readouterr().err
        assert re.fullmatch(r"gruve: X:1 of book1\.abc has the token \"\^e'\", which is not in .* 'folk'\n", said)


def test_a_character_that_the_model_lacks_is_named_with_its_place_in_the_file(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("To be, or not to be: that is the question.\n" * 99 + "\N{SNOWMAN}\n")
    assert main(["evaluate", str(ROOT / "models" / "tiny"), str(tmp_path / "text.txt")]) == 1
    said = capsys.readouterr().err
    assert "text.txt: the model has no token for '\N{SNOWMAN}' (U+2603), at line 100, column 1" in said


def test_the_first_ctrl_c_is_noted_and_the_second_interrupts():
    before = signal.getsignal(signal.SIGINT)
    with deferred_interrupt() as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_training_that_is_interrupted_says_how_to_continue(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("gruve.cli.commands.train._say_validation", lambda progress: signal.raise_signal(signal.SIGINT))
    (tmp_path / "text.txt").write_text("To be, or not to be: that is the question.\n" * 100)
    (tmp_path / "training.toml").write_text(
        re.sub("corpus_sha256.*", "", (ROOT / "models" / "tiny" / "training.toml").read_text())
    )
    arguments = ["--config", str(tmp_path / "training.toml"), "--corpus", str(tmp_path / "text.txt")]
    assert main(["train", *arguments, "--out", str(tmp_path / "tiny")]) == 130
    assert f"--resume continues from the checkpoint in {tmp_path / 'tiny'}" in capsys.readouterr().err


def test_training_leaves_a_model_that_can_be_served(tmp_path, capsys):
    config = (ROOT / "models" / "tiny" / "training.toml").read_text()
    config = re.sub(r"(?m)^(steps|warmup_steps|validate_every_steps) = .*$", r"\1 = 2", config)
    (tmp_path / "short.toml").write_text(re.sub(r"(?m)^corpus_sha256 = .*$", "", config))
    (tmp_path / "text.txt").write_text("To be, or not to be: that is the question.\n" * 300)
    arguments = ["train", "--config", "short.toml", "--corpus", "text.txt", "--out", "run"]
    with contextlib.chdir(tmp_path):
        assert main(arguments) == 0
        assert main(arguments) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "11,610 characters train, 1,290 validate; 18 are distinct"
    assert said[1].startswith("step 2 of 2: ")
    assert said[2].startswith("run: ")
    assert said[3].startswith("gruve: ")


def test_a_published_model_has_the_files_that_its_card_links(tmp_path, capsys):
    config = (ROOT / "models" / "tiny" / "training.toml").read_text()
    config = re.sub(r"(?m)^(steps|warmup_steps|validate_every_steps) = .*$", r"\1 = 2", config)
    (tmp_path / "a.toml").write_text(re.sub(r"(?m)^corpus_sha256 = .*$", "", config))
    (tmp_path / "b.toml").write_text((tmp_path / "a.toml").read_text().replace("seed = 1", "seed = 2"))
    (tmp_path / "text.txt").write_text("To be, or not to be: that is the question.\n" * 60)
    card = str(ROOT / "models" / "tiny" / "card.toml")
    publish = ["publish", "--corpus", "text.txt", "--run", "run", "--out", "models/mine", "--card", card, "--config"]
    with contextlib.chdir(tmp_path):
        assert main(["train", "--config", "a.toml", "--corpus", "text.txt", "--out", "run"]) == 0
        assert main([*publish, "b.toml"]) == 1
        assert main([*publish, "a.toml"]) == 0
    assert "run was trained with another config" in capsys.readouterr().err
    text = (tmp_path / "models" / "mine" / "README.md").read_text()
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert {"training.toml", "losses.csv", "curves.png"} == set(links)
    assert all((tmp_path / "models" / "mine" / link).is_file() for link in links)
    assert re.search(r"tokens, \d+ (seconds|minutes) on", text)
    assert "nanoGPT does not have." in text  # its published figure is of another corpus


@pytest.mark.parametrize("command", ["train", "publish"])
def test_a_folder_that_is_no_name_of_a_model_is_refused_before_the_work(command, tmp_path, capsys):
    flags = {"config": "absent.toml", "corpus": "absent.txt", "out": str(tmp_path / "My Run")}
    flags |= {"run": "absent", "card": "absent.toml"} if command == "publish" else {}
    arguments = [part for name, value in flags.items() for part in (f"--{name}", value)]
    assert main([command, *arguments]) == 2
    assert "My Run', and names the model: model name 'My Run' is not of the form" in capsys.readouterr().err


def test_a_model_is_not_written_over_a_file_or_over_the_run(tmp_path, capsys):
    (tmp_path / "file").touch()
    train = ["train", "--config", "absent.toml", "--corpus", "absent.txt", "--out", str(tmp_path / "file")]
    publish = ["publish", "--config", "absent.toml", "--card", "absent.toml", "--corpus", "absent.txt"]
    assert main(train) == 2
    assert main([*publish, "--run", "runs/a", "--out", str(tmp_path / "file")]) == 2
    assert main([*publish, "--run", "runs/a", "--out", "runs/../runs/a"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line.partition("', ")[2] for line in said] == [
        "which is a file; a folder is needed",
        "which is a file; a folder is needed",
        "the folder of --run; give another",
    ]


@pytest.mark.parametrize("content", [b"", b"a" * 2_000, b"\xff\xfe" * 2_000, b"\x00\x01" * 2_000])
def test_a_bad_corpus_is_one_line(tmp_path, content, capsys):
    (tmp_path / "bad.txt").write_bytes(content)
    config = str(ROOT / "models" / "tiny" / "training.toml")
    assert main(["train", "--config", config, "--corpus", str(tmp_path / "bad.txt"), "--out", str(tmp_path / "r")]) == 1
    assert re.fullmatch(r"gruve: the corpus .*bad\.txt .*\n", capsys.readouterr().err)
