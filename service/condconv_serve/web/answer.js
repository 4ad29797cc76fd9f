// The answer for one image: photo, classes, timings, or what was refused and what to do about it. What a detector found
// is drawn by `detection.js`.

import { advice, canPass } from "./advice.js";
import { byId, count, make, milliseconds, percent } from "./dom.js";
import { isAnswered } from "./images.js";

const [FEW, MORE] = [5, 20];
const STAGES = ["decode", "queue", "inference"];
let shown = FEW;
let current = null;

byId("more-classes").addEventListener("click", () => {
  shown = shown < MORE ? MORE : shown < (current?.classes?.length ?? 0) ? Infinity : FEW;
  drawClasses(current);
});
byId("photo").addEventListener("error", () => showPhoto(false));
byId("photo").addEventListener("load", () => showPhoto(true));

function showPhoto(works) {
  byId("photo").hidden = !works;
  byId("photo-none").hidden = works;
}

/** Show an image's answer; `on` holds what its buttons do: `again`, `key`. */
export function showAnswer(item, on) {
  byId("answer").hidden = !item;
  if (!item) {
    current = null;
    return;
  }
  if (current !== item) shown = FEW;
  current = item;
  const photo = byId("photo");
  if (photo.src !== item.url) {
    photo.hidden = false;
    photo.alt = `Your image ${item.name}`;
    photo.src = item.url;
  }
  byId("photo-name").textContent = `${item.name}, ${size(item.file.size)}`;
  const done = isAnswered(item);
  byId("answer-title").textContent = done ? item.task.title(item) : item.problem && item.state !== "running" ? "No answer" : "Answer";
  byId("progress").hidden = !["waiting", "running"].includes(item.state);
  byId("progress-text").textContent = item.state === "running" ? item.task.running : "waiting for its turn";
  byId("classes-box").hidden = !item.classes;
  byId("timings").hidden = !done;
  byId("problem").hidden = !item.problem || item.state === "running";
  if (item.classes) drawClasses(item);
  if (done) drawTimings(item);
  else if (item.problem) drawProblem(item, on);
}

function drawClasses({ classes }) {
  const chosen = classes.slice(0, shown);
  byId("classes").replaceChildren(
    ...chosen.map(({ label, synset, index, probability }) =>
      make(
        "li",
        { title: synset ? `class ${index}, ${synset}` : `class ${index}` },
        make("span", { class: "label" }, label),
        make("span", { class: "value" }, percent(probability)),
        make("span", { class: "bar", "aria-hidden": "true", style: { "--share": probability } }),
      ),
    ),
  );
  const button = byId("more-classes");
  button.hidden = classes.length <= FEW;
  button.textContent = chosen.length === classes.length ? "Show fewer classes" : `Show ${Math.min(shown < MORE ? MORE : Infinity, classes.length)} classes`;
}

function drawTimings({ timings_ms: timings, batch_size: batch, cached, model, roundTrip }) {
  const whole = Math.max(timings.total, STAGES.reduce((sum, stage) => sum + timings[stage], 0)) || 1;
  byId("timings").replaceChildren(
    make("div", { class: "stages", "aria-hidden": "true" }, ...STAGES.map((stage) => make("span", { class: `stage ${stage}`, style: { "flex-grow": timings[stage] / whole } }))),
    make(
      "dl",
      { class: "facts inline" },
      ...[...STAGES.map((stage) => [stage, milliseconds(timings[stage]), stage]), ["total", milliseconds(timings.total)], ["round trip", milliseconds(roundTrip)]].map(([name, value, stage]) =>
        make("div", {}, make("dt", { class: stage ? `key ${stage}` : "" }, name), make("dd", {}, value)),
      ),
    ),
    make("p", { class: "note" }, `${cached ? "Came from the server's cache; was computed" : "Rode"} in a batch of ${count(batch, "image")}. Answered by ${model.name}, version ${model.version}.`),
  );
}

function drawProblem(item, on) {
  const { problem } = item;
  const box = byId("problem");
  const kind = `${problem.slug}${item.state}${item.retryAt ?? ""}`;
  if (box.dataset.kind === kind && box.itemId === item.id) return countDown(item);
  box.dataset.kind = kind;
  box.itemId = item.id;
  const parts = [
    make("h3", {}, problem.title),
    problem.detail ? make("p", {}, problem.detail) : null,
    make("p", { class: "advice" }, advice(problem)),
    item.state === "later" ? make("p", { class: "countdown" }) : null,
    problem.slug === "unauthenticated" ? make("p", {}, make("button", { type: "button", class: "primary", on: { click: on.key } }, "Enter a key")) : null,
    canPass(problem) ? make("p", {}, make("button", { type: "button", on: { click: () => on.again(item) } }, item.state === "later" ? "Try now" : "Try again")) : null,
  ];
  box.replaceChildren(...parts.filter(Boolean));
  countDown(item);
}

/** Renew the countdown of an image that will be tried again. */
export function countDown(item) {
  const line = byId("problem").querySelector(".countdown");
  if (!line || item?.state !== "later") return;
  const seconds = Math.max(0, Math.ceil((item.retryAt - Date.now()) / 1000));
  line.textContent = `Trying again in ${count(seconds, "second")}.`;
}

const size = (bytes) => (bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1e3))} kB` : `${(bytes / 1e6).toFixed(1)} MB`);
