// The cameras: one tile each, and which one is chosen.

import { byId, make, readableAge, sleep } from "/page/elements.js";
import { frames } from "/page/pictures.js";

const CAMERAS_EVERY_MS = 2000;

const tiles = new Map(); // camera id -> its button
export let chosen = null; // camera id

function choose(camera) {
  chosen = camera;
  for (const [name, tile] of tiles) {
    tile.setAttribute("aria-checked", String(name === camera));
    tile.tabIndex = name === camera ? 0 : -1;
  }
  byId("asked-camera").textContent = camera ?? "a camera";
}

/** Choose a camera and scroll to it: a narrow window shows the cameras in a row. */
function chooseAndShow(camera) {
  choose(camera);
  tiles.get(camera).scrollIntoView({ block: "nearest", inline: "center", behavior: "smooth" });
}

/** Shows a new picture on the camera's tile. */
export function showPicture(camera, frameId, blob) {
  const picture = tiles.get(camera)?.querySelector("img");
  if (!picture) return;
  const old = picture.src;
  picture.src = URL.createObjectURL(blob);
  picture.hidden = false;
  picture.dataset.frame = frameId;
  if (old) URL.revokeObjectURL(old);
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
    tile.querySelector(".facts").textContent = camera.state === "no_frame" ? "no picture" : facts;
    tile.querySelector(".name").textContent = camera.name;
    tile.title = camera.problem || `${camera.num_frames} of ${camera.capacity} frames kept`;
  }
  if (!names.includes(chosen)) choose(names[0] ?? null);
  else choose(chosen);
  if (!names.length) {
    const empty = make("p", "empty", "No camera yet. Publish one: ");
    empty.append(make("code", "", "streamchat publish clip.mp4 --camera front-door"));
    byId("cameras").append(empty);
  }
}

export async function watchCameras() {
  for (; ; await sleep(CAMERAS_EVERY_MS)) {
    if (document.hidden) continue;
    const answer = await fetch("/v1/cameras").catch(() => null);
    const body = await answer?.json().catch(() => null);
    const problem = body?.error?.message ?? (answer ? "" : "The gateway does not answer: trying again.");
    byId("cameras-state").textContent = problem;
    if (body?.data) showCameras(body.data);
  }
}
