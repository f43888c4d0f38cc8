// A saved incident, as `pontoon events --save` wrote it: a model that is looked at as the live one is.
//
// Nobody sampled how the members stood. What each was follows from what the journals tell: a record that changes something
// makes a sample, which holds until the next one. How far the logs were, and which writes were made, is not in them.
//
// Silence alone is no death: a member that is cut off tells nothing either. A member is gone from its last word on if it
// began anew later, or if others found that it does not answer and none that it does. One that died before anybody asked
// for its journal is known by what the others say of it: that it led, and when it was lost.

import { Model } from "./model.js";

/** No larger file is opened, here or by `pontoon events --from`. */
export const MOST_BYTES = 32 * 1024 * 1024;
/** The newest form of the file that is known here. */
const FORMAT = 1;
/** No cluster is so large. */
const MOST_MEMBERS = 64;
/** The run of a member that told nothing. */
const HEARSAY = "hearsay";

/** Heads and records of a file; what is wrong with it is thrown. */
function parse(text) {
  const [heads, records, known] = [[], [], new Set()];
  const lines = text.split("\n");
  lines.forEach((line, at) => {
    if (!line.trim()) return;
    let json;
    try {
      json = JSON.parse(line);
    } catch {
      // Saving was cut off in it.
      if (at > 0 && at === lines.length - 1) return;
      throw new Error(`line ${at + 1} is no JSON: it should be a file of pontoon events --save`);
    }
    if (json?.format > FORMAT) throw new Error(`it has format ${json.format}, of version ${json.version}: open it in a page of that version`);
    if (json?.format) return heads.push(json);
    if (typeof json?.member !== "string" || typeof json.kind !== "string" || typeof json.says !== "string" || !Number.isFinite(json.at)) {
      throw new Error(`line ${at + 1} is no event: it should be a file of pontoon events --save`);
    }
    json.key = `${json.member} ${json.run} ${json.seq}`;
    if (!known.has(json.key)) records.push(json);
    known.add(json.key);
  });
  if (records.length === 0) throw new Error("there is no event in it");
  return { heads, records: records.sort((a, b) => a.at - b.at || a.seq - b.seq) };
}

export class Replay extends Model {
  constructor(file, text) {
    super();
    const { heads, records } = parse(text);
    const head = heads.at(-1) ?? {};
    this.file = file;
    this.records = records;
    this.savedAt = Number.isFinite(head.saved_at) ? head.saved_at : null;
    this.end = Math.max(records.at(-1).at, this.savedAt ?? 0);
    this.know(heads, records);
    this.samples = new Walk(this).samples();
  }

  /** Who was ever a member. */
  know(heads, records) {
    const named = heads.flatMap((one) => (Array.isArray(one.members) ? one.members : []));
    for (const { id, name } of named) this.names.set(String(id), String(name ?? ""));
    for (const { member, name } of records) if (name || !this.names.has(member)) this.names.set(member, String(name ?? ""));
    if (this.names.size > MOST_MEMBERS) throw new Error(`it tells of more than ${MOST_MEMBERS} members`);
    this.learners = new Set(named.filter((one) => one.voter === false).map((one) => one.id));
    const everybody = [...this.names].map(([id, name]) => ({ id, name }));
    this.everybody = everybody.sort((a, b) => (a.name || a.id).localeCompare(b.name || b.id, "en", { numeric: true }));
  }

  /** Its time ends. */
  now() {
    return this.end;
  }

  /** The moment at which to begin: its last event, and that it can be seen. */
  last() {
    return Math.min(this.end, this.records.at(-1).at + 1000);
  }

  at(time) {
    const sample = super.at(time);
    const members = sample.members.map((member) => ({ ...member, age_ms: member.gone === null ? 0 : Math.max(0, time - member.gone) }));
    return { now: time, members };
  }
}

/** A walk through the records, from the first to the last. */
class Walk {
  constructor(replay) {
    this.replay = replay;
    this.states = new Map();
    /** Those that the last record of the membership names; none: nobody told. */
    this.members = null;
    this.learners = replay.learners;
    this.runs = runs(replay.records, replay.everybody);
    for (const run of this.runs.filter((one) => one.run === HEARSAY)) this.begin(run);
  }

  begin(run) {
    const state = { run, gone: null, leader: null, links: {}, ...run.birth };
    this.states.set(run.member, state);
    return state;
  }

