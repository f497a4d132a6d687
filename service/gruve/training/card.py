"""Writes a model's card in the Hugging Face form: text from `card.toml`, figures from the results of `report.py`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from gruve.errors import InvalidField
from gruve.training.config import build_from_table, read_toml
from gruve.training.form_report import form_table
from gruve.training.loss_curve import PNG_FILE
from gruve.training.report import Results

PROTOCOL_NOTES = {
    "carried": "*carried*: the state is carried from the first character of the part to the last.",
    "cold": "*cold*: windows of 256 characters, each from the zero state after a start token and the character before "
    "the window.",
    "cold, as nanoGPT": "*cold, as nanoGPT*: the same windows without the start token, which nanoGPT does not have"
    "{published}.",
}
TINY_SHAKESPEARE = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
"""The sha256 of the one corpus that nanoGPT's published figure is about."""
PUBLISHED = " (1.4697, published, 10.65M parameters)"
PROTOCOLS_DIFFER = "Figures of different protocols cannot be compared."


@dataclasses.dataclass(frozen=True, slots=True)
class CardText:
    """The text of a card that cannot be measured."""

    title: str
    summary: str
    """The first paragraph, which `gruve models` also shows."""
    license: str
    """The licence of the weights, as an SPDX-like id in the hub's spelling."""
    license_note: str
    language: list[str]
    tags: list[str]
    datasets: list[str]
    corpus_path: str
    """The path of the corpus in the printed training command."""
    data: str
    limits: list[str]
    usage: str = ""
    """How to prompt the model. If empty, the card has no such section."""
    initial: str = "[initial.toml](initial.toml) trains without pointers"
    """How to train the model that the run began with, if it began with one; follows "which"."""
    transcribers: list[str] = dataclasses.field(default_factory=list)


def read_card_text(path: Path) -> CardText:
    """Reads a `card.toml`; raises `InvalidField`, with the file's name, on a key or a value it does not know."""
    return read_toml(path, _card_text)


def _card_text(fields: dict[str, Any]) -> CardText:
    text = build_from_table(CardText, fields, "")
    if not text.datasets:
        raise InvalidField("datasets", "is []; at least one is needed")
    return text


def render_card(text: CardText, results: Results, drawings: list[str]) -> str:
    """Returns the card. `drawings` are the file names of the samples that are drawn, as `drawing_name` makes them."""
    sections = [
        _front_matter(text, results),
        f"# {text.title}\n\n{text.summary.strip()}",
        _sizes(results),
        _data(text, results),
        _training(text, results),
        _losses(results),
        f"![Training and validation loss over the run]({PNG_FILE})",
    ]
    if text.usage:
        sections.insert(2, f"## Use\n\n{text.usage.strip()}")
    if "form" in results:
        sections.append(_form(results))
    if "quality" in results:
        sections.append(_quality(results))
    sections.append(_samples(results, drawings))
    if text.limits:
        sections.append("## Limits\n\n" + "\n".join(f"- {limit}" for limit in text.limits))
    return "\n\n".join(sections) + "\n"


def drawing_name(seed: int) -> str:
    """The file name of the drawing of the sample with that seed."""
    return f"sample-{seed}.svg"


def _front_matter(text: CardText, results: Results) -> str:
    def block(key: str, values: list[str]) -> list[str]:
        return [f"{key}:", *(f"- {value}" for value in values)] if values else []

    losses = results["losses"]
    headline = next((loss for loss in losses if loss["part"] == "test"), losses[0])
    name = f"nats per token ({headline['protocol']})"
    return "\n".join(
        [
            "---",
            f"license: {text.license}",
            *block("language", text.language),
            "library_name: gruve",
            "pipeline_tag: text-generation",
            *block("tags", text.tags),
            *block("datasets", text.datasets),
            "model-index:",
            f"- name: {results['model']['name']}",
            "  results:",
            "  - task: {type: text-generation}",
            f"    dataset: {{name: {text.datasets[0]}, type: {text.datasets[0]}, split: {headline['part']}}}",
            f"    metrics: [{{type: loss, value: {headline['nats']:.4f}, name: {name}}}]",
            "---",
        ]
    )


