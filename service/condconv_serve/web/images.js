// The images that were given, each with its answer, and the queue that sends them.

import { Problem, send } from "./api.js";
import { isOutage, isPassing } from "./advice.js";
import { upright } from "./orientation.js";
import { CLASSIFICATION } from "./tasks.js";

const AT_ONCE = 4; // requests; the server puts them into common batches
const TRIES = 6; // by itself, after refusals that pass
const OUTAGES = 3; // of the server, after each of which an image is sent again
let made = 0;

export class Images {
  items = [];
  #running = 0;
  #held = false;
  #request;
  #onChange;
  #onProblem;

  /**
   * @param {object} given
   * @param {() => {task: object, query: object} | null} given.request what to ask for each image (`tasks.js`) with which
   *   parameters; null while nothing is served
   * @param {(item: object) => void} given.onChange something about an image has changed
   * @param {(problem: object) => void} given.onProblem a refusal that isn't about one image
   */
  constructor({ request, onChange, onProblem }) {
    this.#request = request;
    this.#onChange = onChange;
    this.#onProblem = onProblem;
  }

  /** Take files and queue them. Returns their items. */
  add(files) {
    const added = [...files].map((file) => ({
      id: (made += 1),
      file,
      name: file.name || "pasted image",
      url: URL.createObjectURL(file),
      ...this.#fresh(),
    }));
    this.items.push(...added);
    for (const item of added) {
      this.#onChange(item);
      this.#turn(item);
    }
    this.#pump();
    return added;
  }

  remove(item) {
    this.#forget(item);
    this.items = this.items.filter((one) => one !== item);
    URL.revokeObjectURL(item.url);
  }

  /** Ask anew: for one image, or for all since the model has changed. With `keep` the old answers are shown meanwhile. */
  again(items = this.items, { keep = false } = {}) {
    for (const item of items) {
      this.#forget(item);
      Object.assign(item, keep ? unsent() : this.#fresh());
      this.#onChange(item);
    }
    this.#pump();
  }

  /** Send nothing for now; what is under way and fails waits. */
  hold() {
    this.#held = true;
  }

  goOn() {
    this.#held = false;
    for (const item of this.items) if (item.state === "held") item.state = "waiting";
    this.#pump();
  }

  #fresh() {
    return { task: this.#request()?.task ?? CLASSIFICATION, ...unsent(), ...unanswered() };
  }

  /** Show an upright copy where the browser wouldn't turn the image. */
  async #turn(item) {
    const copy = await upright(item.file);
    if (!copy || !this.items.includes(item)) return;
    URL.revokeObjectURL(item.url);
    item.url = URL.createObjectURL(copy);
    this.#onChange(item);
  }

  #forget(item) {
    item.abort?.abort();
    clearTimeout(item.timer);
  }

  #pump() {
    while (!this.#held && this.#running < AT_ONCE && this.#request()) {
      const item = this.items.find((one) => one.state === "waiting");
      if (!item) return;
      this.#run(item);
    }
  }

  async #run(item) {
    this.#running += 1;
    const abort = new AbortController();
    const { task, query } = this.#request();
    Object.assign(item, { state: "running", abort, task, problem: null });
    this.#onChange(item);
    const started = performance.now();
    try {
      const answer = await send(task.path, item.file, { query, signal: abort.signal });
      const [{ id: _id, filename: _filename, ...prediction }] = answer.predictions;
      Object.assign(item, unanswered(), { state: "done", asked: query, model: answer.model, ...prediction, roundTrip: performance.now() - started });
    } catch (problem) {
      if (abort.signal.aborted) return;
      if (problem.slug === undefined) console.error(problem);
      this.#failed(item, problem);
    } finally {
      this.#running -= 1;
      queueMicrotask(() => this.#pump());
    }
    if (!abort.signal.aborted) this.#onChange(item);
  }

  #failed(item, problem) {
    Object.assign(item, unanswered(), { problem });
    if (problem.slug === "unreachable" && item.outages === OUTAGES) {
      // The server is back each time, so it is this file: something on the way finds it too large.
      item.problem = new Problem({ slug: "not_sent", title: "The image can't be sent", detail: "The connection breaks each time." });
      item.state = "failed";
    } else if (isOutage(problem) || problem.slug === "unauthenticated") {
      if (problem.slug === "unreachable") item.outages += 1;
      item.state = "held";
      this.hold();
      this.#onProblem(problem);
    } else if (isPassing(problem) && item.tries < TRIES) {
      const seconds = Math.max(1, problem.retryAfter ?? 2 ** item.tries);
      Object.assign(item, { state: "later", tries: item.tries + 1, retryAt: Date.now() + seconds * 1000 });
      item.timer = setTimeout(() => {
        item.state = "waiting";
        this.#onChange(item);
        this.#pump();
      }, seconds * 1000);
    } else item.state = "failed";
  }
}

const unsent = () => ({ state: "waiting", tries: 0, outages: 0, problem: null });

const unanswered = () => ({
  asked: null,
  classes: null,
  detections: null,
  routing: null,
  insight: null,
  timings_ms: null,
  batch_size: null,
  cached: null,
  model: null,
  effects: new Map(),
  chosen: null,
});

/** Whether there is an answer to show, if only an old one. */
export const isAnswered = (item) => item.model !== null;
