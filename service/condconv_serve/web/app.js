// Puts the page together: what comes in, what is chosen, and who shows it.

import { showAnswer, countDown } from "./answer.js";
import { advice, isOutage } from "./advice.js";
import { ask, Problem } from "./api.js";
import { Detection } from "./detection.js";
import { announce, byId, make, scrolling } from "./dom.js";
import { Experts } from "./experts.js";
import { Images, isAnswered } from "./images.js";
import { KeyDialog } from "./key.js";
import { Live } from "./live.js";
import { Models } from "./models.js";
import { taskOf } from "./tasks.js";
import { theme } from "./theme.js";
import { suffices, Thresholds } from "./thresholds.js";

const MODELS_SECONDS = 15;
const RECOVERY_SECONDS = 2;

let selected = null;
let recovering = false;

const experts = new Experts();
const models = new Models({
  onChange: () => {
    live.renew({ forget: true });
    showTask();
    images.again();
  },
});
const thresholds = new Thresholds({ onChange: (settled) => filter(settled) });
const detection = new Detection({ onLower: (score) => thresholds.lowerTo(score) });
const images = new Images({
  request: () => {
    const { current, selection } = models;
    return current ? { task: taskOf(current), query: { ...selection, ...taskOf(current).query(current) } } : null;
  },
  onChange: (item) => changed(item),
  onProblem: (problem) => refused(problem),
});
const live = new Live({
  selection: () => models.selection,
  onAverage: (answer) => {
    experts.average = answer;
  },
  onProblem: (problem) => {
    if (isOutage(problem) && byId("state").dataset.state === "ready") refused(problem);
  },
});
const keys = new KeyDialog({ onChange: () => begin() });

theme({
  onChange: () => {
    experts.repaint();
    live.repaint();
  },
});

// ---- the service as a whole

async function begin() {
  try {
    await models.load();
  } catch (problem) {
    if (problem instanceof Problem) return refused(problem);
    throw problem;
  }
  showTask();
  if (!models.selection) return refused(new Problem({ slug: "not_ready", title: "No model is served yet", detail: "The server has none that is ready." }));
  // A server that still loads lists its models already.
  try {
    await ask("readyz");
  } catch (problem) {
    return refused(problem);
  }
  state("ready", "ready");
  byId("banner").hidden = true;
  images.goOn();
  live.renew();
}

function refused(problem) {
  images.hold();
  if (problem.slug === "unauthenticated") {
    state("locked", "needs a key");
    return keys.open(problem);
  }
  state(isOutage(problem) ? "waiting" : "down", problem.slug === "unreachable" ? "out of reach" : problem.slug === "not_ready" ? "loading" : "not serving");
  const banner = byId("banner");
  const [title, detail] = [make("strong", {}, problem.title), make("span", {}, ` ${problem.detail} ${advice(problem)}`)];
  if (banner.hidden || banner.firstChild?.textContent !== problem.title) banner.replaceChildren(title, detail);
  banner.hidden = false;
  recover();
}

async function recover() {
  if (recovering) return;
  recovering = true;
  await new Promise((resolve) => setTimeout(resolve, RECOVERY_SECONDS * 1000));
  recovering = false;
  await begin();
}

function state(kind, text) {
  const box = byId("state");
  box.dataset.state = kind;
  if (byId("state-text").textContent !== text) byId("state-text").textContent = text;
}

setInterval(async () => {
  if (document.hidden || byId("state").dataset.state !== "ready") return;
  try {
    await models.load();
  } catch (problem) {
    if (problem instanceof Problem && (isOutage(problem) || problem.slug === "unauthenticated")) refused(problem);
  }
}, MODELS_SECONDS * 1000);

/** Say what the chosen model does. */
function showTask() {
  const { drop, footer } = taskOf(models.current);
  byId("drop-cover").firstElementChild.textContent = drop;
  byId("scores-note").textContent = footer;
}

// ---- images

function take(files) {
  const found = [...files];
  if (!found.length) return;
  const [first] = images.add(found);
  select(first);
  // A picture may be dropped or pasted anywhere on the page.
  const { top } = byId("answer").getBoundingClientRect();
  if (top < 0 || top > innerHeight * 0.6) byId("answer").scrollIntoView({ behavior: scrolling() });
  announce(`${found.length === 1 ? `${first.name} is` : `${found.length} images are`} ${first.task.begun}`);
}

function select(item) {
  selected = item;
  showGallery();
  showSelected();
}

function changed(item) {
  showGallery();
  if (item.state === "done" && item.detections && !suffices(item)) return images.again([item], { keep: true }); // chosen meanwhile
  if (item.state === "done") {
    live.renew();
    announce(`${item.name}: ${item.task.announced(item)}`);
  } else if (item.state === "failed") announce(`${item.name}: ${item.problem.title}. ${item.problem.detail} ${advice(item.problem)}`);
  if (item === selected || item.state === "done") showSelected();
}

function showSelected() {
  showAnswer(selected, { again: (item) => images.again([item]), key: () => keys.open() });
  detection.show(selected);
  const done = selected !== null && isAnswered(selected);
  const comparable = (item) =>
    item !== selected && isAnswered(item) && item.model.name === selected.model.name && item.model.version === selected.model.version;
  experts.show(done ? selected : null, done ? images.items.filter(comparable) : []);
}

