// The stopwatch of the last failover: from the last word of the old leader to the first write that the new one acknowledged.

import { $, el, span } from "./dom.js";

export class Failover {
  /** `canary`: its writes count too; none: there were none. */
  constructor(model, canary, announce) {
    this.model = model;
    this.canary = canary;
    this.announce = announce;
    /** When somebody said that there is no leader any more. */
    this.lost = null;
    this.last = null;
    canary?.addEventListener("acknowledged", (event) => this.wrote(event.detail));
  }

  /** Records that are new to the page; `live`: they happened while it was looking. */
  hear(news, live) {
    for (const record of news) {
      if (record.kind === "leader-lost") this.lose(record);
      if (record.kind === "leader-elected") this.elect(record, live);
    }
  }

  lose(record) {
    // The word of those that waited: a leader that is cut off notices by itself only later.
    const at = record.at - (record.leader === record.member ? 0 : record.silent_ms);
    if (this.last && record.term < this.last.term) return;
    if (this.lost && record.term < this.lost.term) return;
    const again = this.lost?.term === record.term;
    if (again && record.leader === record.member) return;
    this.lost = { leader: record.leader, term: record.term, at: again ? Math.max(at, this.lost.at) : at };
    if (this.last && this.last.from.term === record.term) this.last.from = this.lost;
  }

  elect(record, live) {
    if (!this.lost || record.term <= this.lost.term) return;
    if (this.last && record.term <= this.last.term) return;
    this.last = { from: this.lost, leader: record.leader, term: record.term, at: record.at, firstWrite: null, check: null, live };
    const name = this.model.name(record.leader);
    if (live) this.announce(`${name} leads in term ${record.term}`);
  }

  wrote(write) {
    const last = this.last;
    if (!last || last.firstWrite || write.done < last.at) return;
    // Writes that were made long after are no measure.
    if (!last.live) return;
    last.firstWrite = write.done;
    this.check();
  }

  /** Looks for all acknowledged writes, once those under way have come to an end. */
  check() {
    const last = this.last;
    last.check = "…";
    setTimeout(async () => {
      for (let attempt = 0; attempt < 10 && last === this.last; attempt += 1) {
        try {
          last.check = (await this.canary.check()) ?? null;
          return;
        } catch {
          await new Promise((done) => setTimeout(done, 500));
        }
      }
    }, 300);
  }

  draw(leader, now) {
    const box = $("failover");
    const parts = this.parts(leader, now);
    const text = JSON.stringify(parts.map((part) => part.outerHTML));
    if (box.dataset.drawn === text) return;
    box.dataset.drawn = text;
    box.replaceChildren(...parts);
  }

  parts(leader, now) {
    const big = (value, what, kind = "") => el("div", {}, el("span", { class: `big ${kind}` }, value), el("small", {}, what));
    if (!leader && this.lost && (!this.last || this.lost.term >= this.last.term)) {
      const old = this.model.name(this.lost.leader);
      return [el("div", { class: "watch" }, big(span(Math.max(0, now - this.lost.at)), `without a leader, since the last word of ${old}`, "running"))];
    }
    const last = this.last;
    if (!last) return [el("p", { class: "quiet" }, this.canary ? "None was seen yet. Kill or pause the leader, and the clock runs." : "None up to this moment.")];
    const elected = Math.max(0, last.at - last.from.at);
    const total = last.firstWrite ? Math.max(elected, last.firstWrite - last.from.at) : null;
    const from = `${this.model.name(last.from.leader)} (term ${last.from.term}) → ${this.model.name(last.leader)} (term ${last.term})`;
    const watch = el("div", { class: "watch" },
      big(span(total ?? elected), total === null ? "from the last word to the new leader" : "from the last word to the first acknowledged write"));
    const check = last.check;
    if (check && check !== "…") {
      watch.append(big(String(check.lost), `acknowledged writes lost, of ${check.checked} looked for`, check.lost ? "bad" : "good"));
    }
    const phases = el("div", { class: "phases", "aria-hidden": "true" }, phase("p1", elected, span(elected)));
    if (total !== null) phases.append(phase("p2", total - elected, `+${span(total - elected)}`));
    const said = `${span(elected)} until a new leader was elected` + (total === null ? "" : `, ${span(total - elected)} more until it acknowledged a write`);
    return [watch, phases, el("p", { class: "quiet" }, `${from}: ${said}.`)];
  }
}

function phase(kind, length, text) {
  const part = el("span", { class: kind }, text);
  part.style.flexGrow = Math.max(1, Math.round(length));
  return part;
}
