// The dialog that takes an API key.

import { apiKey, useKey } from "./api.js";
import { byId } from "./dom.js";

export class KeyDialog {
  #dialog = byId("key-dialog");
  #field = byId("key");

  /** `onChange()` is called when another key is in use. */
  constructor({ onChange }) {
    byId("key-button").addEventListener("click", () => this.open());
    byId("key-cancel").addEventListener("click", () => this.#dialog.close());
    byId("key-forget").addEventListener("click", () => {
      useKey("");
      this.#dialog.close();
      this.#show();
      onChange();
    });
    byId("key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const secret = this.#field.value.trim();
      if (!secret) {
        byId("key-error").textContent = "Enter a key, or cancel.";
        this.#field.focus();
        return;
      }
      useKey(secret);
      this.#dialog.close();
      this.#show();
      onChange();
    });
    this.#show();
  }

  /** Open, with why: nothing if the user wants to. */
  open(problem = null) {
    byId("key-error").textContent = problem && apiKey() ? `The key was refused: ${problem.detail}` : "";
    byId("key-forget").hidden = !apiKey();
    if (this.#dialog.open) return;
    this.#field.value = apiKey();
    this.#dialog.showModal();
    this.#field.select();
  }

  #show() {
    byId("key-button").textContent = apiKey() ? "API key set" : "API key";
  }
}