/** Show other boxes of what was found; ask anew where that isn't enough. */
function filter(settled) {
  const answered = images.items.filter(({ detections }) => detections);
  for (const item of answered) item.effects = new Map();
  if (settled) images.again(answered.filter((item) => !suffices(item)), { keep: true });
  showGallery();
  showSelected();
  if (settled && selected?.detections) announce(`${selected.name}: ${selected.task.announced(selected)}`);
}

// Refused ones come first: among many they would be overlooked.
const inOrder = () => images.items.toSorted((a, b) => (b.state === "failed") - (a.state === "failed"));

function showGallery() {
  const { items } = images;
  byId("gallery-section").hidden = !items.length;
  byId("intake").classList.toggle("small", items.length > 0);
  const failed = items.filter(({ state }) => state === "failed").length;
  byId("gallery-note").textContent = failed && items.length > 1 ? `${failed} of ${items.length} refused` : "";
  const box = byId("gallery");
  const known = new Map([...box.children].map((entry) => [entry.item, entry]));
  const entries = inOrder().map((item) => {
    const entry = known.get(item) ?? newEntry(item);
    const [button] = entry.children;
    entry.dataset.state = item.state;
    button.setAttribute("aria-pressed", String(item === selected));
    button.querySelector(".said").textContent = said(item);
    const picture = button.querySelector("img");
    if (picture && picture.src !== item.url) picture.src = item.url;
    return entry;
  });
  if (entries.length === box.children.length && entries.every((entry, i) => entry === box.children[i])) return;
  const focused = box.contains(document.activeElement) ? document.activeElement : null;
  box.replaceChildren(...entries);
  if (focused?.isConnected) focused.focus({ preventScroll: true });
}

const said = (item) =>
  ({ waiting: "waiting", running: item.task.running, held: "waiting for the server", later: "will be tried again" })[item.state] ??
  (item.state === "done" ? item.task.said(item) : item.problem.title);

function newEntry(item) {
  const picture = make("img", { src: item.url, alt: "", width: "96", height: "72", decoding: "async" });
  picture.addEventListener("error", () => picture.replaceWith(make("span", { class: "no-picture", "aria-hidden": "true" }, item.name.split(".").at(-1).slice(0, 5))));
  const entry = make(
    "li",
    {},
    make(
      "button",
      { type: "button", class: "thumb", "aria-pressed": "false", on: { click: () => select(item) } },
      picture,
      make("span", { class: "name" }, item.name),
      make("span", { class: "said" }),
    ),
    make("button", { type: "button", class: "remove", "aria-label": `Remove ${item.name}`, on: { click: () => drop(item) } }, "\u00d7"),
  );
  entry.item = item;
  return entry;
}

function drop(item) {
  const at = inOrder().indexOf(item);
  images.remove(item);
  if (item === selected) select(inOrder()[Math.min(at, images.items.length - 1)] ?? null);
  else {
    showGallery();
    showSelected();
  }
  announce(`${item.name} removed`);
  // The button that had the focus is gone; go on where it was.
  const next = byId("gallery").children[Math.min(at, images.items.length - 1)];
  (next?.querySelector(".remove") ?? byId("files")).focus();
}

byId("clear").addEventListener("click", () => {
  for (const item of [...images.items]) images.remove(item);
  select(null);
  byId("files").focus();
});

byId("files").addEventListener("change", (event) => {
  take(event.target.files);
  event.target.value = "";
});

byId("samples").addEventListener("click", async (event) => {
  const name = event.target.closest("button")?.dataset.sample;
  if (!name) return;
  try {
    const picture = await (await ask(`web/samples/${name}`, { cache: "default" })).blob();
    take([new File([picture], name, { type: picture.type })]);
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    refused(problem);
  }
});

document.addEventListener("paste", (event) => {
  if (event.target.closest?.("input, dialog")) return;
  const files = [...(event.clipboardData?.files ?? [])];
  if (files.length) {
    event.preventDefault();
    take(files);
  } else announce("There is no image in the clipboard.");
});

const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
let depth = 0;
const cover = (shown) => {
  byId("drop-cover").hidden = !shown;
};
addEventListener("dragenter", (event) => {
  if (!carriesFiles(event)) return;
  depth += 1;
  cover(true);
});
addEventListener("dragleave", (event) => {
  if (!carriesFiles(event)) return;
  depth = Math.max(0, depth - 1);
  if (!depth) cover(false);
});
addEventListener("dragover", (event) => {
  if (carriesFiles(event)) event.preventDefault();
});
addEventListener("drop", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  depth = 0;
  cover(false);
  take(event.dataTransfer.files);
});

// Links within the page would otherwise lead away from `/prefix` to `/prefix/`, which is the page's base.
if (`${location.pathname}/` === new URL(document.baseURI).pathname) history.replaceState(null, "", document.baseURI + location.search + location.hash);

setInterval(() => selected && countDown(selected), 500);
live.start();
begin();
