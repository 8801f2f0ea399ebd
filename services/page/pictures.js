// The cameras' pictures: one connection for all cameras, because browsers open only six to a host.

import { sleep } from "/page/elements.js";

const KEPT_FRAMES = 96; // per camera: a FIFO drops frames within seconds, but people look at words later
const RETRY_MS = 1000;

/** The newest frames of a camera as blobs, by frame id. */
class CameraFrames {
  constructor() {
    this.blobs = new Map();
  }

  add(id, blob) {
    this.blobs.set(id, blob);
    if (this.blobs.size > KEPT_FRAMES) this.blobs.delete(this.blobs.keys().next().value);
  }
}

export const frames = new Map(); // camera id -> CameraFrames

/** The frame with that id: kept here, or from the gateway while it still has it. Null if it is gone. */
export async function pictureOf(camera, id) {
  const kept = frames.get(camera)?.blobs.get(id);
  if (kept) return kept;
  const answer = await fetch(`/v1/cameras/${encodeURIComponent(camera)}/frame.jpg?frame=${id}`).catch(() => null);
  return answer?.ok ? answer.blob() : null;
}

/** Calls `handlePart(headers, body)` for each part of a multipart stream. Each part has a Content-Length. */
async function readParts(stream, handlePart) {
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
      handlePart(headers, data.slice(end + 4, next));
      data = data.slice(next);
    }
  }
}

/** Receives pictures while the page is visible, and calls `show(camera, frameId, blob)` for each. */
export async function watchPictures(show) {
  const handlePart = (headers, body) => {
    const camera = decodeURIComponent(headers["x-camera"]);
    const blob = new Blob([body], { type: "image/jpeg" });
    if (!frames.has(camera)) frames.set(camera, new CameraFrames());
    frames.get(camera).add(headers["x-frame-id"], blob);
    show(camera, headers["x-frame-id"], blob);
  };
  for (;;) {
    if (document.hidden) await new Promise((visible) => document.addEventListener("visibilitychange", visible, { once: true }));
    const controller = new AbortController();
    const hide = () => document.hidden && controller.abort();
    document.addEventListener("visibilitychange", hide);
    try {
      const answer = await fetch("/v1/pictures", { signal: controller.signal });
      if (answer.ok) await readParts(answer.body, handlePart);
    } catch {
      // The gateway is away or the page is hidden: try again below.
    }
    document.removeEventListener("visibilitychange", hide);
    await sleep(RETRY_MS);
  }
}
