// The page: live pictures, a chat, and behind each word the frame it was spoken from. Plain JavaScript, no build step.

const KEPT_FRAMES = 96; // of each camera: a FIFO forgets within seconds, words are looked at later
const HISTORY_TURNS = 1; // earlier question and answer sent along
const CAMERAS_EVERY_MS = 2000;
const RETRY_MS = 1000;
const SUGGESTIONS = ["Tell me what happens from now on.", "What do you see now?", "Keep counting the things."];

const byId = (id) => document.getElementById(id);
const make = (tag, className, text = "") =>
  Object.assign(document.createElement(tag), { className, textContent: text });
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** The value that half of the values do not exceed. */
function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted.length ? sorted[Math.ceil(sorted.length / 2) - 1] : null;
}

function readableAge(ms) {
  if (ms === null) return "–";
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 10000 ? 1 : 0)} s`;
}

// ---- Pictures: one connection for all cameras, since browsers allow six to a host -----------------------------

/** The newest frames of a camera as blobs, by frame id. */
class Frames {
  constructor() {
    this.blobs = new Map();
  }

  add(id, blob) {
    this.blobs.set(id, blob);
    if (this.blobs.size > KEPT_FRAMES) this.blobs.delete(this.blobs.keys().next().value);
  }
}

const frames = new Map(); // camera -> Frames

/** That very frame: as it came by, or from the gateway while it still has it. Null when it is gone. */
async function pictureOf(camera, id) {
  const seen = frames.get(camera)?.blobs.get(id);
  if (seen) return seen;
  const answer = await fetch(`/v1/cameras/${encodeURIComponent(camera)}/frame.jpg?frame=${id}`).catch(() => null);
  return answer?.ok ? answer.blob() : null;
}

/** Calls `take(headers, body)` for each part of a multipart stream whose parts tell their length. */
async function readParts(stream, take) {
  const decoder = new TextDecoder("latin1");
  let data = new Uint8Array();
  for (const reader = stream.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) return;
    const joined = new Uint8Array(data.length + value.length);
    joined.set(data);
    joined.set(value, data.length);
    data = joined;
    for (;;) {
      const head = decoder.decode(data.subarray(0, 1024));
      const end = head.indexOf("\r\n\r\n");
      const headers = Object.fromEntries([...head.slice(0, Math.max(end, 0)).matchAll(/^([\w-]+): (.*?)\r?$/gm)]
        .map(([, name, text]) => [name.toLowerCase(), text]));
      const next = end + 4 + Number(headers["content-length"]);
      if (end < 0 || data.length < next) break;
      take(headers, data.slice(end + 4, next));
      data = data.slice(next);
    }
  }
}

function showPart(headers, body) {
  const camera = decodeURIComponent(headers["x-camera"]);
  const blob = new Blob([body], { type: "image/jpeg" });
  if (!frames.has(camera)) frames.set(camera, new Frames());
  frames.get(camera).add(headers["x-frame-id"], blob);
  const picture = tiles.get(camera)?.querySelector("img");
  if (!picture) return;
  const old = picture.src;
  picture.src = URL.createObjectURL(blob);
  picture.hidden = false;
  picture.dataset.frame = headers["x-frame-id"];
  if (old) URL.revokeObjectURL(old);
}

/** Watch for as long as the page is looked at. */
async function watchPictures() {
  for (;;) {
    if (document.hidden) await new Promise((seen) => document.addEventListener("visibilitychange", seen, { once: true }));
    const leave = new AbortController();
    const hide = () => document.hidden && leave.abort();
    document.addEventListener("visibilitychange", hide);
    try {
      const answer = await fetch("/v1/pictures", { signal: leave.signal });
      if (answer.ok) await readParts(answer.body, showPart);
    } catch {
      // The gateway is away or the page is hidden: try again below.
    }
    document.removeEventListener("visibilitychange", hide);
    await sleep(RETRY_MS);
  }
}

// ---- Cameras ---------------------------------------------------------------------------------------------------

const tiles = new Map(); // camera -> its button
let chosen = null;

function choose(camera) {
  chosen = camera;
  for (const [name, tile] of tiles) {
    tile.setAttribute("aria-checked", String(name === camera));
    tile.tabIndex = name === camera ? 0 : -1;
  }
  byId("asked-camera").textContent = camera ?? "a camera";
}

/** Chosen by a person: on a narrow window the row of cameras moves to it. */
function chooseAndShow(camera) {
  choose(camera);
  tiles.get(camera).scrollIntoView({ block: "nearest", inline: "center", behavior: "smooth" });
}

function addTile(camera) {
  const tile = make("button", "camera");
  tile.type = "button";
  tile.setAttribute("role", "radio");
  tile.setAttribute("aria-label", `Camera ${camera}`);
  const picture = make("img", "");
  picture.alt = "";
  picture.hidden = true;
  tile.append(picture, make("span", "facts"), make("span", "name", camera));
  tile.addEventListener("click", () => chooseAndShow(camera));
  tile.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const names = [...tiles.keys()];
    chooseAndShow(names[(names.indexOf(camera) + step + names.length) % names.length]);
    tiles.get(chosen).focus();
  });
  tiles.set(camera, tile);
  byId("cameras").append(tile);
}

function showCameras(cameras) {
  const names = cameras.map((camera) => camera.id);
  for (const name of [...tiles.keys()].filter((name) => !names.includes(name))) {
    tiles.get(name).remove();
    tiles.delete(name);
    frames.delete(name);
  }
  byId("cameras").querySelector(".empty")?.remove();
  for (const camera of cameras) {
    if (!tiles.has(camera.id)) addTile(camera.id);
    const tile = tiles.get(camera.id);
    const live = camera.state === "live";
    tile.classList.toggle("silent", !live);
    const facts = live ? `${camera.fps.toFixed(1)} fps` : `silent for ${readableAge(camera.newest_frame_age_ms)}`;
    tile.querySelector(".facts").textContent = facts;
    tile.title = `${camera.num_frames} of ${camera.capacity} frames kept`;
  }
  if (!names.includes(chosen)) choose(names[0] ?? null);
  else choose(chosen);
  if (!names.length) {
    const empty = make("p", "empty", "No camera yet. Publish one: ");
    empty.append(make("code", "", "streamchat publish clip.mp4 --camera front-door"));
    byId("cameras").append(empty);
  }
}

async function watchCameras() {
  for (; ; await sleep(CAMERAS_EVERY_MS)) {
    if (document.hidden) continue;
    const answer = await fetch("/v1/cameras").catch(() => null);
    const body = await answer?.json().catch(() => null);
    const problem = body?.error?.message ?? (answer ? "" : "The gateway does not answer: trying again.");
    byId("cameras-state").textContent = problem;
    if (body?.data) showCameras(body.data);
  }
}

// ---- Words and the frames behind them --------------------------------------------------------------------------

let shownWord = null;
const facts = new WeakMap(); // word or thumbnail -> { token, look }

/** One frame that an answer was spoken from: fetched when its first word comes, kept since FIFOs forget. */
class Look {
  constructor(camera, token, odd) {
    this.camera = camera;
    this.words = [];
    this.thumbnail = make("img", odd ? "odd" : "");
    this.thumbnail.alt = "";
    this.thumbnail.setAttribute("aria-hidden", "true");
    facts.set(this.thumbnail, { token, look: this });
    this.ready = this.load(token.frame_id);
  }

  async load(id) {
    const blob = await pictureOf(this.camera, id);
    if (blob) this.thumbnail.src = URL.createObjectURL(blob);
    else this.thumbnail.remove();
  }
}

/** What belongs together: a word and its frame's thumbnail, a thumbnail and all its words. */
function related(shown) {
  const { look } = facts.get(shown);
  return shown === look.thumbnail ? [shown, ...look.words] : [shown, look.thumbnail];
}

/** Show the frame behind a word beside it, inside the window. */
async function showFrame(word) {
  if (shownWord === word) return;
  hideFrame();
  shownWord = word;
  for (const each of related(word)) each.classList.add("shown");
  word.setAttribute("aria-describedby", "popover");
  const fact = facts.get(word);
  const captured = new Date(fact.token.captured_s * 1000);
  const time = captured.toLocaleTimeString([], { hour12: false }) + "." + String(captured.getMilliseconds()).padStart(3, "0");
  byId("popover-age").textContent = `${readableAge(fact.token.frame_age_ms)} old when spoken`;
  byId("popover-stale").hidden = !fact.token.stale;
  byId("popover-time").textContent = `captured ${time} · spoken ${fact.token.time_s.toFixed(1)} s after the question`;
  await fact.look.ready;
  if (shownWord !== word) return;
  const url = fact.look.thumbnail.src;
  const picture = byId("popover-picture");
  picture.hidden = !url;
  byId("popover-missing").hidden = Boolean(url);
  if (url) {
    picture.src = url;
    picture.dataset.frame = fact.token.frame_id;
    picture.alt = `Frame of ${fact.look.camera}, captured ${time}`;
  }
  byId("popover").hidden = false;
  place(word);
}

function place(word) {
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

/** Pointing, tapping and the keyboard all lead to the frame. */
function listenToWords(turns) {
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
class AnswerView {
  constructor(camera, context) {
    this.camera = camera;
    this.ages = [];
    this.text = "";
    this.root = make("article", "answer");
    this.words = make("p", "words running");
    this.strip = make("div", "strip");
    this.sum = make("p", "sum");
    this.began = performance.now();
    this.root.append(make("p", "from", `${camera} · ${context}`), this.words, this.strip, this.sum);
  }

  /** A token that starts with a space starts a word; others carry the word on. */
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
    if (token.frame_id !== this.frameId) this.lookAgain(token);
    word.classList.toggle("odd", this.odd);
    word.classList.toggle("stale", token.stale);
    word.tabIndex = last ? -1 : 0;
    word.setAttribute("role", "button");
    facts.set(word, { token, look: this.look });
    this.look.words.push(word);
    this.words.append(word);
  }

  /** The newest frame is another one than the last word's: the underline's colour changes. */
  lookAgain(token) {
    this.frameId = token.frame_id;
    this.odd = !this.odd;
    this.look = new Look(this.camera, token, this.odd);
    this.strip.append(this.look.thumbnail);
    this.strip.scrollLeft = this.strip.scrollWidth;
  }

  addAll(tokens) {
    for (const token of tokens) this.add(token);
    const age = median(this.ages);
    byId("age").textContent = readableAge(age);
    const seconds = (performance.now() - this.began) / 1000;
    this.sum.textContent = `frame age ${readableAge(age)} · ${this.ages.length} tokens · ${seconds.toFixed(1)} s`;
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

// ---- Asking ----------------------------------------------------------------------------------------------------

/** The objects of a stream of server-sent events; throws the stream's own error. */
async function* serverSentEvents(stream) {
  let text = "";
  for await (const piece of stream.pipeThrough(new TextDecoderStream())) {
    text += piece;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ")) continue;
      if (event === "data: [DONE]") return;
      const data = JSON.parse(event.slice(6));
      if (data.error) throw new Error(data.error.message);
      yield data;
    }
  }
  throw new Error("The answer broke off: the connection was lost.");
}

let model = "";
let asking = null; // aborts the answer that is being made
const history = new Map(); // camera -> [{ question, answer }]

function requestFor(camera, question, context, pace) {
  const past = (history.get(camera) ?? []).slice(-HISTORY_TURNS).flatMap((turn) => [
    { role: "user", content: turn.question },
    { role: "assistant", content: turn.answer },
  ]);
  const content = [
    { type: "video_url", video_url: { url: `camera://${encodeURIComponent(camera)}` } },
    { type: "text", text: question },
  ];
  const streamchat = { visual_context: context, ...(pace && { tokens_per_second: Number(pace) }) };
  return { model, stream: true, messages: [...past, { role: "user", content }], streamchat };
}

