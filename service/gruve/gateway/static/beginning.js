// The beginning of a tune: the meter and the mode that were chosen, and ABC in any key, as the model reads them.
"use strict";

const NEVER = -100; // the lowest bias that there is
const OWN = { meter: /^\s*M:|\[M:/m, mode: /^\s*K:|\[K:/m }; // what the text says is not chosen
const byId = (id) => document.getElementById(id);
const text = byId("beginning"), hint = byId("beginning-hint"), usualHint = hint.textContent;

text.addEventListener("input", () => {
  for (const [id, own] of Object.entries(OWN)) byId(id).disabled = own.test(text.value);
});

// Shows what can be chosen for a tune, or for a text.
export function showChoices(tunes) {
  byId("tune-choices").hidden = !tunes;
  text.placeholder = tunes ? "|: G2E EDC|" : "";
  hint.textContent = tunes ? "ABC notation, in any key. The model goes on from here. It may be empty." : usualHint;
  byId("token-hint").textContent = `A token is ${tunes ? "a note, a length or a bar line" : "a character"}.`;
}

// What the model's request begins with: {text, bias, title}, each absent if there is nothing to say. `post` and `call`
// are the page's; what they throw is thrown.
export async function readBeginning(model, post, call) {
  const [meter, mode] = ["meter", "mode"].map((id) => (byId(id).disabled ? "" : byId(id).value));
  const [number] = text.value.match(/^\s*X:[^\n]*\n/) || [""]; // a tune begins with it
  const abc = number + (meter && `M:${meter}\n`) + (mode && `K:C${mode}\n`) + text.value.slice(number.length);
  if (!abc.trim()) return {};
  const response = await post("v1/tune/beginning", "application/json", JSON.stringify({ text: abc }));
  const found = await response.json();
  if (found.notes.length) hint.textContent = found.notes.map((note) => `${note[0].toUpperCase()}${note.slice(1)}.`).join(" ");
  if (found.root && byId("mode").disabled) showRoot(found.root);
  const unsaid = found.mode && !found.text.includes("K:"); // there is no meter, which would come before
  return { text: found.text, title: found.title, bias: unsaid ? await onlyMode(model, found.mode, call) : undefined };
}

// Chooses the key that the notation is shown in.
export function showRoot(root) {
  const roots = byId("root");
  if (![...roots.options].some((option) => option.value === root)) roots.add(new Option(root));
  roots.value = root;
}

// The biases that leave of the model's modes the one that is wanted.
async function onlyMode(model, wanted, call) {
  const biases = {};
  let known = false;
  for (const { value: mode } of byId("mode").options) {
    if (!mode) continue;
    try {
      const { tokenIds } = await call("gruve.v1.ModelService/Tokenize", { model, text: `K:C${mode}\n` });
      if (mode === wanted) known = true;
      else biases[tokenIds[0]] = NEVER;
    } catch (error) {
      if (error.code !== "invalid_argument") throw error; // otherwise the model has no such mode
    }
  }
  if (!known) throw Object.assign(new Error(`${model} does not write this mode`), { code: "invalid_argument" });
  return biases;
}
