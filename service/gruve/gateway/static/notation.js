// A tune as notation that grows: the gateway reads the model's text as a tune, abcjs draws it, player.js plays it.
"use strict";

import { download } from "./kept.js";
import { Player } from "./player.js";

const BETWEEN_MS = 400; // from one drawing to the next
const NARROW_PX = 560; // below this a line has two bars instead of four
const FONTS = {
  titlefont: "system-ui,sans-serif 15 bold", composerfont: "system-ui,sans-serif 11 italic",
  infofont: "system-ui,sans-serif 11 italic", tempofont: "system-ui,sans-serif 11",
};
const MUSIC = /\nK:[^\n]*\n[^]*[A-Ga-g]/; // a header, and a note
const byId = (id) => document.getElementById(id);
const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
let library = null;

// abcjs, which is loaded when the first tune is drawn.
function abcjs() {
  library ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = "abcjs-basic-min.js";
    script.onload = () => resolve(window.ABCJS);
    script.onerror = () => {
      library = null;
      reject(new Error("the gateway does not answer"));
    };
    document.head.append(script);
  });
  return library;
}

async function read(request) {
  const body = JSON.stringify(request);
  const response = await fetch("v1/tune", { method: "POST", headers: { "content-type": "application/json" }, body });
  if (!response.ok) {
    const { error } = await response.json().catch(() => ({}));
    throw new Error((error && error.message) || `the gateway answered ${response.status}`);
  }
  return response;
}

export class Notation {
  #player = new Player();
  #origin = { title: "", remarks: [] };
  #wanted = null; // {text, key, bars_per_line}: what is to be drawn next
  #drawing = false;
  #drawn = null; // {request, visual, width}
  #writing = false;
  #tunes = 0; // begun so far: what was asked for an earlier one is not drawn

