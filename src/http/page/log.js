// The end of the log: each entry fills as members append, commit and apply it.

import { $, el, paint, say, sync } from "./dom.js";

const ROWS = 12;
const WORDS = ["not in its log", "in its log", "committed", "applied", "another entry in its place"];

export class Log {
  draw(sample, leader) {
    const alive = sample.members.filter((member) => member.figures);
    const longest = leader ?? alive.sort((a, b) => b.figures.last - a.figures.last)[0];
    if (!longest) return;
    const entries = longest.figures.tail.slice(-ROWS).reverse();
    const table = $("log");
    const head = ["Entry", "What", ...sample.members.map((member) => member.name)];
    if (!table.tHead || table.tHead.textContent !== head.join("")) {
      const cells = head.map((name, at) => el("th", { scope: "col", class: at > 1 ? "c" : "" }, name));
      table.replaceChildren(el("thead", {}, el("tr", {}, ...cells)), el("tbody"));
    }
    sync(table.tBodies[0], entries, (entry) => `${entry.i}.${entry.t}`, (entry) => row(entry, sample.members), (line, entry) => {
      sample.members.forEach((member, at) => {
        const mark = line.children[at + 2].firstChild;
        const state = stateOf(entry, member);
        const kind = `mark m${state === 4 ? 0 : state}${state === 4 ? " other" : ""}`;
        if (mark.className === kind) return;
        mark.className = kind;
        mark.title = `${member.name}: ${WORDS[state]}`;
        say(mark.nextSibling, WORDS[state]);
      });
    });
  }
}

function row(entry, members) {
  const dot = el("span", { class: "dot", title: `term ${entry.t}` });
  paint(dot, entry.t);
  const line = el("tr", {}, el("td", {}, dot, String(entry.i)), el("td", { class: "what" }, entry.key ? `${entry.what} ${entry.key}` : entry.what));
  for (const _ of members) line.append(el("td", { class: "c" }, el("span", { class: "mark m0" }), el("span", { class: "unseen" })));
  paint(line, entry.t);
  return line;
}

/** How far an entry is with a member. */
function stateOf(entry, member) {
  const figures = member.figures;
  if (!figures || entry.i > figures.last) return 0;
  const own = figures.tail.find((other) => other.i === entry.i);
  if (own && own.t !== entry.t) return 4;
  if (entry.i <= figures.applied) return 3;
  return entry.i <= figures.committed ? 2 : 1;
}