def _sizes(results: Results) -> str:
    m = results["model"]
    reset = f", reset gate {m['reset']} the recurrent product" if m["reset"] else ""
    return "\n".join(
        [
            "| | |",
            "|---|---|",
            f"| cell | {m['cell'].upper()}, {m['num_layers']} x {m['hidden_size']}{reset} |",
            *_pointer_rows(m),
            f"| vocabulary, embedding | {m['vocabulary_size']}, {m['embedding_size']} |",
            f"| parameters | {m['parameters']:,} |",
            f"| weights | {m['precision']}, {m['weight_bytes']:,} bytes |",
            f"| state of a session | {m['state_bytes']:,} bytes |",
            f"| digest | `{m['digest']}` |",
        ]
    )


def _pointer_rows(model: Results) -> list[str]:
    """The table rows about pointers and the default temperature, if the model has them."""
    rows = []
    if pointers := model.get("pointers"):
        texts = {
            "bars": "the same place {} bars ago",
            "followers": "the token after the last occurrence of the last {} tokens",
            "transposed": "the bar {} bars ago, moved along the scale",
        }
        kinds = [text.format(_listed(pointers[kind])) for kind, text in texts.items() if pointers.get(kind)]
        rows.append(f"| pointers | {'; '.join(kinds)} |")
    if model.get("default_temperature") is not None:
        rows.append(
            f"| default temperature | {model['default_temperature']} (used by the commands; the API's default is 1.0) |"
        )
    return rows


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:-1])) + " and " * (len(numbers) > 1) + str(numbers[-1])


def _data(text: CardText, results: Results) -> str:
    corpus = results["corpus"]
    parts = ", ".join(f"{part} {count:,}" for part, count in corpus["parts"].items())
    lines = ["## Data", "", text.data.strip(), "", f"{corpus['unit'].capitalize()}: {parts}."]
    if "tokens" in corpus:
        lines[-1] += " Tokens to predict: " + ", ".join(f"{part} {n:,}" for part, n in corpus["tokens"].items()) + "."
    lines += ["", f"sha256 of the corpus: `{corpus['sha256']}`."]
    if "transcribers" in results:
        named = ", ".join(f"{name} ({count:,})" for name, count in results["transcribers"])
        lines += ["", f"Transcribers, with the `Z:` fields that name each: {named}."]
    return "\n".join([*lines, "", text.license_note.strip()])


def _training(text: CardText, results: Results) -> str:
    t, name = results["training"], results["model"]["name"]
    initial = f" --initial runs/initial-{name}" if t.get("initial_digest") else ""
    command = f"gruve train --config models/{name}/training.toml --corpus {text.corpus_path}{initial} --out runs/{name}"
    r = t["regularisation"]
    dropouts = [f"{where} {r[f'dropout_{where}']}" for where in ("embedding", "between", "head", "weight")]
    falling = f", falling to {r['final_share']:.0%} of that over the second half" if r["final_share"] < 1 else ""
    took = f"{t['seconds'] / 60:.0f} minutes" if t["seconds"] >= 90 else f"{t['seconds']} seconds"
    sentences = [
        f"{t['steps']:,} updates, {t['tokens']:,} tokens, {took} on {t['threads']} CPU "
        f"thread{'s' if t['threads'] > 1 else ''}; seed {t['seed']}; "
        + ("bfloat16 products, fp32 sums and weights." if t["arithmetic"] == "bfloat16" else "fp32."),
        f"AdamW with a learning rate up to {t['learning_rate']}, {t['rows']} rows, warm-up and half a cosine, clipped "
        "gradients. The stored weights are a moving average.",
    ]
    if initial:
        sentences.append(
            f"The run began with the weights of the model `{t['initial_digest']}`, which {text.initial.strip()}."
        )
    if any(r[f"dropout_{where}"] for where in ("embedding", "between", "head", "weight")):
        sentences.append(f"Locked dropout and dropped recurrent weights: {', '.join(dropouts)}{falling}.")
    if t["objective"]["auxiliary_weight"]:
        weights = t["objective"]
        sentences.append(
            "In addition to the next token, the network learned its place in the bar, the part and the tuplet (weight "
            f"{weights['auxiliary_weight']}; this head is not stored), and not to generate tokens that never follow "
            f"in the training part (weight {weights['unlikelihood_weight']})."
        )
    if (form := t.get("form")) is not None:
        sentences.append(
            f"Every {form['every_steps']} updates it composed {form['composed']:,} tunes. Those whose form "
            f"or melody is rarer among them than in the training part became likelier (weight {form['weight']:g})."
        )
    files = "The configuration is [training.toml](training.toml), the loss curve [losses.csv](losses.csv)."
    return f"## Training\n\n```sh\n{command}\n```\n\n" + " ".join([*sentences, files])


