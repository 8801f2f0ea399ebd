// The page: asks questions and shows their answers. Plain JavaScript modules, no build step.

import { AnswerView, listenToWords } from "/page/answers.js";
import { chosen, showPicture, watchCameras } from "/page/cameras.js";
import { byId, make } from "/page/elements.js";
import { watchPictures } from "/page/pictures.js";

const HISTORY_TURNS = 1; // earlier questions and answers that are sent along
const SUGGESTIONS = ["Tell me what happens from now on.", "What do you see now?", "Keep counting the things."];

/** Yields the objects of a stream of server-sent events. Throws the error that the stream reports. */
async function* serverSentEvents(stream) {
  let text = "";
  for await (const chunk of stream.pipeThrough(new TextDecoderStream())) {
    text += chunk;
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
let asking = null; // the AbortController of the answer in progress
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
    if (!model) await loadModel();
    const body = JSON.stringify(requestFor(camera, question, context, byId("pace").value));
    const headers = { "Content-Type": "application/json" };
    scrollToEnd(true);
    const answer = await fetch("/v1/chat/completions", { method: "POST", headers, body, signal: asking.signal });
    if (!answer.ok) throw new Error((await answer.json()).error.message);
    for await (const chunk of serverSentEvents(answer.body)) {
      const atEnd = isAtEnd();
      if (chunk.streamchat) view.addAll(chunk.streamchat.tokens);
      if (chunk.choices[0]?.finish_reason === "length") {
        problem = `The answer reached its ${chunk.streamchat?.limit === "time" ? "time limit" : "maximum length"}.`;
      }
      scrollToEnd(atEnd);
    }
  } catch (error) {
    if (error.name !== "AbortError") problem = error.message;
  }
  view.end(problem);
  if (view.text) history.set(camera, [...(history.get(camera) ?? []), { question, answer: view.text }]);
  setAsking(null);
  scrollToEnd(true);
}

function setAsking(controller) {
  asking = controller;
  byId("send").hidden = Boolean(controller);
  byId("stop").hidden = !controller;
}

function isAtEnd() {
  const turns = byId("turns");
  return turns.scrollHeight - turns.scrollTop - turns.clientHeight < 40;
}

function scrollToEnd(condition) {
  if (condition) byId("turns").scrollTop = byId("turns").scrollHeight;
}

async function loadModel() {
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
loadModel().catch(() => {});
watchCameras();
watchPictures(showPicture);
