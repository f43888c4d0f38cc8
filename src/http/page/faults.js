// Faults, where `pontoon cluster` allows them: its address comes from the member, the token from this page's own address.

import { $, el, say, sync } from "./dom.js";

export class Faults {
  constructor(announce) {
    this.announce = announce;
    this.state = null;
    const given = new URLSearchParams(location.hash.slice(1)).get("token");
    if (given) {
      sessionStorage.setItem("pontoon-token", given);
      // Not for the history, nor for whoever looks over the shoulder.
      history.replaceState(null, "", location.pathname);
    }
    this.token = sessionStorage.getItem("pontoon-token");
  }

  /** Where to ask; none: nothing can be done to this cluster from here. */
  at(control) {
    if (!control || this.control === control) return;
    this.control = control;
    clearInterval(this.timer);
    if (!this.token) return;
    this.look();
    this.timer = setInterval(() => this.look(), 500);
  }

  async look() {
    try {
      const response = await fetch(`${this.control}/state`, { headers: { authorization: `Bearer ${this.token}` }, signal: AbortSignal.timeout(2000) });
      this.state = response.ok ? await response.json() : null;
    } catch {
      this.state = null;
    }
    this.draw();
  }

  async act(act, fields) {
    try {
      const response = await fetch(`${this.control}/do`, {
        method: "POST",
        headers: { authorization: `Bearer ${this.token}`, "content-type": "application/json" },
        body: JSON.stringify({ act, ...fields }),
      });
      const said = await response.text();
      this.announce(response.ok ? said : `refused: ${said}`);
    } catch (error) {
      this.announce(`pontoon cluster does not answer: ${error.message}`);
    }
    this.look();
  }

  /** What can be done to a member now. */
  buttons(box, member) {
    const process = this.state?.members.find((one) => one.name === member.name);
    const leads = member.alive && member.figures.role === "leader";
    const acts = !process ? [] : process.state === "running"
      ? [["kill", "Kill -9", "harm"], ["pause", "Pause"], ["stop", "Stop"], ...(leads ? [] : [["lead", "Make leader"]])]
      : process.state === "paused" ? [["resume", "Resume"], ["kill", "Kill -9", "harm"]]
      : [["start", "Start"], ["wipe", "Wipe its disk", "harm"]];
    sync(box, acts, ([act]) => act, ([act, name, kind]) =>
      el("button", { type: "button", class: kind, "data-act": act, "aria-label": `${name}: ${member.name}`, click: () => this.act(act, { member: member.name }) }, name));
  }

  /** A key was pressed on a member's card; whether it means something there. */
  key(card, key) {
    const acts = { k: ["kill"], p: ["pause", "resume"], s: ["stop", "start"], w: ["wipe"], l: ["lead"] }[key] ?? [];
    const button = acts.map((act) => card.querySelector(`button[data-act=${act}]`)).find((button) => button);
    button?.click();
    return button !== undefined && button !== null;
  }

  /** The links, each way. */
  draw() {
    const links = this.state?.links ?? [];
    $("links").hidden = links.length === 0;
    $("fault-keys").hidden = links.length === 0;
    const pairs = links.filter((link) => link.from < link.to);
    const back = (pair) => links.find((link) => link.from === pair.to && link.to === pair.from);
    sync($("links-table"), pairs, (pair) => `${pair.from} ${pair.to}`, (pair) => {
      const select = el("select", { "aria-label": `Link between ${pair.from} and ${pair.to}`, change: (event) => this.link(pair, event.target.value) });
      for (const [value, name] of [["up", "up"], ["slow", "slow, 150 ms each way"], ["cut", "cut both ways"], ["there", `cut ${pair.from} → ${pair.to}`], ["here", `cut ${pair.to} → ${pair.from}`]]) {
        select.append(el("option", { value }, name));
      }
      return el("div", { class: "linkrow" }, el("span", {}, `${pair.from} – ${pair.to}`), select);
    }, (row, pair) => {
      const [there, here] = [pair.mode, back(pair)?.mode ?? "up"];
      const value = there === here ? there : there === "cut" ? "there" : here === "cut" ? "here" : "up";
      const select = row.querySelector("select");
      if (document.activeElement !== select) select.value = value;
      row.className = `linkrow ${there === "cut" || here === "cut" ? "cut" : there === "slow" ? "slow" : ""}`;
    });
  }

  link(pair, value) {
    const set = (from, to, mode) => this.act("link", { from, to, mode, ms: 150 });
    const [there, here] = { up: ["up", "up"], slow: ["slow", "slow"], cut: ["cut", "cut"], there: ["cut", "up"], here: ["up", "cut"] }[value];
    set(pair.from, pair.to, there);
    set(pair.to, pair.from, here);
    say($("announce"), `link between ${pair.from} and ${pair.to}: ${value}`);
  }
}
