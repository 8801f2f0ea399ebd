// The official JavaScript clients, as a program would use them. Prints what each of them got, as JSON.
// Usage: node clients.mjs BASE_URL MODEL CAMERA
import { connect } from "node:net";

import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";
import OpenAI from "openai";
import { OpenAIRealtimeWS } from "openai/realtime/ws";

const [baseURL, model, camera] = process.argv.slice(2);
const text = { type: "text", text: "What is happening?" };
const look = { type: "video_url", video_url: { url: `camera://${camera}` } };
const messages = [{ role: "user", content: [look, text] }];
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });

async function whole() {
  const answer = await client.chat.completions.create({ model, messages, top_p: 0, store: true });
  return { text: answer.choices[0].message.content, end: answer.choices[0].finish_reason };
}

async function streamed() {
  const stream = await client.chat.completions.create({
    model, messages, stream: true, stream_options: { include_usage: true },
    streamchat: { resumable: true }, // then events have ids
  });
  let said = "", usage = null;
  for await (const chunk of stream) {
    said += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  return { text: said, tokens: usage.completion_tokens };
}

async function helper() {
  const runner = client.chat.completions.stream({ model, messages });
  return { text: await runner.finalContent() };
}

async function refusal() {
  try {
    await client.chat.completions.create({ model: "gpt-4o", messages });
  } catch (error) {
    return { name: error.constructor.name, code: error.code, param: error.param };
  }
}

async function models() {
  return (await client.models.list()).data.map((each) => each.id);
}

async function realtime() {
  // The client always asks for wss://, and a TLS proxy is no matter of this test.
  const plain = { createConnection: ({ host, port }) => connect({ host, port }) };
  const talk = new OpenAIRealtimeWS({ model, options: plain }, client);
  const kinds = [], errors = [];
  let said = "";
  talk.on("event", (event) => kinds.push(event.type));
  talk.on("error", (error) => errors.push(error.message));
  talk.on("response.output_text.delta", (event) => (said += event.delta));
  const done = new Promise((resolve) => talk.on("response.done", (event) => resolve(event.response)));
  await new Promise((resolve) => talk.on("session.created", resolve));
  talk.send({
    type: "session.update",
    session: {
      type: "realtime", output_modalities: ["text"], instructions: "Be brief.",
      audio: { input: { turn_detection: null } }, streamchat: { camera },
    },
  });
  const content = [{ type: "input_text", text: text.text }];
  talk.send({ type: "conversation.item.create", item: { type: "message", role: "user", content } });
  talk.send({ type: "response.create" });
  const response = await done;
  talk.close();
  return { text: said, status: response.status, kinds: [...new Set(kinds)], errors };
}

async function aiSdk() {
  const provider = createOpenAICompatible({ name: "streamchat", baseURL, apiKey: "none", includeUsage: true });
  const titled = await generateText({ model: provider(model), prompt: "Name this conversation: A bus drives past." });
  const image = Buffer.from("media");
  const content = [{ type: "text", text: text.text }, { type: "image", image, mediaType: "image/png" }];
  const seen = streamText({ model: provider(model), messages: [{ role: "user", content }] });
  let said = "";
  for await (const part of seen.textStream) said += part;
  return { title: titled.text, end: titled.finishReason, text: said, tokens: (await seen.usage).outputTokens };
}

async function aiSdkOpenAI() {
  const provider = createOpenAI({ baseURL, apiKey: "none" });
  const answer = await generateText({ model: provider.chat(model), system: "Be brief.", prompt: "Name this conversation." });
  return { text: answer.text };
}

const found = {};
for (const use of [whole, streamed, helper, refusal, models, realtime, aiSdk, aiSdkOpenAI]) found[use.name] = await use();
console.log(JSON.stringify(found));
