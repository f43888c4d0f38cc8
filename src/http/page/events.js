// The journal as a list, newest first, with a sentence about each on demand.

import { $, clock, el } from "./dom.js";

/** Events that are shown. */
const SHOWN = 250;

export class Events {
  constructor(model) {
    this.model = model;
    this.list = $("events");
  }

  /** Those of another model. */
  of(model) {
    this.model = model;
    this.list.dataset.drawn = "";
  }

  /** Those up to `time`. */
  draw(time) {
    const records = this.model.records;
    let end = records.length;
    while (end > 0 && records[end - 1].at > time) end -= 1;
    const newest = records[end - 1]?.key ?? "";
    const state = `${newest} ${end} ${this.model.names.size}`;
    if (this.list.dataset.drawn === state) return;
    this.list.dataset.drawn = state;
    const shown = records.slice(Math.max(0, end - SHOWN), end).reverse();
    this.list.replaceChildren(...shown.map((record) => this.item(record)));
  }

  item(record) {
    const trouble = ["leader-lost", "link-down", "failed", "slow-sync"].includes(record.kind) || record.answer === "none";
    const kind = trouble ? " trouble" : record.kind === "leader-elected" ? " win" : "";
    return el("li", {},
      el("span", { class: "t" }, clock(record.at)),
      el("span", { class: "who" }, this.model.name(record.member)),
      el("span", { class: `says${kind}` }, record.says),
      el("span", { class: "explain" }, record.explain));
  }
}
