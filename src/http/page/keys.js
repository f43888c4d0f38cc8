// Keys: found by prefix, read, with their history, changed only if nobody else changed them meanwhile, and watched.

import { $, decode, el, encode, say, sync } from "./dom.js";

const LIMIT = 200;
/** Versions of a key that are shown. */
const VERSIONS = 12;

export class Keys {
  constructor(calls) {
    this.calls = calls;
    this.kvs = new Map();
    this.open = null;
    this.base = null;
    $("search").addEventListener("submit", (event) => {
      event.preventDefault();
      this.list();
    });
    $("watch").addEventListener("change", () => this.watch($("watch").checked));
    $("edit").addEventListener("submit", (event) => {
      event.preventDefault();
      this.put();
    });
    $("delete").addEventListener("click", () => this.remove());
    $("key").addEventListener("input", () => (this.base = $("key").value === this.open?.name ? this.base : null));
  }

  range() {
    const prefix = $("prefix").value;
    return prefix === "" ? { key: "AA==", range_end: "AA==" } : { key: encode(prefix), range_end: after(prefix) };
  }

  async list() {
    try {
      const answer = await this.calls.call("/v3/kv/range", { ...this.range(), limit: LIMIT });
      this.kvs = new Map((answer.kvs ?? []).map((kv) => [kv.key, kv]));
      const count = Number(answer.count ?? 0);
      say($("keys-says"), count > LIMIT ? `the first ${LIMIT} of ${count} keys, revision ${answer.header.revision}` : `${count} keys, revision ${answer.header.revision}`);
      this.draw();
      if ($("watch").checked) this.watch(true, Number(answer.header.revision) + 1);
    } catch (error) {
      this.refused($("keys-says"), error);
    }
  }

  draw(fresh) {
    const sorted = [...this.kvs.values()].sort((a, b) => (atob(a.key) < atob(b.key) ? -1 : 1)).slice(0, LIMIT);
    sync($("keys"), sorted, (kv) => kv.key, (kv) => {
      const button = el("button", { type: "button", click: () => this.show(kv.key) }, el("span"), el("span"));
      return el("li", {}, button);
    }, (item, kv) => {
      const [key, value] = item.firstChild.children;
      say(key, decode(kv.key));
      say(value, decode(kv.value).slice(0, 80));
      item.firstChild.setAttribute("aria-current", String(kv.key === this.open?.key));
      if (fresh === kv.key) {
        item.classList.remove("fresh");
        requestAnimationFrame(() => item.classList.add("fresh"));
      }
    });
  }

  /** Opens a key. */
  async show(key) {
    try {
      const answer = await this.calls.call("/v3/kv/range", { key });
      const kv = answer.kvs?.[0];
      this.open = { key, name: decode(key) };
      this.base = kv ? kv.mod_revision : "0";
      $("key").value = this.open.name;
      $("value").value = kv ? decode(kv.value) : "";
      say($("edit-says"), kv ? `version ${kv.version}, revision ${kv.mod_revision}` : "deleted");
      this.draw();
      await this.history(key, kv);
    } catch (error) {
      this.refused($("edit-says"), error);
    }
  }

  /** The versions of a key, newest first: each is read at the revision before the one after it. */
  async history(key, newest) {
    const versions = [];
    let kv = newest;
    let compacted = false;
    while (kv && versions.length < VERSIONS) {
      versions.push(kv);
      if (kv.mod_revision === kv.create_revision) break;
      try {
        kv = (await this.calls.call("/v3/kv/range", { key, revision: String(BigInt(kv.mod_revision) - 1n) })).kvs?.[0];
      } catch {
        compacted = true;
        break;
      }
    }
    if (this.open?.key !== key) return;
    const line = (version) => {
      const use = el("button", { type: "button", click: () => ($("value").value = decode(version.value)) }, "Take");
      return el("tr", {}, el("td", {}, version.mod_revision), el("td", {}, decode(version.value).slice(0, 60)), el("td", {}, use));
    };
    const head = el("tr", {}, ...["Revision", "Value", ""].map((name) => el("th", { scope: "col" }, name)));
    const rest = compacted ? [el("p", { class: "quiet" }, "What is before that was compacted.")] : [];
    $("history").replaceChildren(...(versions.length ? [el("table", {}, el("thead", {}, head), el("tbody", {}, ...versions.map(line))), ...rest] : []));
  }

  /** Does `request`, if the key is still as it was read. */
  async change(request, done) {
    const name = $("key").value;
    const key = encode(name);
    try {
      let answer;
      if (this.base !== null && this.open?.name === name) {
        const compare = [{ key, target: "MOD", result: "EQUAL", mod_revision: this.base }];
        answer = await this.calls.call("/v3/kv/txn", { compare, success: [request(key)] });
        if (!answer.succeeded) {
          say($("edit-says"), "Somebody else has changed it: open it again to see");
          return;
        }
      } else {
        answer = await this.calls.call("/v3/kv/txn", { success: [request(key)] });
      }
      await this.list();
      await this.show(key);
      say($("edit-says"), `${done} at revision ${answer.header.revision}`);
    } catch (error) {
      this.refused($("edit-says"), error);
    }
  }

  put() {
    const value = encode($("value").value);
    return this.change((key) => ({ request_put: { key, value } }), "put");
  }

  remove() {
    if ($("key").value === "") return;
    return this.change((key) => ({ request_delete_range: { key } }), "deleted");
  }

  /** Follows the prefix: what changes is shown as it happens, through another member too. */
  async watch(on, from = 0) {
    this.watching?.abort();
    if (!on) return;
    const abort = (this.watching = new AbortController());
    let next = from;
    while (!abort.signal.aborted) {
      try {
        const request = { create_request: { ...this.range(), ...(next ? { start_revision: String(next) } : {}) } };
        const response = await this.calls.fetch("/v3/watch", request, abort.signal);
        if (!response.ok) throw new Error((await response.json()).message);
        for await (const line of lines(response.body)) {
          const { result } = JSON.parse(line);
          if (!result) break;
          // A watch from a revision that is compacted goes on with what there is.
          if (result.compact_revision) next = Number(result.compact_revision);
          if (result.created) say($("keys-says"), `watching from revision ${next || Number(result.header.revision) + 1} on`);
          if (result.created && !next) next = Number(result.header.revision) + 1;
          for (const event of result.events ?? []) {
            next = Number(event.kv.mod_revision) + 1;
            this.happened(event);
          }
        }
      } catch (error) {
        if (abort.signal.aborted) return;
        say($("keys-says"), `the watch goes on elsewhere (${error.message})`);
      }
      await new Promise((done) => setTimeout(done, 300));
    }
  }

  happened({ type, kv }) {
    const key = kv.key;
    if (type === "DELETE") this.kvs.delete(key);
    else if (this.kvs.size < LIMIT || this.kvs.has(key)) this.kvs.set(key, kv);
    say($("keys-says"), `${type === "DELETE" ? "deleted" : "put"} ${decode(key)} at revision ${kv.mod_revision}`);
    this.draw(type === "DELETE" ? undefined : key);
  }

  refused(where, error) {
    say(where, error.name === "TypeError" ? "this member does not answer: once more, please" : error.message);
  }
}

/** The first key behind all that begin with `prefix`, as base64. */
function after(prefix) {
  const bytes = new TextEncoder().encode(prefix);
  // Text has no byte 0xff.
  bytes[bytes.length - 1] += 1;
  return btoa(String.fromCharCode(...bytes));
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    yield* parts.filter((line) => line !== "");
  }
}
