// The experts of one image: heat map, comparisons, and what if one weren't there.

import { ablateAll, ablateBlock, ablateExpert, uniform, withoutExpert } from "./ablation.js";
import { adviceByHand, canPass } from "./advice.js";
import { askJson } from "./api.js";
import { BOX_EFFECTS } from "./box_effects.js";
import { CLASS_EFFECTS, place } from "./class_effects.js";
import { announce, blockName, byId, count, make, replaceIfOther, reveal, signed, sumOf } from "./dom.js";
import { HeatMap, legend } from "./heatmap.js";
import { DETECTION } from "./tasks.js";
import { ENTROPY, explanation, summary } from "./words.js";

const WEIGHTS = ["\u22121", "\u22120.25", "0", "+0.25", "+1"];

const [BEGINNING, OUTCOME] = [192, 360]; // pixels of the panel that must be seen: beside the map, and below it

const HINT = "Choose an expert, by click or with arrow keys and Enter, to see what the answer would have been without it.";

export class Experts {
  #map = new HeatMap(byId("map"), {
    label: "Routing weights, blocks by experts. Enter switches an expert off.",
    onChoose: (row, column, byPointer) => this.#choose(row, column, byPointer),
  });
  #view = byId("view");
  #item = null;
  #others = [];
  #average = null;
  #abort = null;
  #busy = null;
  #known = null;

  constructor() {
    this.#view.addEventListener("change", () => this.#draw());
    byId("ablate-all").addEventListener("click", () => (this.#busy === "all" ? this.#abort.abort() : this.#tryAll()));
  }

  /** Show an image's experts, comparable with others; hide with null. */
  show(item, others) {
    if (item !== this.#item || item?.effects !== this.#known) this.#stop();
    this.#item = item;
    this.#known = item?.effects;
    this.#others = others;
    byId("routing").hidden = !item;
    if (!item) return;
    this.#fillViews();
    this.#draw();
    this.#drawExpert();
  }

  /** Compare with this answer of `GET /routing` from now on. */
  set average(answer) {
    this.#average = answer;
    if (!this.#item) return;
    this.#fillViews();
    if (["live", "reference"].includes(this.#view.value)) this.#draw();
  }

  repaint() {
    if (this.#item) this.#draw();
  }

  get #blocks() {
    return Object.keys(this.#item.routing);
  }

  /** How what an expert does to the answer is asked for and shown, by the task. */
  get #effects() {
    return this.#item.task === DETECTION ? BOX_EFFECTS : CLASS_EFFECTS;
  }

  #stop() {
    this.#abort?.abort();
    this.#abort = null;
    this.#busy = null;
  }

  #weight(item, r, c) {
    return item.routing[this.#blocks[r]][c];
  }

  /** The average of live traffic or the reference, `[blocks][experts]`, if it is of this image's model. */
  #mean(kind) {
    const [answer, item] = [this.#average, this.#item];
    if (!answer || answer.model.name !== item.model.name || answer.model.version !== item.model.version) return null;
    if (kind === "reference") return answer.reference?.blocks.map(({ mean }) => mean) ?? null;
    return answer.images ? answer.blocks.map(({ experts }) => experts.map(({ mean }) => mean)) : null;
  }

  #fillViews() {
    const views = [["weights", "routing weights"]];
    if (this.#mean("live")) views.push(["live", "difference from live traffic"]);
    if (this.#mean("reference")) views.push(["reference", "difference from the reference profile"]);
    for (const other of this.#others) views.push([`image-${other.id}`, `difference from ${other.name}`]);
    views.push(["effect", "effect of switching each expert off"]);
    const shape = JSON.stringify(views);
    if (shape === this.#view.dataset.shape) return;
    const before = this.#view.value;
    this.#view.dataset.shape = shape;
    this.#view.replaceChildren(...views.map(([value, text]) => make("option", { value }, text)));
    this.#view.value = views.some(([value]) => value === before) ? before : "weights";
  }

  #draw() {
    const item = this.#item;
    const blocks = this.#blocks;
    replaceIfOther(byId("routing-summary"), summary(item));
    byId("ablate-all").hidden = true;
    byId("routing").classList.toggle("static", !blocks.length);
    if (!blocks.length) {
      this.#map.clear();
      byId("legend").replaceChildren();
      byId("map-note").textContent = "";
      return;
    }
    const shown = { rows: blocks.map(blockName), columns: blocks.map((block) => item.routing[block].length) };
    const view = this.#view.value;
    if (view === "weights") this.#drawWeights(shown);
    else if (view === "effect") this.#drawEffects(shown);
    else this.#drawDifferences(shown, view);
    const chosen = item.chosen;
    this.#map.mark(chosen);
  }

  #drawWeights(shown) {
    const item = this.#item;
    const live = this.#mean("live");
    const entropies = item.insight?.blocks;
    this.#map.show({
      ...shown,
      scale: "sequential",
      value: (r, c) => this.#weight(item, r, c),
      place: (value) => value,
      text: (value) => value.toFixed(2),
      describe: (r, c) => `${shown.rows[r]}, expert ${c}: weight ${this.#weight(item, r, c).toFixed(4)}${live ? `, on average ${live[r][c].toFixed(3)}` : ""}`,
      side: entropies && {
        title: "entropy",
        help: ENTROPY,
        value: (r) => entropies[r].entropy,
        describe: (r) => `entropy ${entropies[r].entropy.toFixed(3)}, strongest ${entropies[r].strongest.join(", ")}`,
      },
    });
    byId("legend").replaceChildren(...legend("sequential", ["0", "0.5", "1"]));
    const alike = this.#others.filter((other) => other.routing);
    byId("map-note").textContent = explanation([item, ...alike].map(({ routing }) => routing));
  }

  #drawDifferences(shown, view) {
    const item = this.#item;
    const other = this.#others.find((one) => `image-${one.id}` === view);
    const means = other ? this.#blocks.map((block) => other.routing[block]) : this.#mean(view);
    if (!means) return this.#drawWeights(shown);
    const difference = (r, c) => this.#weight(item, r, c) - means[r][c];
    const squares = means.map((row, r) => row.reduce((sum, _mean, c) => sum + difference(r, c) ** 2, 0));
    const each = squares.map((sum, r) => Math.sqrt(sum / shown.columns[r]));
    const name = other ? other.name : view === "live" ? "live traffic" : "the reference";
    this.#map.show({
      ...shown,
      scale: "diverging",
      value: difference,
      place,
      text: (value) => signed(value, 2),
      describe: (r, c) => `${shown.rows[r]}, expert ${c}: ${signed(difference(r, c), 3)}; here ${this.#weight(item, r, c).toFixed(3)}, ${name} ${means[r][c].toFixed(3)}`,
      side: null,
    });
    byId("legend").replaceChildren(...legend("diverging", WEIGHTS));
    const total = Math.sqrt(sumOf(squares) / sumOf(shown.columns));
    const most = each.indexOf(Math.max(...each));
    byId("map-note").textContent = `Weights of ${item.name} less those of ${name}. Root mean square ${total.toFixed(3)}; largest in ${shown.rows[most]} (${each[most].toFixed(3)}).`;
  }

  #drawEffects(shown) {
    const item = this.#item;
    const blocks = this.#blocks;
    const effect = (r, c) => item.effects.get(withoutExpert(blocks[r], c));
    const known = blocks.flatMap((_, r) => Array.from({ length: shown.columns[r] }, (_cell, c) => effect(r, c))).filter(Boolean);
    const kind = this.#effects;
    const button = byId("ablate-all");
    this.#map.show({
      ...shown,
      scale: kind.scale,
      value: (r, c) => (effect(r, c) ? kind.value(effect(r, c)) : null),
      place: kind.place,
      text: kind.text,
      describe: (r, c) =>
        effect(r, c) ? `${shown.rows[r]}, without expert ${c}: ${kind.describe(effect(r, c))}` : `${shown.rows[r]}, expert ${c}: not tried`,
      side: null,
    });
    byId("legend").replaceChildren(...legend(kind.scale, kind.legend));
    const all = sumOf(shown.columns);
    button.hidden = known.length === all;
    button.textContent = this.#busy === "all" ? "Stop" : `Switch off each of the ${all}`;
    byId("map-note").textContent = kind.note(known, all);
  }

  async #tryAll() {
    const item = this.#item;
    this.#stop();
    const abort = new AbortController();
    this.#abort = abort;
    this.#busy = "all";
    this.#draw();
    const say = (text) => {
      byId("map-note").textContent = text;
      announce(text);
    };
    say("Computing. The first time for a model takes some seconds longer.");
    try {
      await ablateAll(item, {
        kind: this.#effects,
        signal: abort.signal,
        onWait: (problem, seconds) => say(`${problem.title}: trying again in ${count(Math.ceil(seconds), "second")}.`),
        onPart: (done, all) => {
          if (item === this.#item) this.#draw();
          announce(`${done} of ${all} experts tried`);
        },
      });
    } catch (problem) {
      if (!abort.signal.aborted) say(`${problem.title}. ${problem.detail} ${adviceByHand(problem)}`);
      if (this.#abort !== abort) return;
      this.#busy = null;
      byId("ablate-all").textContent = "Go on";
      return;
    }
    if (this.#abort !== abort) return;
    this.#busy = null;
    this.#draw();
    this.#drawExpert();
  }

  /** Show what the answer would be without an expert; `byPointer` if it was clicked or tapped. */
  async #choose(row, column, byPointer = false) {
    const item = this.#item;
    item.chosen = [row, column];
    this.#map.mark(item.chosen);
    const block = this.#blocks[row];
    this.#listClasses(item, block, column);
    if (item.effects.has(withoutExpert(block, column))) {
      this.#drawExpert();
      this.#showPanel(byPointer);
      this.#announceEffect(item, row, column);
      return;
    }
    const computing = this.#compute(item, () => ablateExpert(item, block, column, this.#options()));
    this.#showPanel(byPointer);
    await computing;
    if (item !== this.#item || item.chosen?.[0] !== row || item.chosen[1] !== column) return;
    this.#showPanel(byPointer); // it has grown
    this.#announceEffect(item, row, column);
  }

  /** Bring the panel into view if it isn't. Who has pointed at an expert goes on there; a keyboard stays in the grid. */
  #showPanel(take = false) {
    const panel = byId("expert");
    const beside = panel.getBoundingClientRect().left >= byId("map").getBoundingClientRect().right;
    if (reveal(panel, { atLeast: beside ? BEGINNING : OUTCOME }) && take) panel.focus({ preventScroll: true });
  }

  #options() {
    return {
      kind: this.#effects,
      signal: this.#abort.signal,
      onWait: (problem, seconds) => this.#say(`${problem.title}. Trying again in ${count(Math.ceil(seconds), "second")}.`),
    };
  }

  /** Run one ablation, and show that it runs, what it gave, or why it didn't. */
  async #compute(item, work) {
    this.#stop();
    const abort = new AbortController();
    this.#abort = abort;
    this.#busy = "one";
    this.#drawExpert();
    try {
      await work();
    } catch (problem) {
      if (abort.signal.aborted) return;
      this.#busy = null;
      if (item === this.#item) this.#drawExpert(problem);
      announce(`${problem.title}. ${problem.detail}`);
      return;
    }
    if (this.#abort === abort) this.#busy = null;
    if (item !== this.#item) return;
    this.#drawExpert();
    if (this.#view.value === "effect") this.#draw();
  }

  #announceEffect(item, row, column) {
    const effect = item.effects.get(withoutExpert(this.#blocks[row], column));
    if (!effect) return;
    announce(`Without expert ${column} of ${blockName(this.#blocks[row])}: ${this.#effects.announced(effect)}`);
  }

  #say(text) {
    const note = byId("expert-body").querySelector(".progress span:last-child");
    if (note) note.textContent = text;
    announce(text);
  }

  async #listClasses(item, block, expert) {
    item.users = null;
    try {
      const found = await askJson(`routing/experts/${encodeURIComponent(block)}/${expert}`, {
        query: { model: item.model.name, version: item.model.version, window: "all", top: 6 },
      });
      // With few classes the two ends overlap.
      const most = found.most.slice(0, 3);
      const least = found.least.slice(0, 3).filter(({ index }) => !found.most.some((one) => one.index === index));
      item.users = { block, expert, most, least };
      if (item === this.#item) this.#drawExpert(null, { keep: true });
    } catch {
      // Without live statistics there are no classes to list, which takes nothing from the rest.
    }
  }

  #drawExpert(problem = null, { keep = false } = {}) {
    const item = this.#item;
    const title = byId("expert-title");
    const body = byId("expert-body");
    if (!item.chosen || !this.#blocks.length) {
      title.textContent = "What if it weren't there?";
      body.replaceChildren(make("p", {}, HINT));
      return;
    }
    if (keep && body.querySelector(".problem")) return;
    const [row, expert] = item.chosen;
    const block = this.#blocks[row];
    title.textContent = `${blockName(block)}, expert ${expert}`;
    const facts = [["weight for this image", this.#weight(item, row, expert).toFixed(4)]];
    const live = this.#mean("live");
    const reference = this.#mean("reference");
    if (live) facts.push(["in live traffic", live[row][expert].toFixed(4)]);
    if (reference) facts.push(["in the reference", reference[row][expert].toFixed(4)]);
    const effect = item.effects.get(withoutExpert(block, expert));
    const alike = item.effects.get(uniform(block));
    const users = item.users?.block === block && item.users.expert === expert ? item.users : null;
    body.replaceChildren(
      ...[
        make("dl", { class: "facts" }, ...facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)])),
        effect ? this.#effects.outcome("Without it", effect, item) : null,
        alike ? this.#effects.outcome("With all experts of the block alike", alike, item) : null,
        this.#busy === "one"
          ? make("div", { class: "progress" }, make("span", { class: "spinner", "aria-hidden": "true" }), make("span", {}, "Computing; the first time for a model takes some seconds."))
          : null,
        problem ? make("div", { class: "problem" }, make("h4", {}, problem.title), make("p", {}, problem.detail), make("p", {}, adviceByHand(problem))) : null,
        !effect && !this.#busy && !problem ? make("button", { type: "button", on: { click: () => this.#choose(row, expert) } }, "Switch it off") : null,
        problem && !effect && canPass(problem) ? make("button", { type: "button", on: { click: () => this.#choose(row, expert) } }, "Try again") : null,
        alike || this.#busy ? null : make("button", { type: "button", class: "quiet", on: { click: () => this.#makeAlike(block) } }, `Make all experts of ${blockName(block)} alike`),
        users?.most.length ? classList("Classes that use it most", users.most) : null,
        users?.least.length ? classList("and least", users.least) : null,
      ].filter(Boolean),
    );
  }

  async #makeAlike(block) {
    const item = this.#item;
    byId("expert").focus({ preventScroll: true });
    await this.#compute(item, () => ablateBlock(item, block, this.#options()));
    const effect = item.effects.get(uniform(block));
    if (effect) announce(`With all experts alike: ${this.#effects.announced(effect)}`);
  }
}

const classList = (title, classes) =>
  make(
    "div",
    { class: "users" },
    make("h4", {}, title),
    make("ol", { class: "plain" }, ...classes.map(({ label, mean, images }) => make("li", {}, `${label} `, make("span", { class: "soft" }, `${mean.toFixed(2)} in ${count(images, "image")}`)))),
  );
