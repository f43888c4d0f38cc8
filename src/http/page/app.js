// The page of a member: what it sees of the cluster, drawn four times a second; and, when that member dies, what another
// one sees.

import { $, clock, el, number, say, span, sync } from "./dom.js";
import { Calls, Feed } from "./feed.js";
import { Model } from "./model.js";
import { Members } from "./members.js";
import { Lanes } from "./lanes.js";
import { Canary } from "./canary.js";
import { Failover } from "./failover.js";
import { Events } from "./events.js";
import { Log } from "./log.js";
import { Keys } from "./keys.js";
import { Faults } from "./faults.js";

const announce = (text) => say($("announce"), text);
const feed = new Feed(location.origin);
const calls = new Calls(feed);
const model = new Model();
const faults = new Faults(announce);
const members = new Members(faults);
const canary = new Canary(calls, model);
const lanes = new Lanes(model, canary);
const failover = new Failover(model, canary, announce);
const events = new Events(model);
const log = new Log();
const keys = new Keys(calls);

/** The moment that is looked at; none: now. */
let past = null;
let hasLooked = false;

function draw() {
  const now = model.samples.at(-1);
  if (!now) return;
  const sample = past ? model.at(past) : now;
  const leader = Model.leader(sample);
  head(sample, leader);
  members.draw(sample, leader);
  lanes.draw(windowEnd(now), now.members, past);
  failover.draw(Model.leader(now));
  events.draw(past ?? Infinity);
  log.draw(sample, leader);
  const { all, good } = canary.share(model.now() - 60_000);
  say($("canary-says"), !canary.on && all === 0 ? "Canary writes measure it: small real writes, below pontoon/canary/, only while the switch above is on."
    : `${good} of ${all} canary writes of the last minute were acknowledged within 0.9 s. ${canary.trouble}`);
}

/** The right edge of the time line. */
function windowEnd(now) {
  return past ? Math.min(now.now, Math.max(past + lanes.window / 2, model.begin() + lanes.window)) : now.now;
}

function head(sample, leader) {
  const figures = sample.members.filter((member) => member.alive).map((member) => member.figures);
  say($("head-leader"), leader ? leader.name : "none");
  say($("head-term"), Math.max(0, ...figures.map((one) => one.term)));
  say($("head-committed"), number(Math.max(0, ...figures.map((one) => one.committed))));
  say($("head-rate"), `${number(sample.members.reduce((sum, member) => sum + (member.alive ? member.rate : 0), 0))}/s`);
  document.title = `${leader ? `${leader.name} leads` : "no leader"} – Pontoon`;
}

feed.addEventListener("hello", ({ detail }) => {
  model.electionMs = detail.election_ms;
  $("login-open").hidden = !detail.auth;
  say($("about"), `Pontoon ${detail.version}, cluster ${detail.cluster}.`);
  faults.at(detail.control);
  // A cluster to try is there to be tried: its canary sings from the start.
  if (detail.control && !hasLooked) setCanary(true);
  hasLooked = true;
});

feed.addEventListener("members", ({ detail }) => {
  model.take(detail);
  feed.learn(detail.members.flatMap((member) => member.urls));
  const here = detail.members.find((member) => member.here);
  through(detail.members, here);
  draw();
});

/** Through whom it is seen, and through whom else it could be. */
function through(all, here) {
  const reached = all.filter((member) => member.urls.length > 0);
  sync($("through"), reached, (member) => member.id, (member) => el("option", { value: member.urls[0] }, member.name), (option, member) => {
    option.selected = member.id === here?.id;
  });
}
$("through").addEventListener("change", (event) => feed.choose(event.target.value));

feed.addEventListener("journal", ({ detail }) => {
  const live = model.records.length > 0;
  failover.hear(model.hear(detail), live);
  draw();
});

feed.addEventListener("lost", ({ detail }) => {
  const here = model.samples.at(-1)?.members.find((member) => member.here);
  $("banner").hidden = false;
  say($("banner"), `${here?.name ?? detail} is gone: looking for another member…`);
});

feed.addEventListener("through", () => {
  if (!$("banner").hidden) announce("Another member shows the cluster now");
  $("banner").hidden = true;
});

// Without a feed time goes on, too.
setInterval(() => feed.hears || draw(), 500);
addEventListener("resize", draw);

function look(time) {
  const now = model.now();
  past = time >= now - 400 ? null : time;
  $("live").hidden = past === null;
  say($("scrub-at"), past === null ? "now" : `${clock(past).slice(0, 10)}`);
  draw();
}

$("scrub").addEventListener("input", (event) => {
  const [begin, now] = [model.begin(), model.now()];
  const part = Number(event.target.value) / 1000;
  event.target.setAttribute("aria-valuetext", part === 1 ? "now" : `${span((1 - part) * (now - begin))} ago`);
  look(part === 1 ? now : begin + part * (now - begin));
});

function back() {
  $("scrub").value = 1000;
  look(model.now());
}
$("live").addEventListener("click", back);
$("window").addEventListener("change", (event) => {
  lanes.window = Number(event.target.value) * 1000;
  draw();
});

function setCanary(on) {
  $("canary").checked = on;
  canary.set(on);
}
$("canary").addEventListener("change", (event) => setCanary(event.target.checked));

function setExplain(on) {
  $("explain").checked = on;
  $("events").classList.toggle("explained", on);
  try {
    localStorage.setItem("pontoon-explain", on ? "1" : "");
  } catch {
    // A browser that keeps nothing forgets this, too.
  }
}
$("explain").addEventListener("change", (event) => setExplain(event.target.checked));
try {
  setExplain(localStorage.getItem("pontoon-explain") === "1");
} catch {
  setExplain(false);
}

$("login-open").addEventListener("click", () => $("login").showModal());
$("login").querySelector("form").addEventListener("submit", async (event) => {
  if (event.submitter?.value !== "ok") return;
  event.preventDefault();
  try {
    const answer = await calls.call("/v3/auth/authenticate", { name: $("user").value, password: $("password").value });
    calls.token = answer.token;
    $("password").value = "";
    say($("login-open"), $("user").value);
    $("login").close();
    keys.list();
  } catch (error) {
    say($("login-says"), error.message);
  }
});

addEventListener("keydown", (event) => {
  const typing = event.target.closest("input:not([type=checkbox]):not([type=range]), textarea, select, dialog");
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const member = event.target.closest(".member");
  if (member && faults.key(member, event.key)) return event.preventDefault();
  const act = {
    e: () => setExplain(!$("explain").checked),
    c: () => setCanary(!$("canary").checked),
    n: back,
    "/": () => $("prefix").focus(),
  }[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});
