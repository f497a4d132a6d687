"""OpenAI's completions over HTTP equal what the server generates and scores over gRPC."""

from __future__ import annotations

import asyncio
import json
import socket

import openai
import pytest

from gruve.client import Client
from serving import PATIENCE_S, until

PROMPT = "ROMEO:\n"
COMPLETIONS = "/v1/completions"
TINY = {"model": "tiny", "prompt": PROMPT, "seed": 7, "max_tokens": 40}


@pytest.fixture(scope="module")
def direct(server):
    with Client(server.address) as client:
        yield client


@pytest.fixture(scope="module")
def sdk(gateway):
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def text_of(direct, seed=7, **options) -> str:
    return direct.generate(PROMPT, model="tiny", **{"seed": seed, "max_tokens": 40, **options}).text()


def error_of(answer) -> tuple[int, str | None]:
    return answer.status_code, answer.json()["error"]["param"]


def test_a_completion_is_what_the_server_generates(gateway, direct):
    answer = gateway.post(COMPLETIONS, **TINY).json()
    stream = direct.generate(PROMPT, model="tiny", seed=7, max_tokens=40)
    text = stream.text()
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == (text, "length")
    assert choice["gruve"]["finish_reason"] == stream.finish_reason == "length"
    assert choice["gruve"]["tokens_sha256"] == stream.end.receipt.tokens_sha256.hex()
    assert answer["system_fingerprint"] == f"{stream.start.model_digest[:16]}-{stream.start.numerics_id}"
    assert answer["usage"] == {"prompt_tokens": 7, "completion_tokens": 40, "total_tokens": 47}


def test_a_prompt_may_be_text_or_tokens_one_or_many(gateway, direct):
    tokens = direct.tokenize(PROMPT, model="tiny")
    one = gateway.post(COMPLETIONS, **TINY).json()["choices"][0]["text"]
    for prompt, answers in (([PROMPT], 1), (tokens, 1), ([PROMPT, PROMPT], 2), ([tokens, tokens, tokens], 3)):
        found = gateway.post(COMPLETIONS, **{**TINY, "prompt": prompt}).json()["choices"]
        assert [choice["text"] for choice in found] == [one] * answers


def test_several_answers_have_derived_seeds_which_are_reported(sdk, direct):
    answer = sdk.completions.create(**TINY, n=3)
    assert [choice.text for choice in answer.choices] == [text_of(direct, seed) for seed in (7, 8, 9)]
    drawn = sdk.completions.create(model="tiny", prompt=PROMPT, max_tokens=40, n=2).choices
    first, second = (choice.gruve["seed"] for choice in drawn)
    assert second == first + 1
    assert [choice.text for choice in drawn] == [text_of(direct, first), text_of(direct, second)]


