// The answers: words as they arrive, and the frame behind each word.

import { byId, make, median, readableAge } from "/page/elements.js";
import { pictureOf } from "/page/pictures.js";

let shownWord = null;
const sources = new WeakMap(); // word or thumbnail -> { token, frame }

/** A frame behind an answer. It is fetched with its first word, because the FIFO drops it soon. */
class AnswerFrame {
  constructor(camera, token, odd) {
    this.camera = camera;
    this.words = [];
    this.thumbnail = make("img", odd ? "odd" : "");
    this.thumbnail.alt = "";
    this.thumbnail.setAttribute("aria-hidden", "true");
    sources.set(this.thumbnail, { token, frame: this });
    this.ready = this.load(token.frame_id);
  }

  async load(id) {
    const blob = await pictureOf(this.camera, id);
    if (blob) this.thumbnail.src = URL.createObjectURL(blob);
    else this.thumbnail.remove();
  }
}

/** The elements to highlight: a word and its frame's thumbnail, or a thumbnail and all its words. */
function related(shown) {
  const { frame } = sources.get(shown);
  return shown === frame.thumbnail ? [shown, ...frame.words] : [shown, frame.thumbnail];
}

/** Shows the frame behind a word next to it, inside the window. */
async function showFrame(word) {
  if (shownWord === word) return;
  hideFrame();
  shownWord = word;
  for (const each of related(word)) each.classList.add("shown");
  word.setAttribute("aria-describedby", "popover");
  const { token, frame } = sources.get(word);
  const captured = new Date(token.captured_s * 1000);
  const time = captured.toLocaleTimeString([], { hour12: false }) + "." + String(captured.getMilliseconds()).padStart(3, "0");
  byId("popover-age").textContent = `${readableAge(token.frame_age_ms)} old when spoken`;
  byId("popover-stale").hidden = !token.stale;
  byId("popover-time").textContent = `captured ${time} · spoken ${token.time_s.toFixed(1)} s after the question`;
  await frame.ready;
  if (shownWord !== word) return;
  const url = frame.thumbnail.src;
  const picture = byId("popover-picture");
  picture.hidden = !url;
  byId("popover-missing").hidden = Boolean(url);
  if (url) {
    picture.src = url;
    picture.dataset.frame = token.frame_id;
    picture.alt = `Frame of ${frame.camera}, captured ${time}`;
  }
  byId("popover").hidden = false;
  placePopover(word);
}

function placePopover(word) {
  const box = word.getClientRects()[0];
  const popover = byId("popover");
  const { width, height } = popover.getBoundingClientRect();
  const left = Math.min(Math.max(8, box.left + box.width / 2 - width / 2), document.documentElement.clientWidth - width - 8);
  const above = box.top - height - 8;
  popover.style.left = `${left}px`;
  popover.style.top = `${above > 8 ? above : Math.min(box.bottom + 8, innerHeight - height - 8)}px`;
}

function hideFrame() {
  for (const each of shownWord ? related(shownWord) : []) each.classList.remove("shown");
  shownWord?.removeAttribute("aria-describedby");
  shownWord = null;
  byId("popover").hidden = true;
}

/** Shows a word's frame on pointing, tapping and keyboard focus. */
export function listenToWords(turns) {
  const wordAt = (event) => event.target.closest?.(".word, .strip img");
  turns.addEventListener("pointerover", (event) => wordAt(event) && showFrame(wordAt(event)));
  turns.addEventListener("pointerout", (event) => event.pointerType === "mouse" && wordAt(event) && hideFrame());
  turns.addEventListener("focusin", (event) => wordAt(event) && showFrame(wordAt(event)));
  turns.addEventListener("focusout", (event) => wordAt(event) && hideFrame());
  turns.addEventListener("scroll", hideFrame, { passive: true });
  document.addEventListener("pointerdown", (event) => wordAt(event) || hideFrame());
  document.addEventListener("keydown", (event) => event.key === "Escape" && hideFrame());
  turns.addEventListener("keydown", (event) => {
    const step = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
    const next = step && wordAt(event)?.[step];
    if (!next) return;
    event.preventDefault();
    wordAt(event).tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
}

/** One answer on the page. */
export class AnswerView {
  constructor(camera, context) {
    this.camera = camera;
    this.ages = [];
    this.text = "";
    this.root = make("article", "answer");
    this.words = make("p", "words running");
    this.strip = make("div", "strip");
    this.summary = make("p", "sum");
    this.startedMs = performance.now();
    this.root.append(make("p", "from", `${camera} · ${context}`), this.words, this.strip, this.summary);
  }

  /** A token that starts with a space starts a word. Other tokens continue the last word. */
  add(token) {
    this.text += token.text;
    this.ages.push(token.frame_age_ms);
    if (!token.text) return;
    const last = this.words.lastElementChild;
    if (last && !/^\s/.test(token.text)) {
      last.textContent += token.text;
      return;
    }
    const word = make("span", "word", token.text.trimStart());
    if (last) this.words.append(token.text.match(/^\s*/)[0]);
    if (token.frame_id !== this.frameId) this.startFrame(token);
    word.classList.toggle("odd", this.odd);
    word.classList.toggle("stale", token.stale);
    word.tabIndex = last ? -1 : 0;
    word.setAttribute("role", "button");
    sources.set(word, { token, frame: this.frame });
    this.frame.words.push(word);
    this.words.append(word);
  }

  /** The token comes from another frame than the last word: the underline's colour changes. */
  startFrame(token) {
    this.frameId = token.frame_id;
    this.odd = !this.odd;
    this.frame = new AnswerFrame(this.camera, token, this.odd);
    this.strip.append(this.frame.thumbnail);
    this.strip.scrollLeft = this.strip.scrollWidth;
  }

  addAll(tokens) {
    for (const token of tokens) this.add(token);
    const age = median(this.ages);
    byId("age").textContent = readableAge(age);
    const seconds = (performance.now() - this.startedMs) / 1000;
    this.summary.textContent = `frame age ${readableAge(age)} · ${this.ages.length} tokens · ${seconds.toFixed(1)} s`;
  }

  end(problem = "") {
    this.words.classList.remove("running");
    if (problem) {
      const line = make("p", "problem", problem);
      line.setAttribute("role", "alert");
      this.root.append(line);
    }
    byId("spoken").textContent = this.text;
  }
}