def _losses(results: Results) -> str:
    lines = ["## Losses", "", "| part | protocol | scored | nats per token | bits per token |", "|---|---|---|---|---|"]
    lines += [
        f"| {loss['part']} | {loss['protocol']} | {loss['scored']:,} | {loss['nats']:.4f} | {loss['bits']:.4f} |"
        for loss in results["losses"]
    ]
    tunes = [f"{loss['part']} {loss['nats_per_tune']:.1f}" for loss in results["losses"] if "nats_per_tune" in loss]
    if tunes:
        lines += [
            "",
            f"Nats per tune: {', '.join(tunes)}. Every tune starts from the zero state; its end token is scored, the "
            "start token is not. Variants of one tune are in one part.",
        ]
    else:
        measured = {loss["protocol"] for loss in results["losses"]}
        published = PUBLISHED if results["corpus"]["sha256"] == TINY_SHAKESPEARE else ""
        explained = [PROTOCOL_NOTES[p].format(published=published) for p in PROTOCOL_NOTES if p in measured]
        lines += ["", " ".join([*explained, PROTOCOLS_DIFFER])]
    r, int8 = results["rounding"], results["int8"]
    change = 100 * (int8["nats_int8"] / int8["nats_float32"] - 1)
    lines += [
        "",
        f"Rounding the weights to {results['model']['precision']} changed the first figure from {r['nats_before']:.6f} "
        f"to {r['nats_after']:.6f}, by {100 * r['relative']:.4f}%. A server computes in int8, which changes the loss "
        f"of {int8['measured_on']} from {int8['nats_float32']:.6f} to {int8['nats_int8']:.6f}, by {change:+.3f}%.",
    ]
    return "\n".join(lines)


def _form(results: Results) -> str:
    corpus, models = results["form"]["corpus"], results["form"]["models"]
    titles = ["corpus", *(f"temperature {figures['temperature']}" for figures in models)]
    lines = [
        "## Form",
        "",
        f"{models[0]['tunes']:,} generated tunes, compared with the {corpus['tunes']:,} of the training part. The "
        f"openings are the first four bars of {corpus['openings']} tunes of validation and test, continued once each; "
        "for them, the corpus column has the figures of the original tunes.",
        "",
        "| | " + " | ".join(titles) + " |",
        "|---" * (len(titles) + 1) + "|",
        *("| " + " | ".join(row) + " |" for row in form_table(corpus, models)),
    ]
    return "\n".join(lines)


def _quality(results: Results) -> str:
    q = results["quality"]
    midi = "not installed" if q["abc2midi_clean"] is None else f"{q['abc2midi_clean']:.1%}"
    rows = {
        "all bars right": f"{q['all_bars_right']:.1%}",
        "bars right, of those between single bar lines": f"{q['interior_bars_right']:.2%}",
        "parse": f"{q['parsed']:.1%}",
        "abc2midi: no error or warning": midi,
        "verovio: empty log": f"{q['verovio_clean']:.1%}",
        "both": f"{q['clean']:.1%}",
        "end reached within 1,024 tokens": f"{q['ended']:.1%}",
        "distinct": f"{q['distinct']:.1%}",
        "copies of a tune of the corpus": f"{q['exact_copies']}",
        "runs of 16 tokens found in the training part": f"{q['copied_runs']:.1%}",
        "longest run found in the training part": f"{q['longest_copied_run']} tokens",
        "mean length": f"{q['mean_tokens']:.0f} tokens",
    }
    head = (
        f"## Generated tunes\n\n{q['count']:,} tunes at temperature {q['temperature']}, seeds {q['seed']} to "
        f"{q['seed'] + q['count'] - 1}, without constraints or selection.\n\n| | |\n|---|---|\n"
    )
    return head + "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def _samples(results: Results, drawings: list[str]) -> str:
    lines = ["## Samples", "", "The first seeds, without selection."]
    for sample in results["samples"]:
        lines += ["", f"Temperature {sample['temperature']}, seed {sample['seed']}:", ""]
        lines += ["```", sample["text"].strip("\n"), "```"]
        if (name := drawing_name(sample["seed"])) in drawings:
            lines += ["", f"![The tune of seed {sample['seed']} in notation]({name})"]
    return "\n".join(lines)