def test_the_sdk_streams_with_usage(sdk, direct):
    chunks = list(sdk.completions.create(**TINY, n=2, stream=True, stream_options={"include_usage": True}))
    texts = ["", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [text_of(direct, 7), text_of(direct, 8)]
    ends = [choice for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert [len(choice.gruve["tokens_sha256"]) for choice in ends] == [64, 64]
    assert (chunks[-1].usage.completion_tokens, chunks[-1].usage.prompt_tokens) == (80, 7)


def test_the_sdk_streams_from_asyncio(gateway, direct):
    async def read() -> str:
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client:
            stream = await client.completions.create(**TINY, stream=True)
            return "".join([chunk.choices[0].text async for chunk in stream])

    assert asyncio.run(read()) == text_of(direct)


def test_stops_biases_and_other_parameters_reach_the_server(gateway, direct):
    options = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.01, "stop": ["e"]}
    (choice,) = gateway.post(COMPLETIONS, **TINY, **options, user="ann").json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == (text_of(direct, **options), "stop")
    (e,) = direct.tokenize("e", model="tiny")
    biased = gateway.post(COMPLETIONS, **TINY, logit_bias={str(e): 100}).json()
    assert biased["choices"][0]["text"] == "e" * 40


def test_logprobs_of_an_echoed_completion_are_those_of_score(sdk, direct):
    (choice,) = sdk.completions.create(**TINY, echo=True, logprobs=2).choices
    scored = direct.score(choice.text, model="tiny", logprobs=2)
    found = choice.logprobs
    assert "".join(found.tokens) == choice.text
    assert found.token_logprobs == pytest.approx([entry.logprob for entry in scored.logprobs], abs=1e-5)
    assert found.text_offset == list(range(len(choice.text)))
    assert all(token in top and 2 <= len(top) <= 3 for token, top in zip(found.tokens, found.top_logprobs, strict=True))


def test_max_tokens_0_with_echo_is_the_score_itself(sdk, direct):
    answer = sdk.completions.create(model="tiny", prompt=[PROMPT, "JULIET"], max_tokens=0, echo=True, logprobs=1)
    for choice, prompt in zip(answer.choices, (PROMPT, "JULIET"), strict=True):
        scored = direct.score(prompt, model="tiny", logprobs=1)
        assert choice.text == prompt
        assert choice.logprobs.token_logprobs == [entry.logprob for entry in scored.logprobs]
        assert choice.gruve["nats"] == scored.nats
        assert -sum(choice.logprobs.token_logprobs) == pytest.approx(scored.nats, abs=1e-5)


def test_a_session_is_created_and_continued(gateway, direct):
    first = gateway.post(COMPLETIONS, **TINY, new_session=True).json()["choices"][0]
    session = first["gruve"]["session_id"]
    asked = {"model": "tiny", "session_id": session, "generation_id": "second", "max_tokens": 20}
    second = gateway.post(COMPLETIONS, **asked).json()["choices"][0]
    assert direct.get_session(session).text == PROMPT + first["text"] + second["text"]
    assert gateway.post(COMPLETIONS, **asked).json()["choices"][0]["text"] == second["text"]  # the same generation


@pytest.mark.parametrize(("model", "status"), [("none", 404), ("abc", 400), ("tiny@7", 404)])
def test_a_session_is_not_continued_under_the_name_of_another_model(server, gateway, model, status):
    session = server.create()
    asked = {"model": model, "session_id": session, "max_tokens": 3}
    for stream in (False, True):
        answer = gateway.post(COMPLETIONS, **asked, stream=stream)
        assert error_of(answer) == (status, "model")
    assert server.session(session).position == 1


def test_a_session_is_continued_under_any_name_of_its_model(server, gateway):
    session = server.create()
    for model in ("tiny", "tiny@0", f"tiny@sha256:{server.host('tiny').model.digest}"):
        answer = gateway.post(COMPLETIONS, model=model, session_id=session, max_tokens=3)
        assert (answer.status_code, answer.json()["model"]) == (200, model)


def test_tokens_come_and_go(gateway, direct):
    answer = gateway.post("/tokenize", model="tiny", prompt=PROMPT, return_token_strs=True).json()
    assert (answer["tokens"], answer["count"]) == (direct.tokenize(PROMPT, model="tiny"), len(PROMPT))
    assert answer["token_strs"] == list(PROMPT)
    assert gateway.post("/detokenize", model="tiny", tokens=answer["tokens"]).json() == {"prompt": PROMPT}


@pytest.mark.parametrize("token", [-1, 1 << 32, 9_999])
def test_a_number_that_is_no_token_id_is_refused_and_named(gateway, token):
    assert error_of(gateway.post("/detokenize", model="tiny", tokens=[token])) == (400, "tokens")


def test_a_text_that_is_no_unicode_is_refused_and_named(gateway):
    assert error_of(gateway.post("/tokenize", model="tiny", prompt="\ud800")) == (400, "prompt")


@pytest.mark.parametrize(("model", "kind"), [("tiny", "characters"), ("abc", "abc")])
def test_start_and_end_tokens_have_an_id_but_no_text(server, gateway, model, kind):
    found = gateway.http.get("/tokenizer_info", params={"model": model}).json()
    tokenizer = server.host(model).model.tokenizer
    assert (found["tokenizer_class"], found["vocab_size"]) == (kind, tokenizer.size)
    assert (found["bos_token"], found["bos_token_id"]) == (None, tokenizer.start_id)
    assert (found["eos_token"], found["eos_token_id"]) == (None, tokenizer.end_id)


REFUSED = [
    ({"suffix": "x"}, "suffix"),
    ({"best_of": 3}, "best_of"),
    ({"presence_penalty": 1}, "presence_penalty"),
    ({"frequency_penalty": 0.5}, "frequency_penalty"),
    ({"messages": []}, "messages"),
    ({"max_tokens": "7"}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"n": 0}, "n"),
    ({"n": 1000}, "n"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": -1}, "temperature"),
    ({"top_p": 2}, "top_p"),
    ({"prompt": {"text": "x"}}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": [1 << 40]}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": "\ud800"}, "prompt"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {f"{5:013}": 1}}, "logit_bias"),
    ({"seed": -1}, "seed"),
    ({"seed": 1 << 64}, "seed"),
    ({"stop": [1]}, "stop"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"new_session": True, "n": 2}, "new_session"),
    ({"new_session": True, "session_id": "none"}, "new_session"),
    ({"session_id": "none", "n": 2}, "session_id"),
    ({"session": "new"}, "session"),
    ({"max_tokens_per_second": -1}, "max_tokens_per_second"),
    ({"rate": 1}, "rate"),
    ({"model": None}, "model"),
    ({"model": 7}, "model"),
    ({"logprobs": 100}, "logprobs"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_done_is_refused_and_named(gateway, fields, param):
    assert error_of(gateway.post(COMPLETIONS, **{**TINY, **fields})) == (400, param)


MEASURE = {"max_tokens": 0, "echo": True}
REASONS = [
    (MEASURE | {"n": 2}, "n is 2; must be 1 with max_tokens 0, which measures the prompts"),
    (MEASURE | {"prompt": ""}, "prompt is empty; max_tokens 0 measures a prompt"),
    ({"max_tokens": "seven"}, 'max_tokens is "seven"; must be a whole number'),
    ({"n": 1.5}, "n is 1.5; must be a whole number"),
    ({"top_k": True}, "top_k is true; must be a whole number"),
    ({"user": {"id": 1}}, "user is an object; must be a string"),
    ({"temperature": "x" * 99}, f'temperature is "{"x" * 39}...; must be a number'),
    ({"stream_options": {}}, "stream_options is allowed only if stream is true"),
    ({"stream_options": 7}, "stream_options is 7; must be an object"),
    ({"logit_bias": [5]}, "logit_bias is a list; must be an object of token ids and numbers"),
    ({"logit_bias": {"a": 1}}, 'logit_bias has "a": 1; must be an object of token ids and numbers'),
    (
        {"prompt": [1, "a"]},
        'prompt has the entry "a" in a list; must be a string, a list of strings, a list of token ids, '
        "or a list of such lists",
    ),
    ({"new_session": True, "n": 2}, "new_session is allowed for one answer; n and the prompts ask for 2"),
    (
        {"n": 128, "max_tokens": 2_000, "logprobs": 20},
        "logprobs: asks for up to 5376000 log-probabilities in all; without stream at most 262144",
    ),
    (
        MEASURE | {"prompt": 2 * ["a" * 7_000], "logprobs": 20},
        "logprobs: asks for up to 294000 log-probabilities in all; without stream at most 262144",
    ),
    ({"temperature": 10**400}, f"temperature is 1{'0' * 39}...; must be within ±1.8e+308"),
]


@pytest.mark.parametrize(("fields", "why"), REASONS, ids=[why.partition(":")[0] for _, why in REASONS])
def test_a_refusal_quotes_the_value_and_the_bound(gateway, fields, why):
    assert gateway.post(COMPLETIONS, **{**TINY, **fields}).json()["error"]["message"] == why


@pytest.mark.parametrize(
    ("fields", "code", "status", "param"),
    [
        ({"model": "none"}, "MODEL_UNKNOWN", 404, "model"),
        ({"model": "truncated"}, "MODEL_NOT_SERVING", 400, "model"),
        ({"session_id": "none"}, "SESSION_UNKNOWN", 404, "session_id"),
        ({"prompt": "€"}, "UNKNOWN_CHARACTER", 400, "prompt"),
    ],
)
def test_a_refusal_of_the_server_has_its_status_and_names_the_field(gateway, fields, code, status, param):
    answer = gateway.post(COMPLETIONS, **{**TINY, **fields})
    assert (answer.json()["error"]["code"], *error_of(answer)) == (code, status, param)


def test_the_sdk_raises_the_class_of_the_status(sdk):
    with pytest.raises(openai.NotFoundError):
        sdk.completions.create(model="none", prompt=PROMPT, stream=True)


def test_a_client_that_goes_away_cancels_what_is_generated_for_it(server, gateway):
    before = server.handled("Generate", "CANCELLED")
    slow = {**TINY, "max_tokens_per_second": 5, "max_tokens": 1_000}
    with gateway.http.stream("POST", COMPLETIONS, json={**slow, "stream": True}) as answer:
        assert next(answer.iter_lines()).startswith("data: ")
    until(lambda: server.handled("Generate", "CANCELLED") == before + 1)
    body = json.dumps(slow).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE_S) as caller:
        caller.sendall(head.encode() + body)
        until(lambda: server.host("tiny").engine.load == 1)
    until(lambda: server.handled("Generate", "CANCELLED") == before + 2)