async function ask(question) {
  const camera = chosen;
  if (!camera || !question || asking) return;
  const context = document.querySelector("input[name=context]:checked").value;
  const view = new AnswerView(camera, context);
  byId("welcome").hidden = true;
  byId("turns").append(make("p", "mine", question), view.root);
  setAsking(new AbortController());
  let problem = "";
  try {
    if (!model) await learnModel();
    const body = JSON.stringify(requestFor(camera, question, context, byId("pace").value));
    const headers = { "Content-Type": "application/json" };
    scrollDown(true);
    const answer = await fetch("/v1/chat/completions", { method: "POST", headers, body, signal: asking.signal });
    if (!answer.ok) throw new Error((await answer.json()).error.message);
    for await (const chunk of serverSentEvents(answer.body)) {
      const follow = isDown();
      if (chunk.streamchat) view.addAll(chunk.streamchat.tokens);
      if (chunk.choices[0]?.finish_reason === "length") problem = "The answer reached its longest length.";
      scrollDown(follow);
    }
  } catch (error) {
    if (error.name !== "AbortError") problem = error.message;
  }
  view.end(problem);
  if (view.text) history.set(camera, [...(history.get(camera) ?? []), { question, answer: view.text }]);
  setAsking(null);
  scrollDown(true);
}

function setAsking(controller) {
  asking = controller;
  byId("send").hidden = Boolean(controller);
  byId("stop").hidden = !controller;
}

function isDown() {
  const turns = byId("turns");
  return turns.scrollHeight - turns.scrollTop - turns.clientHeight < 40;
}

function scrollDown(follow) {
  if (follow) byId("turns").scrollTop = byId("turns").scrollHeight;
}

async function learnModel() {
  const answer = await fetch("/v1/models");
  model = (await answer.json()).data[0].id;
  byId("model").textContent = model;
}

function submit() {
  const question = byId("question").value.trim();
  if (!question || asking || !chosen) return;
  byId("question").value = "";
  ask(question);
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
byId("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
});
byId("stop").addEventListener("click", () => asking?.abort());
for (const suggestion of SUGGESTIONS) {
  const button = make("button", "", suggestion);
  button.type = "button";
  button.addEventListener("click", () => ask(suggestion));
  byId("suggestions").append(button);
}
listenToWords(byId("turns"));
learnModel().catch(() => {});
watchCameras();
watchPictures();
