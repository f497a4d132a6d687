// The page: starts a conversation with StartConversation and steers it with Control, both in Connect's JSON form.
"use strict";

import { readBeginning, showChoices, showRoot } from "./beginning.js";
import { Kept } from "./kept.js";
import { formFields, readAddress, showInAddress } from "./links.js";
import { Notation } from "./notation.js";

const GENERATIONS = "gruve.v1.GenerationService";
const RETRIES = 5; // in a row, after a lost connection; the waits double from 0.5 s
const ENDS = {
  FINISH_REASON_LENGTH: "it reached the maximum of tokens and may be unfinished",
  FINISH_REASON_END_OF_SEQUENCE: "the model ended it",
  FINISH_REASON_CANCELLED: "you stopped it",
};

const byId = (id) => document.getElementById(id);
const form = byId("form"), model = byId("model"), output = byId("output"), given = byId("given"), written = byId("written");
export const notation = new Notation((text) => say(text, true));
const buttons = { write: byId("write"), pause: byId("pause"), stop: byId("stop"), copy: byId("copy"), link: byId("copy-link"), keep: byId("keep"), edit: byId("edit") };
const kept = new Kept(showKept, (text) => say(text, true));
let models = [];
let shown = null; // the piece that the page shows when nothing is being written: {title, fields}, without fields if steered
let run = null; // the generation that is being written: {id, session, seed, title, fields, beginning, next, paused, stopped, abort}

// ---- calls

class CallFailed extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

function headers(contentType) {
  const key = byId("key").value.trim();
  return { "content-type": contentType, ...(key && { authorization: `Bearer ${key}` }) };
}

// What an answer that is no success says: Connect's error, or that of another of the gateway's forms.
async function failureOf(response) {
  const body = await response.json().catch(() => ({}));
  const message = body.message || body.error?.message || `the gateway answered ${response.status}`;
  return new CallFailed(body.code || String(response.status), message);
}

async function post(path, contentType, body, signal) {
  let response;
  try {
    response = await fetch(path, { method: "POST", headers: headers(contentType), body, signal });
  } catch (error) {
    throw signal && signal.aborted ? error : new CallFailed("unavailable", "the gateway does not answer");
  }
  if (!response.ok) throw await failureOf(response);
  return response;
}

const call = async (method, request) => (await post(method, "application/json", JSON.stringify(request))).json();

// The messages of a stream. Each has 5 bytes before it: flags (2 marks the end, which may hold an error) and its size.
async function* stream(method, request, signal) {
  const message = new TextEncoder().encode(JSON.stringify(request));
  const body = new Uint8Array(5 + message.length);
  new DataView(body.buffer).setUint32(1, message.length);
  body.set(message, 5);
  const response = await post(method, "application/connect+json", body, signal);
  const reader = response.body.getReader();
  let held = new Uint8Array(0);
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      throw signal.aborted ? error : new CallFailed("unavailable", "the connection was lost");
    });
    if (done) throw new CallFailed("unavailable", "the connection was lost");
    const joined = new Uint8Array(held.length + value.length);
    joined.set(held);
    joined.set(value, held.length);
    held = joined;
    while (held.length >= 5) {
      const size = new DataView(held.buffer, held.byteOffset).getUint32(1);
      if (held.length < 5 + size) break;
      const parsed = JSON.parse(new TextDecoder().decode(held.subarray(5, 5 + size)));
      if (held[0] & 2) {
        if (parsed.error) throw new CallFailed(parsed.error.code, parsed.error.message || parsed.error.code);
        return;
      }
      held = held.subarray(5 + size);
      yield parsed;
    }
  }
}

// ---- what the page shows

function say(text, wrong = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("wrong", wrong);
}

function sayFailed(error) {
  if (error.code === "unauthenticated") {
    byId("access").open = true;
    byId("key").focus();
    say(byId("key").value.trim() ? "The server refuses this API key." : "The server asks for an API key.", true);
  } else {
    say(`${error.code ? "Failed" : "The page failed"}: ${error.message}`, true);
  }
}

function showButtons() {
  buttons.write.disabled = Boolean(run) || !models.length;
  buttons.pause.disabled = !(run && run.id);
  buttons.stop.disabled = !run;
  buttons.pause.textContent = run && run.paused ? "Continue" : "Pause";
  buttons.copy.disabled = !output.textContent;
  buttons.keep.disabled = buttons.edit.disabled = !shown;
  kept.enable(!run);
  buttons.link.disabled = !(run || shown || {}).fields;
}

function add(element, text) {
  const follows = output.scrollHeight - output.scrollTop - output.clientHeight < 40;
  element.append(text);
  if (follows) output.scrollTop = output.scrollHeight;
}

