// Asks again and again, but not while nobody looks, and more rarely if the answers take long.

export class Poll {
  #work;
  #seconds;
  #timer = null;
  #running = false;
  #again = false;
  #paused = false;

  /** Call the async `work` every `seconds`; it returns how many seconds to wait at least, if it knows. */
  constructor(work, { seconds }) {
    this.#work = work;
    this.#seconds = seconds;
    document.addEventListener("visibilitychange", () => this.#wake());
  }

  start() {
    this.#paused = false;
    this.#wake();
  }

  pause() {
    this.#paused = true;
    clearTimeout(this.#timer);
  }

  /** Ask at once, since something has changed. */
  soon() {
    if (this.#running) this.#again = true;
    else this.#wake();
  }

  async #wake() {
    clearTimeout(this.#timer);
    if (this.#paused || document.hidden || this.#running) return;
    this.#running = true;
    this.#again = false;
    const started = performance.now();
    let least = 0;
    try {
      least = (await this.#work()) ?? 0;
    } finally {
      this.#running = false;
      const took = (performance.now() - started) / 1000;
      const wait = this.#again ? 0 : Math.max(this.#seconds, least, took * 10);
      clearTimeout(this.#timer);
      if (!this.#paused && !document.hidden) this.#timer = setTimeout(() => this.#wake(), wait * 1000);
    }
  }
}
