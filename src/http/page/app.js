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
import { Incident } from "./incident.js";

const announce = (text) => say($("announce"), text);
const feed = new Feed(location.origin);
const calls = new Calls(feed);
const model = new Model();
const faults = new Faults(announce);
const members = new Members();
const canary = new Canary(calls, model);
const lanes = new Lanes(model, canary, (time) => look(time));
const failover = new Failover(model, canary, announce);
const events = new Events(model);
const log = new Log();
const keys = new Keys(calls);
new Incident(show);

/** A saved incident that is looked at, in the place of what happens. */
let replay = null;
/** The moment that is looked at; none: now. */
let past = null;
/** How much the time line shows; none: all that is known. */
let windowSeconds = 60;
let hasLooked = false;

const shown = () => replay ?? model;

function draw() {
  if (replay) return drawReplay();
  const now = model.samples.at(-1);
  if (!now) return;
  const sample = past ? model.at(past) : now;
  const leader = Model.leader(sample);
  head(sample, leader);
  members.draw(sample, leader, faults);
  time(now.now, now.members);
  failover.draw(Model.leader(now), model.now());
  events.draw(past ?? Infinity);
  log.draw(sample, leader);
  const { all, good } = canary.share(model.now() - 60_000);
  say($("canary-says"), !canary.on && all === 0 ? "Canary writes measure it: small real writes, below pontoon/canary/, only while the switch above is on."
    : `${good} of ${all} canary writes of the last minute were acknowledged within 0.9 s. ${canary.trouble}`);
}

function drawReplay() {
  const sample = replay.at(past);
  const leader = Model.leader(sample);
  head(sample, leader);
  members.draw(sample, leader, null);
  time(replay.now(), replay.everybody);
  const failover = new Failover(replay);
  failover.hear(replay.records.filter((record) => record.at <= past), false);
  failover.draw(leader, past);
  events.draw(past);
}

/** Shows a saved incident; none: what happens now. */
function show(saved) {
  replay = saved;
  document.body.classList.toggle("replaying", replay !== null);
  lanes.of(shown(), replay ? null : canary);
  events.of(shown());
  look(replay ? replay.last() : model.now());
}

/** The time line, which goes on to `now`: around the moment that is looked at. */
function time(now, everybody) {
  const begin = shown().begin();
  const all = Math.max(5000, now - begin);
  // What is short is shown whole; what happens now is not stretched.
  lanes.window = !windowSeconds || (replay && all < windowSeconds * 1000) ? all : windowSeconds * 1000;
  const end = past ? Math.min(now, Math.max(past + lanes.window / 2, begin + lanes.window)) : now;
  lanes.draw(end, everybody, past);
}

function head(sample, leader) {
  const figures = sample.members.filter((member) => member.alive).map((member) => member.figures);
  say($("head-leader"), leader ? leader.name : "none");
  say($("head-term"), Math.max(0, ...figures.map((one) => one.term)));
  say($("head-committed"), number(Math.max(0, ...figures.map((one) => one.committed))));
  say($("head-rate"), `${number(sample.members.reduce((sum, member) => sum + (member.alive ? member.rate : 0), 0))}/s`);
  document.title = replay ? `${replay.file} – Pontoon` : `${leader ? `${leader.name} leads` : "no leader"} – Pontoon`;
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
  if (!replay) draw();
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
  if (!replay) draw();
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
setInterval(() => feed.hears || replay || draw(), 500);
addEventListener("resize", draw);

/** Looks at a moment. In what happens the newest one is now; in a saved incident all of it is past. */
function look(time) {
  const [begin, now] = [shown().begin(), shown().now()];
  past = !replay && time >= now - 400 ? null : time;
  $("live").hidden = past === null || replay !== null;
  $("scrub").value = past === null ? 1000 : (1000 * (past - begin)) / Math.max(1, now - begin);
  $("scrub").setAttribute("aria-valuetext", past === null ? "now" : replay ? clock(past) : `${span(now - past)} ago`);
  say($("scrub-at"), past === null ? "now" : `${clock(past).slice(0, 10)}`);
  draw();
}

$("scrub").addEventListener("input", (event) => {
  const [begin, now] = [shown().begin(), shown().now()];
  look(begin + (Number(event.target.value) / 1000) * (now - begin));
});

const back = () => look(shown().now());
$("live").addEventListener("click", back);

/** To the event before the moment that is looked at, or to the one after it. */
function step(forward) {
  const { records } = shown();
  const at = past ?? Infinity;
  const next = forward ? records.find((record) => record.at > at) : records.findLast((record) => record.at < at);
  if (next) look(next.at);
  else if (forward) back();
}
$("before").addEventListener("click", () => step(false));
$("after").addEventListener("click", () => step(true));

$("window").addEventListener("change", (event) => {
  windowSeconds = Number(event.target.value);
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
    ",": () => step(false),
    ".": () => step(true),
    o: () => $("open").click(),
    "/": () => $("prefix").focus(),
  }[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});
