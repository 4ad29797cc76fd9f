// Live traffic: charts from `/metrics`, expert load, drift and classes from `GET /routing`.

import { ask, askJson } from "./api.js";
import { Chart } from "./chart.js";
import { blockName, byId, count, make, milliseconds, percent } from "./dom.js";
import { HeatMap } from "./heatmap.js";
import { Poll } from "./polling.js";
import { gain, quantile, read } from "./prometheus.js";
import { term } from "./tooltip.js";
import { ENTROPY } from "./words.js";

const METRICS_SECONDS = 3;
const ROUTING_SECONDS = 6;
const LATELY_SECONDS = 15;
const HEADS = [
  ["PSI", "population stability index: how differently this block's weights are spread now and in the reference photos. 0 is no difference. It grows without end."],
  ["alert above", "few images differ by chance alone. A PSI above this is more than chance, and more than a small shift."],
  ["JS", "Jensen-Shannon divergence, another measure of the same difference: 0 if the weights are spread alike, 1 if they have nothing in common."],
];
const NAMES = { load: "Expert load", mean: "Mean weights", deviation: "Deviation of weights", active: "Active experts" };

export class Live {
  #charts;
  #lately = [];
  #map = new HeatMap(byId("live-map"), { label: "Experts in live traffic, blocks by experts" });
  #metrics = new Poll(() => this.#readMetrics(), { seconds: METRICS_SECONDS });
  #routing = new Poll(() => this.#readRouting(), { seconds: ROUTING_SECONDS });
  #selection;
  #onAverage;
  #onProblem;
  #shown = null;

  /** `selection()` is the model and version to ask for; `onAverage(answer | null)` gets each `GET /routing` answer. */
  constructor({ selection, onAverage, onProblem }) {
    this.#selection = selection;
    this.#onAverage = onAverage;
    this.#onProblem = onProblem;
    const box = byId("charts");
    const ms = (value) => milliseconds(value);
    this.#charts = {
      traffic: new Chart(box, { title: "Traffic", format: (v) => `${v.toFixed(v < 10 ? 1 : 0)}/s` }),
      latency: new Chart(box, { title: "Latency", lines: 2, least: 10, format: ms }),
      batch: new Chart(box, { title: "Batch size", least: 2, format: (v) => v.toFixed(v < 10 ? 1 : 0) }),
      queue: new Chart(box, { title: "Queue", least: 4, format: (v) => v.toFixed(0) }),
    };
    byId("window").addEventListener("change", () => this.renew());
    byId("live-view").addEventListener("change", () => this.#drawMap());
    byId("pause").addEventListener("click", (event) => this.#pause(event.currentTarget));
  }

  start() {
    this.#metrics.start();
    this.#routing.start();
  }

  /** Ask for the routing at once: there was traffic, or another model was chosen. */
  renew({ forget = false } = {}) {
    if (forget) {
      this.#shown = null;
      this.#onAverage(null);
    }
    this.#routing.soon();
  }

  repaint() {
    this.#map.repaint();
  }

  #pause(button) {
    const paused = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(paused));
    button.textContent = paused ? "Go on" : "Pause";
    for (const poll of [this.#metrics, this.#routing]) paused ? poll.pause() : poll.start();
  }

  async #readMetrics() {
    let now;
    try {
      now = read(await (await ask("metrics", { headers: { Accept: "text/plain" } })).text());
    } catch (problem) {
      this.#lately = [];
      if (problem.status === 404)
        for (const chart of Object.values(this.#charts)) chart.say("\u2013", "this server has its metrics on a port of their own");
      else this.#onProblem(problem);
      return problem.status === 404 ? 60 : 5;
    }
    now.at = performance.now() / 1000;
    const before = this.#lately.at(-1);
    // Counters that fell: the server has started anew, or another replica has answered.
    if (before && (now.answered < before.answered || now.batches < before.batches)) this.#lately = [];
    else if (before) this.#addMoment(figures(before, now));
    this.#lately = [...this.#lately.filter(({ at }) => now.at - at < LATELY_SECONDS + 1), now];
    this.#say(figures(this.#lately[0], now), now);
    return 0;
  }

  #addMoment({ rate, middle, late, batch, queue }) {
    const { traffic, latency, batch: size, queue: waiting } = this.#charts;
    traffic.add([rate]);
    latency.add([middle, late]);
    size.add([batch]);
    waiting.add([queue]);
  }

  #say({ seconds, rate, failed, middle, late, batch, batches, bound }, now) {
    if (seconds === 0) return;
    const { traffic, latency, batch: size, queue } = this.#charts;
    const span = `in the last ${Math.max(1, Math.round(seconds))} s`;
    traffic.say(rate === null ? "\u2013" : `${rate.toFixed(1)} /s`, `images ${span}${failed > 0 ? `, ${count(failed, "other")} not answered` : ""}; ${count(now.answered, "image")} in all`);
    if (middle === null) latency.say("\u2013", `no images ${span}`);
    else latency.say(milliseconds(middle), `half of the images; 95 % within ${milliseconds(late)}`);
    if (batch === null) size.say("\u2013", `no batches ${span}`);
    else size.say(batch.toFixed(1), `images per batch, in ${count(batches, "batch", "batches")}${Number.isFinite(bound) ? `; none above ${bound}` : ""}`);
    queue.say(String(now.queue), `images waiting, ${now.inFlight} being computed`);
  }

