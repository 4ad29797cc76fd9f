// The pickers of model and version, from `GET /models`.

import { askJson } from "./api.js";
import { byId, make } from "./dom.js";

const STATES = { available: "not loaded", loading: "loading", retiring: "retiring", incomplete: "incomplete", failed: "failed" };

export class Models {
  #models = [];
  #model = byId("model");
  #version = byId("version");
  #onChange;
  #shape = "";

  /** `onChange()` is called when another model or version is chosen. */
  constructor({ onChange }) {
    this.#onChange = onChange;
    this.#model.addEventListener("change", () => {
      this.#fillVersions("");
      this.#onChange();
    });
    this.#version.addEventListener("change", () => this.#onChange());
  }

  /** Ask what is served. What was chosen stays chosen if it still is there. */
  async load() {
    const { models } = await askJson("models");
    const shape = JSON.stringify(models);
    if (shape === this.#shape) return;
    this.#shape = shape;
    this.#models = models;
    const before = this.#model.value;
    const served = models.filter((model) => model.versions.length);
    this.#model.replaceChildren(
      ...models.map((model) =>
        make("option", { value: model.name, disabled: !model.versions.length }, model.versions.length ? model.name : `${model.name} (not served)`),
      ),
    );
    const wanted = served.find((model) => model.name === before) ?? served.find((model) => model.default) ?? served[0];
    if (wanted) this.#model.value = wanted.name;
    this.#model.disabled = !wanted;
    this.#fillVersions(this.#version.disabled ? "" : this.#version.value);
    return true;
  }

  #fillVersions(chosen) {
    const model = this.current;
    const aliases = Object.entries(model?.aliases ?? {});
    const all = model?.all_versions ?? model?.versions.map((version) => ({ version, state: "serving" })) ?? [];
    const newest = model?.versions.at(-1);
    const byDefault = aliases.find(([name]) => name === "default")?.[1];
    const options = [make("option", { value: "" }, byDefault ? `default (${split(byDefault)})` : `newest (${newest})`)];
    for (const [name, alias] of aliases)
      if (name !== "default") options.push(make("option", { value: name }, `${name} (${split(alias)})`));
    for (const { version, state } of all.toReversed()) {
      const served = state === "serving" || state === "stale";
      options.push(make("option", { value: version, disabled: !served }, served ? version : `${version} (${STATES[state] ?? state})`));
    }
    this.#version.replaceChildren(...(model ? options : []));
    this.#version.value = options.some((option) => option.value === chosen && !option.disabled) ? chosen : "";
    this.#version.disabled = !model;
  }

  /** The chosen model as `GET /models` describes it. */
  get current() {
    return this.#models.find((model) => model.name === this.#model.value);
  }

  /** Query parameters of what is chosen; null while nothing is served. */
  get selection() {
    return this.current ? { model: this.current.name, version: this.#version.value } : null;
  }
}

const split = ({ versions, mirror }) => {
  const parts = Object.entries(versions);
  const total = parts.reduce((sum, [, weight]) => sum + weight, 0);
  const shares = parts.map(([version, weight]) => (parts.length > 1 ? `${version}: ${Math.round((weight / total) * 100)} %` : version));
  const copies = Object.entries(mirror ?? {}).map(([version, percent]) => `copies to ${version}: ${percent} %`);
  return [...shares, ...copies].join(", ");
};
