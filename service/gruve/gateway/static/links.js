// A link to a piece: what it was made from, behind the # of the page's address. With the seed, the model writes it again.
"use strict";

import { showRoot } from "./beginning.js";

const FIELDS = ["meter", "mode", "root", "beginning", "temperature", "length", "seed"];
const USUAL = ["root", "temperature", "length"]; // they stay as they are where a link does not say them
const ROOT = /^[A-G][b#]?$/;
const byId = (id) => document.getElementById(id);

// What the form says now, for `showInAddress`.
export function formFields() {
  const given = FIELDS.filter((id) => !byId(id).disabled && byId(id).value);
  return { model: byId("model").value, ...Object.fromEntries(given.map((id) => [id, byId(id).value])) };
}

// Puts the link into the address, from where it can be copied; without `fields`, takes the last one away.
export function showInAddress(fields) {
  history.replaceState(null, "", fields ? `#${new URLSearchParams(fields)}` : location.pathname + location.search);
}

// Fills the form with what the address says. Returns {digest} if it is a link to a piece, else null. Throws an Error for
// one that cannot be shown. `choose` shows what belongs to the model of that name.
export function readAddress(models, choose) {
  const fields = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  if (!fields.model || !fields.seed) return null;
  if (!models.some((each) => each.name === fields.model)) throw new Error(`the server has no model '${fields.model}'`);
  choose(fields.model);
  for (const id of FIELDS) {
    const field = byId(id), value = fields[id] || "";
    if (!value && USUAL.includes(id)) continue;
    if (id === "root" && ROOT.test(value)) showRoot(value);
    else field.value = value;
    if (field.value !== value || !field.checkValidity()) throw new Error(`its ${id} cannot be '${value}'`);
    field.dispatchEvent(new Event("input")); // a beginning may choose the meter and the mode
  }
  return { digest: fields.digest };
}