  async #readRouting() {
    const chosen = this.#selection();
    if (!chosen) return 1;
    const asked = JSON.stringify(chosen);
    try {
      const answer = await askJson("routing", { query: { ...chosen, window: byId("window").value, classes: 8 } });
      if (asked !== JSON.stringify(this.#selection())) return 0;
      this.#shown = answer;
      this.#onAverage(answer);
      this.#draw();
    } catch (problem) {
      if (problem.slug === "routing_not_found") this.#empty(problem.detail);
      return Math.max(problem.retryAfter ?? 0, ["routing_not_found", "unauthenticated", "forbidden"].includes(problem.slug) ? 60 : 5);
    }
    return 0;
  }

  #empty(why) {
    this.#shown = null;
    this.#map.clear();
    byId("live-note").textContent = why;
    byId("drift-note").textContent = "";
    byId("drift").replaceChildren();
    byId("frequent").replaceChildren();
  }

  #draw() {
    const answer = this.#shown;
    const span = { "1m": "the last minute", "15m": "the last 15 minutes", all: "all time since the start" }[answer.window];
    byId("live-summary").textContent = `${answer.model.name}, version ${answer.model.version}: ${count(answer.images, "image")} in ${span}.`;
    this.#drawMap();
    this.#drawDrift();
    const classes = answer.classes.most_frequent;
    byId("frequent").replaceChildren(
      ...classes.map((one) =>
        make(
          "li",
          {},
          make("span", { class: "label" }, one.label),
          make("span", { class: "value" }, count(one.images, "image")),
          make("span", { class: "bar", "aria-hidden": "true", style: { "--share": one.images / classes[0].images } }),
        ),
      ),
    );
    if (!classes.length) byId("frequent").replaceChildren(make("li", { class: "note" }, "None yet."));
  }

  #drawMap() {
    const answer = this.#shown;
    if (!answer) return;
    const view = byId("live-view").value;
    byId("live-map-title").textContent = NAMES[view];
    if (!answer.blocks.length) return this.#empty("A static network: it has no experts.");
    if (!answer.images) {
      this.#map.clear();
      byId("live-note").textContent = "No images in this window yet. Try one above.";
      return;
    }
    byId("live-note").textContent = "";
    this.#map.show({
      rows: answer.blocks.map(({ block }) => blockName(block)),
      columns: answer.blocks.map(({ experts }) => experts.length),
      scale: "sequential",
      value: (r, c) => answer.blocks[r].experts[c][view],
      place: (value) => (view === "deviation" ? value * 2 : value),
      text: (value) => value.toFixed(2),
      describe: (r, c) => {
        const { block, experts: all } = answer.blocks[r];
        const { load, mean, deviation, active } = all[c];
        return `${blockName(block)}, expert ${c}: strongest for ${percent(load)} of images, mean weight ${mean.toFixed(3)} \u00b1 ${deviation.toFixed(3)}, above 0.5 for ${percent(active)}`;
      },
      side: {
        title: "entropy",
        help: ENTROPY,
        value: (r) => answer.blocks[r].entropy.mean,
        describe: (r) => `mean entropy ${answer.blocks[r].entropy.mean.toFixed(3)}`,
      },
    });
  }

  #drawDrift() {
    const { blocks, images, reference } = this.#shown;
    const measured = blocks.filter((block) => block.drift);
    const note = byId("drift-note");
    if (!reference) note.textContent = "This model has no reference profile to measure from; `condconv models profile` makes one.";
    else if (!measured.length) note.textContent = `Measured from a profile of ${count(reference.images, "image")}, once there is traffic.`;
    else {
      const alerts = measured.filter((block) => block.drift.alert);
      note.textContent = alerts.length
        ? `${count(alerts.length, "block")} of ${measured.length} away from the profile of ${count(reference.images, "image")}: traffic is unlike it.`
        : `As expected from the profile of ${count(reference.images, "image")}${images < 100 ? "; few images, so only large shifts would show" : ""}.`;
    }
    const box = byId("drift");
    if (!measured.length) return box.replaceChildren();
    if (!box.firstChild) box.replaceChildren(driftTable());
    box.querySelector("tbody").replaceChildren(...measured.map(({ block, drift }) => driftRow(block, drift)));
  }
}

/** The table without rows. It stays, and with it the focus on one of its words. */
const driftTable = () =>
  make(
    "table",
    { class: "drift" },
    make("caption", { class: "unseen" }, "Drift by block: population stability index, the index from which it is an alert, Jensen-Shannon divergence"),
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "block"), ...HEADS.map((head) => make("th", { scope: "col" }, term(...head))))),
    make("tbody", {}),
  );

const driftRow = (block, drift) =>
  make(
    "tr",
    { class: drift.alert ? "alert" : "" },
    make("th", { scope: "row" }, blockName(block)),
    make(
      "td",
      { class: "bar-cell" },
      make("span", { class: "bar", "aria-hidden": "true", style: { "--share": Math.min(drift.psi / (2 * drift.alert_above), 1) } }),
      make("span", {}, drift.psi.toFixed(3)),
      drift.alert ? make("span", { class: "flag" }, "alert") : null,
    ),
    make("td", {}, drift.alert_above.toFixed(2)),
    make("td", {}, drift.js.toFixed(3)),
  );

/** What happened between two moments; null for what can't be said. */
function figures(before, now) {
  const seconds = now.at - before.at;
  const times = gain(before.totalBuckets, now.totalBuckets);
  const [middle, late] = [0.5, 0.95].map((share) => quantile(share, times)).map((value) => (value === null ? null : value * 1000));
  const batches = now.batches - before.batches;
  return {
    seconds,
    rate: seconds > 0 ? (now.answered - before.answered) / seconds : null,
    failed: now.failed - before.failed,
    middle,
    late,
    batches,
    batch: batches > 0 ? (now.batchRows - before.batchRows) / batches : null,
    bound: gain(before.batchBuckets, now.batchBuckets).find(([, gained]) => gained === batches)?.[0],
    queue: now.queue,
  };
}
