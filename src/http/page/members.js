// The members as cards, and as a ring with the links between them.

import { $, el, number, paint, say, span, svg, sync } from "./dom.js";

/** How a role looks where there is no colour. */
const SHAPES = { leader: "★", follower: "●", candidate: "?", learner: "◇", stopped: "■" };

/** What a member is, in a word. */
export function role(member) {
  if (!member.figures) return "not reached yet";
  if (!member.alive) return "no answer";
  const { role } = member.figures;
  if (role === "follower" && !member.figures.leader) return "without a leader";
  return role;
}

export class Members {
  /** `faults`: what can be done to them; none: they are only looked at. */
  draw(sample, leader, faults) {
    this.faults = faults;
    const head = Math.max(...sample.members.map((member) => member.figures?.last ?? 0), 0);
    sync($("members"), sample.members, (member) => member.id, (member) => this.card(member), (card, member) => {
      this.fill(card, member, leader, head);
    });
    ring(sample, leader);
  }

  card(member) {
    const bar = (name) => [el("span", {}, name), el("span", { class: "bar" }, el("span")), el("span", { class: "n" })];
    const card = el("article", { class: "member", tabindex: 0, "aria-label": member.name || member.id });
    card.append(
      el("header", {}, el("h3", {}, member.name || member.id), el("span", { class: "role" }), el("span", { class: "chip" })),
      el("div", { class: "bars" }, ...bar("Log"), ...bar("Committed"), ...bar("Applied")),
      el("p", { class: "facts" }, el("span"), el("span"), el("span"), el("span")),
      el("div", { class: "acts" }),
    );
    return card;
  }

  fill(card, member, leader, head) {
    const figures = member.figures;
    const shape = member.alive ? SHAPES[figures.role] : "✕";
    card.classList.toggle("gone", !member.alive);
    const name = card.querySelector(".role");
    name.classList.toggle("leader", member.alive && figures.role === "leader");
    say(name, `${shape} ${role(member)}${member.voter ? "" : ", no vote"}`);
    say(card.querySelector(".chip"), figures?.term ? `term ${figures.term}` : "–");
    if (figures) paint(card, figures.term);
    const values = [figures?.last, figures?.committed, figures?.applied];
    card.querySelectorAll(".bar > span").forEach((bar, at) => {
      // The last hundred entries are the width: a lag of one can be seen, and one of a thousand is empty.
      bar.style.width = `${Math.max(0, 100 - (head - (values[at] ?? 0)))}%`;
    });
    card.querySelectorAll(".bars .n").forEach((n, at) => {
      const lag = head - (values[at] ?? 0);
      say(n, values[at] === undefined ? "–" : `${number(values[at])}${lag > 0 ? ` (−${number(lag)})` : ""}`);
    });
    const facts = card.querySelectorAll(".facts span");
    const trip = member.alive && leader && leader.id !== member.id ? leader.figures.links[member.id]?.rtt_us : undefined;
    say(facts[0], member.alive ? `${number(member.rate)} req/s` : heard(member));
    say(facts[1], trip ? `${(trip / 1000).toFixed(trip < 10_000 ? 2 : 0)} ms to the leader and back` : "");
    say(facts[2], figures?.revision !== undefined ? `revision ${number(figures.revision)}` : "");
    say(facts[3], figures?.snapshot !== undefined ? `snapshot to ${number(figures.snapshot)}` : "");
    const acts = card.querySelector(".acts");
    if (this.faults) this.faults.buttons(acts, member);
    else acts.replaceChildren();
  }
}

const heard = (member) => (member.age_ms === null ? "never heard of here" : `last heard of ${span(member.age_ms)} ago`);

/** Where member number `at` of `count` is. */
function place(at, count) {
  const angle = (2 * Math.PI * at) / count - Math.PI / 2;
  return count === 1 ? [120, 120] : [120 + 78 * Math.cos(angle), 120 + 78 * Math.sin(angle)];
}

/** Whether two members reach each other: the word of either, if it is alive. */
function link(a, b) {
  const says = (from, to) => (from.alive ? from.figures.links[to.id]?.up : undefined);
  const words = [says(a, b), says(b, a)].filter((word) => word === true || word === false);
  if (words.includes(false)) return "down";
  if (words.length > 0) return "up";
  return a.alive && b.alive ? "" : "down";
}

function ring(sample, leader) {
  const parts = [];
  const places = sample.members.map((_, at) => place(at, sample.members.length));
  sample.members.forEach((a, i) => {
    sample.members.slice(i + 1).forEach((b, j) => {
      const state = link(a, b);
      // Heartbeats run along the leader's links.
      const other = leader && (leader.id === a.id ? i + 1 + j : leader.id === b.id ? i : -1);
      const [from, to] = other === i ? [i + 1 + j, i] : [i, i + 1 + j];
      const beat = state === "up" && leader && other >= 0 ? " beat" : "";
      parts.push(svg("path", { class: `link ${state}${beat}`, d: `M${places[from].join(" ")}L${places[to].join(" ")}` }));
    });
  });
  sample.members.forEach((member, at) => {
    const [x, y] = places[at];
    const leads = leader?.id === member.id;
    const group = svg("g", {});
    if (member.figures) paint(group, member.figures.term);
    if (leads) group.append(svg("circle", { class: "crown", cx: x, cy: y, r: 25 }));
    const inside = svg("text", { class: "in", x, y: y + 1 });
    inside.textContent = member.alive ? SHAPES[member.figures.role] : "✕";
    const name = svg("text", { x, y: y < 110 ? y - 30 : y + 40 });
    name.textContent = member.name;
    group.append(svg("circle", { class: `node${member.alive ? "" : " gone"}`, cx: x, cy: y, r: 20 }), inside, name);
    parts.push(group);
  });
  // Drawn anew only when it changed: what is animated goes on.
  const picture = $("ring");
  const text = parts.map((part) => part.outerHTML).join("");
  if (picture.dataset.drawn === text) return;
  picture.dataset.drawn = text;
  picture.replaceChildren(...parts);
  const said = sample.members.map((member) => `${member.name}: ${role(member)}`).join(", ");
  picture.setAttribute("aria-label", said);
}
