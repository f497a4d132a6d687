"""Unmodified clients of OpenAI's completions API, as their users run them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gruve.cli import main
from gruve.client import Client
from http_gateway import gateway_url
from outside_programs import installed, run

pytestmark = pytest.mark.slow
MODELS = Path(__file__).resolve().parents[2] / "models"
PROMPT = "ROMEO:\n"
LLM_MODELS = """\
- model_id: gruve-tiny
  model_name: tiny
  api_base: {url}/v1
  completion: true
"""
# No context ends with space, because lm_eval counts such space to each ending.
CHOICES = [
    {"context": "ROMEO:\nWhat, ho", "endings": ["! my lord", "zzzqq"], "label": 0},
    {"context": "JULIET:\nO", "endings": [" Romeo", "\nThe king", "x-x-x"], "label": 0},
    {"context": "First Citizen:\nBefore we", "endings": [" proceed", ": proceed"], "label": 0},
]
TASK = """\
task: choices
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{endings}}}}"
doc_to_target: "{{{{label}}}}"
target_delimiter: ""
"""


@pytest.fixture(scope="module")
def direct(server):
    with Client(server.address) as client:
        yield client


@pytest.mark.parametrize("streamed", [True, False])
def test_llm_writes_what_the_server_generates(gateway, direct, tmp_path, streamed):
    (tmp_path / "extra-openai-models.yaml").write_text(LLM_MODELS.format(url=gateway.url))
    options = ["-o", "max_tokens", "60", "-o", "seed", "7", "-o", "temperature", "0.8"]
    command = [installed("llm") / "llm", "-m", "gruve-tiny", *options, *([] if streamed else ["--no-stream"]), PROMPT]
    text = run(*command, cwd=tmp_path, LLM_USER_PATH=str(tmp_path), OPENAI_API_KEY="none")
    expected = direct.generate(PROMPT, model="tiny", seed=7, max_tokens=60, temperature=0.8).text()
    assert text == expected + "\n"


def test_lm_eval_measures_what_score_does(start, tmp_path):
    server = start()  # with one model, because lm_eval names none when it asks for tokens
    with gateway_url(server.address) as url, Client(server.address) as direct:
        found = evaluated(url, tmp_path)
        expected = [[logprob_of(direct, c["context"], ending) for ending in c["endings"]] for c in CHOICES]
    for logprobs, scored in zip(found, expected, strict=True):
        assert logprobs == pytest.approx(scored, abs=1e-6)


def test_aiperf_measures_what_was_asked_for(gateway, tmp_path):
    assert main(["export-tokenizer", "--skip-unknown", str(MODELS / "tiny"), str(tmp_path / "tokenizer")]) == 0
    command = [installed("aiperf") / "aiperf", "profile", "--model", "tiny", "--url", gateway.url, "--streaming"]
    command += [
        "--endpoint-type",
        "completions",
        "--tokenizer",
        tmp_path / "tokenizer",
        "--extra-inputs",
        "ignore_eos:true",
    ]
    command += ["--synthetic-input-tokens-mean", 50, "--synthetic-input-tokens-stddev", 0, "--random-seed", 1]
    command += ["--output-tokens-mean", 40, "--output-tokens-stddev", 0, "--request-count", 20, "--concurrency", 4]
    # Told to be offline, it looks for the tokenizer in the hub's cache and not in the folder.
    run(*command, "--ui", "none", cwd=tmp_path, HF_HUB_OFFLINE="", TRANSFORMERS_OFFLINE="")
    (path,) = tmp_path.rglob("profile_export_aiperf.json")
    found = json.loads(path.read_text())
    assert (found["request_count"]["avg"], found["error_summary"]) == (20, [])
    for name, tokens in (("input_sequence_length", 50), ("output_sequence_length", 40)):
        assert (found[name]["min"], found[name]["max"]) == (tokens, tokens)
    assert found["total_usage_completion_tokens"]["avg"] == 800


def evaluated(url: str, folder: Path) -> list[list[float]]:
    """The log-probabilities of the endings of each choice, after `lm_eval` with the gateway's own tokenizer."""
    data = folder / "data.jsonl"
    data.write_text("".join(f"{json.dumps(choice)}\n" for choice in CHOICES))
    (folder / "choices.yaml").write_text(TASK.format(file=data))
    model = f"model=tiny,base_url={url}/v1/completions,tokenizer_backend=remote,num_concurrent=2"
    tasks = ["--tasks", "choices", "--include_path", folder, "--output_path", folder / "out", "--log_samples"]
    run(installed("lm_eval") / "lm_eval", "--model", "local-completions", "--model_args", model, *tasks, cwd=folder)
    (path,) = (folder / "out").rglob("samples_choices_*.jsonl")
    samples = sorted(map(json.loads, path.read_text().splitlines()), key=lambda sample: sample["doc_id"])
    return [[float(answer[0][0]) for answer in sample["resps"]] for sample in samples]


def logprob_of(direct: Client, context: str, ending: str) -> float:
    """The log-probability of an ending after its context, in nats."""
    scored = direct.score(context + ending, model="tiny", logprobs=0)
    return sum(entry.logprob for entry in scored.logprobs[len(context) :])