async function loadModels() {
  try {
    const listed = await call("gruve.v1.ModelService/ListModels", {});
    models = (listed.models || []).filter((each) => each.state === "MODEL_STATE_SERVING");
    model.replaceChildren(...models.map((each) => new Option(each.name, each.name)));
    model.disabled = !models.length;
    say(models.length ? "Press Write to begin." : "The server has no model.", !models.length);
    showModel();
    if (models.length) openLink();
  } catch (error) {
    sayFailed(error);
    if (error.code === "unavailable") {
      say("No server answers. Trying again …", true);
      setTimeout(loadModels, 3000);
    }
  }
  showButtons();
}

function chosenModel() {
  return models.find((each) => each.name === model.value);
}

function showModel() {
  const chosen = chosenModel();
  if (!chosen) return;
  const tunes = chosen.tokenizer === "abc";
  byId("about").textContent = chosen.description || "";
  byId("temperature").value = Number((chosen.defaultTemperature ?? 1).toFixed(3));
  showChoices(tunes);
  byId("output-heading").textContent = tunes ? "ABC in C, as the model writes it" : "Text";
}

// ---- writing

function request({ text, bias }) {
  const field = (id) => byId(id).value.trim();
  const sampling = { temperature: Number(field("temperature") || 1) };
  if (field("seed")) sampling.seed = field("seed");
  if (bias) sampling.logitBias = { biases: bias };
  return {
    newSession: { model: model.value, idleTtl: "3600s" },
    generationId: crypto.getRandomValues(new Uint32Array(4)).join("-"),
    maxTokens: Number(field("length")),
    echo: true,
    sampling,
    ...(text && { text }),
    ...(field("rate") && { maxTokensPerSecond: Number(field("rate")) }),
  };
}

async function write(digest = "") {
  run = { id: "", session: "", next: 0, paused: false, stopped: false, abort: new AbortController() };
  const fields = formFields();
  shown = null;
  showLink(null);
  run.writesTunes = chosenModel().tokenizer === "abc";
  showChoices(run.writesTunes);
  notation.begin();
  given.textContent = written.textContent = "";
  say("Waiting for the server …");
  showButtons();
  if (byId("result").getBoundingClientRect().bottom > innerHeight) byId("result").scrollIntoView();
  try {
    const { title, ...beginning } = run.writesTunes ? await readBeginning(model.value, post, call) : { text: byId("beginning").value };
    const generate = request(beginning);
    Object.assign(run, { title, beginning: generate.text || "", wanted: { fields, digest } });
    for (let failed = 0; ; failed += 1) {
      const before = run.next;
      try {
        await follow(generate);
        break;
      } catch (error) {
        failed = run.next > before ? 0 : failed;
        // Without the session's id the generation cannot be found again.
        if (!["unavailable", "canceled"].includes(error.code) || !run.session || run.stopped || failed >= RETRIES) throw error;
        say("The connection was lost. Trying again …", true);
        await new Promise((resolve) => setTimeout(resolve, 500 * 2 ** failed));
        delete generate.newSession;
        Object.assign(generate, { sessionId: run.session, fromPosition: String(run.next) });
      }
    }
  } catch (error) {
    if (run.stopped) say("Stopped.");
    else sayFailed(error);
  }
  if (run.writesTunes) notation.settle(output.textContent, false);
  if (output.textContent) shown = { title: run.title, fields: run.fields };
  run = null;
  showButtons();
}

// Writes the piece that the page's address links to, if it does.
function openLink() {
  try {
    const link = readAddress(models, (name) => {
      model.value = name;
      showModel();
    });
    if (link) write(link.digest);
  } catch (error) {
    say(`The link cannot be followed: ${error.message}.`, true);
  }
}

// The link to what the page shows stands in the address, unless its temperature was changed while it was written.
function showLink(fields) {
  if (run || shown) (run || shown).fields = fields;
  showInAddress(fields);
  showButtons();
}

// Shows text: first the beginning, as far as the model has read what was typed, then what it wrote.
function show(text) {
  const left = run.beginning.length - given.textContent.length;
  let own = text.slice(0, Math.max(0, left));
  if (!run.beginning.startsWith(given.textContent + own)) {
    run.beginning = given.textContent;
    own = "";
  }
  buttons.copy.disabled = false;
  add(given, own);
  add(written, text.slice(own.length));
  if (run.writesTunes) notation.grow(output.textContent);
}

// What a tune was made from, as `gruve generate` writes it into a file.
function originOf({ model: name, modelDigest, sampling }) {
  return [
    `made by gruve with ${name}: seed ${sampling.seed}, temperature ${Number((sampling.temperature ?? 1).toFixed(3))}`,
    `model digest ${modelDigest}`,
  ];
}

