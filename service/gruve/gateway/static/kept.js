// The pieces that the reader keeps. They are stored in this browser alone, and shown without asking a model again.
"use strict";

const KEY = "gruve.kept";
const byId = (id) => document.getElementById(id);

// A file of the browser's downloads.
export function download(file, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(file);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

export class Kept {
  #show;
  #say;
  #enabled = true;

  // `show` is called with the piece that the reader chooses: {title, text, given, abc, root, remarks}; `abc` is null for a
  // text. `say` gets what went wrong.
  constructor(show, say) {
    this.#show = show;
    this.#say = say;
    byId("save-book").addEventListener("click", () => this.#saveBook());
    addEventListener("storage", () => this.#list()); // another tab has changed them
    this.#list();
  }

  // Whether the reader can choose a piece now.
  enable(enabled) {
    this.#enabled = enabled;
    for (const open of document.querySelectorAll("#kept-pieces .title")) open.disabled = !enabled;
  }

  // Adds a piece at the top. Returns whether it is stored.
  add(piece) {
    return this.#store([piece, ...this.#without(piece)]);
  }

  #without(piece) {
    const same = JSON.stringify(piece);
    return this.#pieces().filter((each) => JSON.stringify(each) !== same);
  }

  #pieces() {
    try {
      const pieces = JSON.parse(localStorage.getItem(KEY) || "[]");
      return Array.isArray(pieces) ? pieces.filter((each) => each && typeof each.text === "string") : [];
    } catch { // a browser that stores nothing for pages, or something else wrote there
      return [];
    }
  }

  #store(pieces) {
    try {
      localStorage.setItem(KEY, JSON.stringify(pieces));
    } catch (error) {
      this.#say(error.name === "QuotaExceededError" ? "Not kept: the browser's storage for this page is full."
        : "Not kept: the browser stores nothing for this page.");
      return false;
    }
    this.#list();
    return true;
  }

  #list() {
    const pieces = this.#pieces();
    byId("kept").hidden = !pieces.length;
    byId("save-book").hidden = !pieces.some((each) => each.abc);
    byId("kept-pieces").replaceChildren(...pieces.map((piece) => {
      const item = document.createElement("li");
      const open = Object.assign(document.createElement("button"), { type: "button", className: "title", textContent: piece.title });
      const remove = Object.assign(document.createElement("button"), { type: "button", className: "quiet", textContent: "Remove" });
      open.disabled = !this.#enabled;
      remove.setAttribute("aria-label", `Remove ${piece.title}`);
      open.addEventListener("click", () => this.#show(piece));
      remove.addEventListener("click", () => this.#store(this.#without(piece)));
      item.append(open, remove);
      return item;
    }));
  }

  // All tunes as one ABC book, numbered from 1, the oldest first.
  #saveBook() {
    const tunes = this.#pieces().map((piece) => piece.abc).filter(Boolean).reverse();
    const book = tunes.map((abc, index) => abc.trim().replace(/^X:.*$/m, `X:${index + 1}`)).join("\n\n") + "\n";
    download(new Blob([book], { type: "text/vnd.abc" }), "tunes.abc");
  }
}