  // `say` gets what went wrong, in words.
  constructor(say) {
    this.say = say;
    byId("play").addEventListener("click", () => this.#playOrStop());
    byId("root").addEventListener("change", () => this.#wanted && this.#want(this.#wanted.text));
    byId("save-abc").addEventListener("click", () => this.#save("abc"));
    byId("save-midi").addEventListener("click", () => this.#save("midi"));
    byId("save-svg").addEventListener("click", () => this.#save("svg"));
    new ResizeObserver(() => this.#resized()).observe(byId("tune"));
  }

  // Begins a new tune.
  begin() {
    this.#player.stop();
    this.#origin = { title: "", remarks: [] };
    this.#wanted = this.#drawn = null;
    this.#writing = true;
    this.#tunes += 1;
    byId("tune").hidden = true;
    byId("paper").replaceChildren();
    this.#showTools();
  }

  // The title of the tune, and what it was made from.
  madeBy(title, ...remarks) {
    this.#origin = { title, remarks };
  }

  // Takes the text so far; draws it at the end of a bar.
  grow(text) {
    const bars = (of) => of.split("|").length;
    if (MUSIC.test(text) && bars(text) > bars(this.#wanted ? this.#wanted.text : "")) this.#want(text);
  }

  // Draws all of the text. `writing` says whether more will follow.
  settle(text, writing) {
    this.#writing = writing;
    if (MUSIC.test(text) && (!this.#wanted || text !== this.#wanted.text)) this.#want(text);
    this.#showTools();
  }

  #want(text) {
    this.#wanted = { text, key: byId("root").value, bars_per_line: this.#width() < NARROW_PX ? 2 : 4 };
    if (!this.#drawing) this.#drawUntilDone();
  }

  async #drawUntilDone() {
    this.#setDrawing(true);
    for (let last = null; this.#wanted && this.#wanted !== last; ) {
      if (last) await wait(BETWEEN_MS);
      if (!this.#wanted) break;
      last = this.#wanted;
      const request = { ...last, ...this.#origin }, tune = this.#tunes;
      try {
        const [library, answer] = await Promise.all([abcjs(), read(request).then((response) => response.json())]);
        if (tune === this.#tunes) this.#draw(library, request, answer);
      } catch (error) {
        if (this.#wanted === last && !this.#writing) this.say(`No notation: ${error.message}`);
      }
    }
    this.#setDrawing(false);
  }

  #setDrawing(drawing) {
    this.#drawing = drawing;
    byId("tune").setAttribute("aria-busy", String(drawing));
    this.#showTools();
  }

  #draw(library, request, { abc }) {
    this.#player.stop();
    byId("tune").hidden = false;
    const width = this.#width();
    const scale = width < NARROW_PX ? 0.85 : 1;
    const shown = abc.replace(/^N:.*\n/gm, ""); // how it was made stands in the file
    const [visual] = library.renderAbc("paper", shown, {
      add_classes: true,
      format: { ...FONTS, stretchlast: 0.6 },
      scale,
      staffwidth: width - 6,
      paddingtop: 0, paddingbottom: 8, paddingleft: 2, paddingright: 2,
      selectTypes: false,
    });
    this.#fitTitle(width - 6);
    this.#drawn = { request, visual, width };
    this.#showTools();
  }

  // Gives a title that is wider than the paper smaller letters.
  #fitTitle(width) {
    const title = byId("paper").querySelector(".abcjs-title");
    const wide = title ? title.getBoundingClientRect().width : 0;
    if (wide > width) title.setAttribute("font-size", (title.getAttribute("font-size") * width) / wide);
  }

  // Of the paper, in pixels; that of the section while there is none.
  #width() {
    return byId("tune").clientWidth || byId("output").clientWidth;
  }

  #resized() {
    const drawn = this.#drawn;
    if (drawn && !this.#player.playing && Math.abs(this.#width() - drawn.width) > 8) this.#want(drawn.request.text);
  }

  #showTools() {
    const idle = this.#drawn && !this.#writing && !this.#drawing;
    for (const id of ["play", "save-abc", "save-midi", "save-svg"]) byId(id).disabled = !idle;
    byId("play").textContent = this.#player.playing ? "Stop" : "Play";
  }

  // The notes in playing order, with repeats and endings: {at, length, midi, elements}, in seconds.
  sounding() {
    const { visual } = this.#drawn;
    visual.setUpAudio({});
    const second = 1000, whole = visual.millisecondsPerMeasure() / visual.getBarLength();
    return visual.setTiming().flatMap((event) => (event.midiPitches || []).map((note) => ({
      at: event.milliseconds / second,
      length: note.duration * whole / second,
      midi: note.pitch,
      elements: event.elements.flat(),
    })));
  }

  #playOrStop() {
    let marked = [];
    const notes = this.#player.playing ? [] : this.sounding();
    const mark = (index) => {
      marked.forEach((element) => element.classList.remove("sounding"));
      marked = index < 0 ? [] : notes[index].elements;
      marked.forEach((element) => element.classList.add("sounding"));
      this.#showTools();
    };
    if (notes.length) this.#player.start(notes, mark);
    else this.#player.stop();
    this.#showTools();
  }

  // The tune as ABC with four bars on a line, and what it was made from; null if there is none.
  async abc() {
    return this.#drawn ? (await (await this.#inForm("abc")).json()).abc : null;
  }

  get origin() {
    return this.#origin;
  }

  #inForm(format) {
    const { text, key } = this.#drawn.request;
    return read({ text, key, ...this.#origin, format });
  }

  // Downloads the tune as ABC, as a MIDI file, or as it is drawn.
  async #save(format) {
    try {
      if (format === "svg") this.#download(new Blob([this.#picture()], { type: "image/svg+xml" }), "svg");
      else if (format === "midi") this.#download(await (await this.#inForm("midi")).blob(), "mid");
      else this.#download(new Blob([await this.abc()], { type: "text/vnd.abc" }), "abc");
    } catch (error) {
      this.say(`No file: ${error.message}`);
    }
  }

  #download(file, ending) {
    download(file, `${(this.#origin.title || "tune").replace(/[^\w-]+/g, "-")}.${ending}`);
  }

  // The drawing as a file: black on white, whatever the page's colours are.
  #picture() {
    const svg = byId("paper").querySelector("svg").cloneNode(true);
    Object.assign(svg.style, { color: "#000", background: "#fff" });
    return new XMLSerializer().serializeToString(svg);
  }
}