  samples() {
    const { records, end } = this.replay;
    const gone = this.runs.filter((run) => run.gone !== null).map((run) => ({ kind: "gone", at: run.gone, run }));
    // A death at the moment of a record comes behind it: it may be that member's last.
    const steps = [...records, ...gone].sort((a, b) => a.at - b.at || (a.kind === "gone") - (b.kind === "gone"));
    const samples = [];
    steps.forEach((step, at) => {
      const changes = this.take(step);
      this.dirty ||= changes;
      if (!this.dirty || steps[at + 1]?.at === step.at) return;
      samples.push(this.sample(step.at));
      this.dirty = false;
    });
    // What is so at last is so to the end.
    return [...samples, this.sample(Math.max(end, samples.at(-1).now + 1))];
  }

  /** Whether it changes what is seen. */
  take(step) {
    if (step.kind === "gone") {
      const state = this.states.get(step.run.member);
      if (state?.run !== step.run) return false;
      state.gone = step.at;
      return true;
    }
    const run = this.runs.find((one) => one.member === step.member && one.run === step.run);
    const before = this.states.get(step.member);
    const begins = before?.run !== run;
    return this.change(begins ? this.begin(run) : before, step) || begins;
  }

  change(state, step) {
    switch (step.kind) {
      case "role":
        [state.role, state.term] = [step.to, step.term];
        return true;
      case "term":
        state.term = step.to;
        return true;
      case "leader-elected":
      case "leader-back":
        [state.leader, state.term] = [step.leader, Math.max(state.term, step.term)];
        this.hear(step);
        return true;
      case "leader-lost":
        state.leader = null;
        return true;
      case "link-up":
      case "link-down":
        state.links = { ...state.links, [step.peer]: { up: step.kind === "link-up" } };
        return true;
      case "membership":
        this.learners = new Set(step.learners);
        this.members = new Set([...step.voters, ...step.learners]);
        return true;
      default:
        return false;
    }
  }

  /** Others say that a member leads: it may have had nobody to tell it to. */
  hear({ leader, term }) {
    const state = this.states.get(leader);
    if (state && state.gone === null && state.term < term) Object.assign(state, { role: "leader", term, leader });
  }

  sample(now) {
    const is = ({ id }) => !this.members || this.members.has(id) || this.states.get(id)?.gone === null;
    const members = this.replay.everybody.filter(is).map(({ id, name }) => {
      const state = this.states.get(id);
      const alive = state !== undefined && state.gone === null;
      const figures = state ? { role: state.role, term: state.term, leader: state.leader, links: state.links } : null;
      return { id, name, alive, figures, gone: state?.gone ?? null, age_ms: 0, rate: 0, voter: !this.learners.has(id), urls: [], here: false };
    });
    return { now, members };
  }
}

/** The runs of all members: {member, run, first, last, gone, birth}. */
function runs(records, everybody) {
  const all = new Map();
  for (const record of records) {
    const key = `${record.member} ${record.run}`;
    const run = all.get(key) ?? { member: record.member, run: record.run, first: record.at, own: [] };
    run.own.push(record);
    all.set(key, run);
  }
  const told = new Set(records.map((record) => record.member));
  const silent = everybody.filter(({ id }) => !told.has(id));
  const list = [...all.values(), ...silent.map(({ id }) => ({ member: id, run: HEARSAY, first: records[0].at, own: [] }))];
  for (const run of list) {
    run.last = run.own.at(-1)?.at ?? run.first;
    const next = list.find((other) => other.member === run.member && other.first > run.last);
    run.gone = end(run, next, records);
    run.birth = birth(run.own);
    delete run.own;
  }
  return list;
}

/** When a run ended; none: not that anybody knew. */
function end(run, next, records) {
  if (run.own.some((record) => record.kind === "stopping" || record.kind === "failed")) return run.last;
  const until = next?.first ?? Infinity;
  const later = records.filter((record) => record.member !== run.member && record.at >= run.last && record.at <= until);
  const answered = later.findLastIndex((record) => record.kind === "link-up" && record.peer === run.member);
  const silent = later.slice(answered + 1);
  const down = silent.find((record) => record.kind === "link-down" && record.peer === run.member);
  if (!next && !down) return null;
  // Who waited for it to lead knows best when its last word was.
  const missed = silent.find((record) => record.kind === "leader-lost" && record.leader === run.member);
  const words = [down?.at, missed && missed.at - missed.silent_ms].filter((at) => at !== undefined && at >= run.last);
  return words.length > 0 ? Math.min(...words) : run.last;
}

/** What a member was before it told anything: the beginning of its journal may be gone. */
function birth(own) {
  const role = own.find((record) => record.kind === "role");
  const term = own.find((record) => ["term", "role", "leader-elected", "leader-back"].includes(record.kind));
  const learns = own.find((record) => record.kind === "membership")?.learners.includes(own[0]?.member);
  return { role: role?.from ?? (learns ? "learner" : "follower"), term: (term?.kind === "term" ? term.from : term?.term) ?? 0 };
}