// Shows one call of the stream, to the end of the generation.
async function follow(generate) {
  for await (const message of stream(`${GENERATIONS}/StartConversation`, { generate }, run.abort.signal)) {
    if (!message.tokens) continue;
    const { position, tokenIds = [], text = "", start, end } = message.tokens;
    if (start) {
      Object.assign(run, { id: start.generationId, session: start.sessionId, seed: start.sampling.seed });
      run.title ||= `${start.model}, seed ${run.seed}`;
      notation.madeBy(run.title, ...originOf(start));
      if (run.wanted) {
        const { fields, digest } = run.wanted;
        showLink({ ...fields, seed: run.seed, digest: start.modelDigest });
        run.changed = digest && digest !== start.modelDigest ? " The model has changed since the link was made." : "";
        run.wanted = null;
      }
      if (run.paused) control({ pause: {} }); // a new call does not know of it
      say(`${run.paused ? "Paused" : "Writing"}; seed ${run.seed}`);
      showButtons();
    }
    run.next = Number(position) + tokenIds.length;
    if (text) show(text);
    if (end) {
      const { generatedTokens = 0 } = end.usage || {};
      say(`Done: ${ENDS[end.finishReason] || end.finishReason}; ${generatedTokens} ${generatedTokens === 1 ? "token" : "tokens"}, seed ${run.seed}.${run.changed}`);
      if (run.stopped && run.fields) showLink({ ...run.fields, length: generatedTokens });
    }
  }
}

async function control(what) {
  try {
    await call(`${GENERATIONS}/Control`, { generationId: run.id, sessionId: run.session, control: what });
    return true;
  } catch (error) {
    if (run) sayFailed(error);
    return false;
  }
}

async function pauseOrContinue() {
  const paused = !run.paused;
  if (!(await control(paused ? { pause: {} } : { resume: {} })) || !run) return;
  run.paused = paused;
  say(`${paused ? "Paused" : "Writing"}; seed ${run.seed}`);
  if (run.writesTunes) notation.settle(output.textContent, !paused);
  showButtons();
}

async function stop() {
  run.stopped = true;
  if (!run.id || !(await control({ stop: {} }))) run && run.abort.abort();
}

async function copy() {
  try {
    await navigator.clipboard.writeText(output.textContent);
    say("Copied.");
  } catch { // the clipboard belongs to pages of https and of this machine alone
    getSelection().selectAllChildren(output);
    say("Selected; copy it from here.");
  }
}

async function copyLink() {
  try {
    await navigator.clipboard.writeText(location.href);
    say("The link is copied.");
  } catch {
    say("Copy the link from the page's address.");
  }
}

// Puts the piece into the field of the beginning; a tune as it is shown, in its key.
async function edit() {
  try {
    const abc = await notation.abc();
    const beginning = byId("beginning");
    beginning.value = abc ? abc.trim().replace(/^N:.*\n/gm, "") : output.textContent;
    beginning.dispatchEvent(new Event("input"));
    beginning.focus();
    beginning.setSelectionRange(beginning.value.length, beginning.value.length);
    beginning.scrollTop = beginning.scrollHeight;
    say("It is the beginning now. Change it, and write.");
  } catch (error) {
    say(`Not done: ${error.message}`, true);
  }
}

async function keep() {
  try {
    const [abc, { remarks }] = [await notation.abc(), notation.origin];
    const piece = { ...shown, text: output.textContent, given: given.textContent.length, abc, root: byId("root").value, remarks };
    if (kept.add(piece)) say("Kept in this browser.");
  } catch (error) {
    say(`Not kept: ${error.message}`, true);
  }
}

// Shows a kept piece, as it was when it was kept.
function showKept({ title, fields, text, given: length, abc, root, remarks }) {
  shown = { title, fields };
  [given.textContent, written.textContent] = [text.slice(0, length), text.slice(length)];
  byId("output-heading").textContent = abc ? "ABC notation" : "Text";
  notation.begin();
  if (abc) {
    showRoot(root);
    notation.madeBy(title, ...remarks);
  }
  notation.settle(abc ? text : "", false);
  say(title);
  showLink(fields);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!run) write();
});
buttons.pause.addEventListener("click", pauseOrContinue);
buttons.stop.addEventListener("click", stop);
buttons.copy.addEventListener("click", copy);
buttons.link.addEventListener("click", copyLink);
buttons.keep.addEventListener("click", keep);
buttons.edit.addEventListener("click", edit);
addEventListener("hashchange", () => (run ? location.reload() : openLink()));
model.addEventListener("change", showModel);
byId("root").addEventListener("change", (event) => {
  const { fields } = run || shown || {};
  if (fields) showLink({ ...fields, root: event.target.value });
});
byId("key").addEventListener("change", () => { if (!models.length) loadModels(); });
byId("seed").addEventListener("input", ({ target }) => target.setCustomValidity(
  /^[0-9]+$/.test(target.value) && BigInt(target.value) >> 64n ? "A seed is at most 18446744073709551615." : ""));
byId("temperature").addEventListener("change", (event) => {
  const temperature = event.target.value.trim();
  if (run && run.id && temperature && event.target.checkValidity()) {
    control({ changeParameters: { sampling: { temperature: Number(temperature) } } });
    showLink(null);
  }
});
loadModels();
