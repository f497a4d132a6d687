// Plays notes with a plucked voice through WebAudio, and calls back when one begins to sound. It loads no samples.
"use strict";

const AHEAD_S = 1.5; // how far notes are scheduled ahead: a page in the background is woken once a second
const WAKE_MS = 200;
const LEAD_S = 0.1;
const RELEASE_S = 0.06;

export class Player {
  #context = null;
  #voice = null;
  #output = null;
  #timer = 0;
  #frame = 0;
  #mark = () => {};

  get playing() {
    return this.#output !== null;
  }

  // Plays notes {at, length, midi}, sorted, in seconds; `mark` gets the index of each as it begins, and -1 at the end.
  start(notes, mark) {
    this.stop();
    this.#mark = mark;
    this.#context ??= new AudioContext();
    this.#voice ??= this.#context.createPeriodicWave([0, 0, 0, 0, 0, 0], [0, 1, 0.45, 0.25, 0.12, 0.05]);
    const context = this.#context;
    context.resume();
    this.#output = new GainNode(context, { gain: 0.25 });
    this.#output.connect(context.destination);
    const begin = context.currentTime + LEAD_S;
    const end = notes.reduce((latest, note) => Math.max(latest, note.at + note.length), 0);
    let scheduled = 0, marked = -1;
    const schedule = () => {
      for (; scheduled < notes.length && begin + notes[scheduled].at < context.currentTime + AHEAD_S; scheduled += 1) {
        this.#pluck(notes[scheduled], begin + notes[scheduled].at);
      }
      if (context.currentTime > begin + end + RELEASE_S) this.stop();
    };
    const follow = () => {
      const now = context.currentTime - begin - (context.outputLatency || 0);
      const before = marked;
      while (marked + 1 < notes.length && notes[marked + 1].at <= now) marked += 1;
      if (marked !== before) mark(marked);
      this.#frame = requestAnimationFrame(follow);
    };
    schedule();
    this.#timer = setInterval(schedule, WAKE_MS);
    this.#frame = requestAnimationFrame(follow);
  }

  stop() {
    clearInterval(this.#timer);
    cancelAnimationFrame(this.#frame);
    this.#output?.disconnect();
    this.#output = null;
    this.#mark(-1);
    this.#mark = () => {};
  }

  #pluck({ length, midi }, at) {
    const until = at + Math.max(length, RELEASE_S);
    const tone = new OscillatorNode(this.#context, { frequency: 440 * 2 ** ((midi - 69) / 12) });
    const loudness = new GainNode(this.#context, { gain: 0 });
    tone.setPeriodicWave(this.#voice);
    loudness.gain.setValueAtTime(0, at);
    loudness.gain.linearRampToValueAtTime(1, at + 0.008);
    loudness.gain.setTargetAtTime(0.25, at + 0.008, 0.18);
    loudness.gain.setTargetAtTime(0, until - RELEASE_S / 2, RELEASE_S / 4);
    tone.connect(loudness).connect(this.#output);
    tone.start(at);
    tone.stop(until + RELEASE_S);
  }
}
