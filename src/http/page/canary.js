// Real writes, small and regular, from this page: is the cluster there for its clients? And what became of each write
// that was acknowledged?
//
// A write is one put by the JSON gateway, at the member in use. They go on while the switch is on and no longer; the keys
// are below pontoon/canary/, 512 at most, under a lease, so that they go when the page does. After each failover
// all keys are read back: one that holds an older number than was acknowledged is a lost write.

import { decode, encode } from "./dom.js";

/** Between writes. */
const SLOT = 250;
/** How long one may take. What comes later was not acknowledged. */
const PATIENCE = 900;
const KEYS = 512;
const LEASE_SECONDS = 60;
/** Writes that are remembered: ten minutes. */
const REMEMBERED = 2400;

export class Canary extends EventTarget {
  constructor(calls, model) {
    super();
    this.calls = calls;
    this.model = model;
    this.writes = [];
    this.on = false;
    this.number = 0;
    this.trouble = "";
    this.forget();
  }

  /** Begins with other keys. */
  forget() {
    this.prefix = `pontoon/canary/${Math.random().toString(36).slice(2, 8)}/`;
    this.acknowledged = new Map();
    this.lease = null;
  }

  set(on) {
    this.on = on;
    clearInterval(this.timer);
    clearInterval(this.keeper);
    if (!on) return;
    this.timer = setInterval(() => this.write(), SLOT);
    this.keeper = setInterval(() => this.keep(), (LEASE_SECONDS * 1000) / 4);
    this.write();
  }

  async begin(signal) {
    if (this.lease) return;
    this.granting ??= this.calls.call("/v3/lease/grant", { TTL: LEASE_SECONDS }, signal).finally(() => (this.granting = null));
    this.lease = (await this.granting).ID;
  }

  async keep() {
    if (!this.lease) return;
    try {
      const answer = await this.calls.call("/v3/lease/keepalive", { ID: this.lease }, AbortSignal.timeout(5000));
      if (Number(answer.result?.TTL ?? 0) <= 0) this.forget();
    } catch {
      // Without a leader it is not kept; the next one gives it its whole time again.
    }
  }

  async write() {
    const number = (this.number += 1);
    const write = { at: this.model.now(), slot: SLOT, state: "pending", took: 0 };
    this.writes.push(write);
    if (this.writes.length > REMEMBERED) this.writes.shift();
    const began = performance.now();
    const [prefix, slot] = [this.prefix, number % KEYS];
    try {
      const signal = AbortSignal.timeout(PATIENCE);
      await this.begin(signal);
      const put = { key: encode(prefix + slot), value: encode(String(number)), lease: this.lease };
      await this.calls.call("/v3/kv/put", put, signal);
      write.took = performance.now() - began;
      write.done = this.model.now();
      write.state = write.took < SLOT ? "good" : "slow";
      this.trouble = "";
      if (prefix === this.prefix) this.acknowledged.set(slot, Math.max(number, this.acknowledged.get(slot) ?? 0));
      this.dispatchEvent(new CustomEvent("acknowledged", { detail: write }));
    } catch (error) {
      write.state = "failed";
      write.took = performance.now() - began;
      if (/lease not found/.test(error.message)) this.forget();
      this.trouble = error.name === "TimeoutError" ? "" : error.message;
    }
  }

  /** Reads all of it back: how many acknowledged writes were looked for, and how many are lost. */
  async check() {
    const [prefix, expected] = [this.prefix, new Map(this.acknowledged)];
    const end = prefix.slice(0, -1) + "0";
    const answer = await this.calls.call("/v3/kv/range", { key: encode(prefix), range_end: encode(end), limit: KEYS }, AbortSignal.timeout(8000));
    const found = new Map((answer.kvs ?? []).map((kv) => [Number(decode(kv.key).slice(prefix.length)), Number(decode(kv.value))]));
    // With the lease the keys go: then nothing can be said.
    if (prefix !== this.prefix) return null;
    const lost = [...expected].filter(([slot, number]) => !(found.get(slot) >= number));
    return { checked: expected.size, lost: lost.length };
  }

  /** The share of the writes that were acknowledged lately. */
  share(since) {
    const recent = this.writes.filter((write) => write.at >= since && write.state !== "pending");
    const good = recent.filter((write) => write.state !== "failed");
    return { all: recent.length, good: good.length };
  }
}
