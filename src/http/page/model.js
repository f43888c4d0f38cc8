// What is known: samples of how members stand, and records of what happened to them.

/** Samples that are kept: ten minutes. */
const SAMPLES = 2400;
/** Records that are kept. */
const RECORDS = 4000;
/** A member whose figures are older is not reached. */
export const STALE = 1600;

export class Model {
  constructor() {
    this.samples = [];
    this.records = [];
    this.known = new Set();
    this.names = new Map();
    this.electionMs = 1000;
    this.skew = 0;
  }

  /** The cluster's clock, as the member in use has it. */
  now() {
    return Date.now() + this.skew;
  }

  name(id) {
    return this.names.get(id) || id;
  }

  /** A sample came. */
  take(sample) {
    this.skew = sample.now - Date.now();
    sample.members.sort((a, b) => (a.name || a.id).localeCompare(b.name || b.id, "en", { numeric: true }));
    const before = this.samples.at(-1);
    for (const member of sample.members) {
      if (member.name) this.names.set(member.id, member.name);
      const known = before?.members.find((other) => other.id === member.id);
      // Another member may not have heard of it yet, where the one before did.
      if (member.figures === null && known?.figures) {
        member.figures = known.figures;
        member.age_ms = known.age_ms + sample.now - before.now;
      }
      member.alive = member.figures !== null && member.age_ms < STALE;
      member.rate = rate(member, known);
    }
    this.samples.push(sample);
    if (this.samples.length > SAMPLES) this.samples.shift();
  }

  /** Records came; those that are new. */
  hear(journal) {
    const news = [];
    for (const [member, records] of Object.entries(journal)) {
      for (const record of records) {
        const key = `${member} ${record.run} ${record.seq}`;
        if (this.known.has(key)) continue;
        this.known.add(key);
        news.push({ ...record, member, key });
      }
    }
    if (news.length === 0) return news;
    news.sort((a, b) => a.at - b.at || a.seq - b.seq);
    this.records = [...this.records, ...news].sort((a, b) => a.at - b.at || a.seq - b.seq);
    for (const old of this.records.splice(0, Math.max(0, this.records.length - RECORDS))) this.known.delete(old.key);
    return news;
  }

  /** The sample nearest before `time`. */
  at(time) {
    let low = 0;
    let high = this.samples.length - 1;
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if (this.samples[middle].now <= time) low = middle;
      else high = middle - 1;
    }
    return this.samples[low];
  }

  /** When what is known begins. */
  begin() {
    const first = this.samples[0]?.now ?? this.now();
    return Math.min(first, this.records[0]?.at ?? first);
  }

  /** What a member was, from `from` on: pieces {from, to, role, term, alive}. Samples tell it; before them the journal. */
  lane(id, from) {
    const pieces = [];
    const add = (at, role, term, alive, to = at) => {
      const last = pieces.at(-1);
      const goesOn = last && last.role === role && last.term === term && last.alive === alive;
      if (last) last.to = goesOn ? to : at;
      if (!goesOn) pieces.push({ from: at, to, role, term, alive });
    };
    const first = this.samples[0]?.now ?? Infinity;
    let [role, term] = ["follower", 0];
    for (const record of this.records) {
      if (record.at >= first) break;
      if (record.member !== id) continue;
      if (record.kind === "term") term = record.to;
      if (record.kind === "role") [role, term] = [record.to, record.term];
      if (record.kind === "started") role = "follower";
      add(record.at, role, term, record.kind !== "stopping");
    }
    for (const sample of this.samples) {
      const member = sample.members.find((one) => one.id === id);
      // How old the figures are tells when the member was last well.
      if (!member?.figures) continue;
      const { role, term } = member.figures;
      if (member.alive) add(sample.now, role, term, true);
      else add(Math.max(pieces.at(-1)?.from ?? 0, sample.now - member.age_ms), role, term, false, sample.now);
    }
    return pieces.filter((piece) => piece.to >= from);
  }

  /** The leader in a sample: the one that leads in the highest term, as far as a majority may still agree. */
  static leader(sample) {
    const leads = (member) => member.alive && member.figures.role === "leader" && member.figures.leader === member.id;
    return sample?.members.filter(leads).sort((a, b) => b.figures.term - a.figures.term)[0];
  }
}

/** Requests a second, smoothed over about two seconds. */
function rate(member, before) {
  if (!member.figures || !before?.figures || before.figures.run !== member.figures.run) return 0;
  const seconds = (member.figures.now - before.figures.now) / 1000;
  if (seconds <= 0) return before.rate ?? 0;
  const current = (member.figures.requests - before.figures.requests) / seconds;
  return (before.rate ?? current) * 0.85 + current * 0.15;
}
