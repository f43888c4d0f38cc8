// The stream of what happens, from one member; from another one when that is gone.

/** A member that says nothing for so long is left: it may be paused, which no connection tells. */
const SILENCE = 2500;
/** Between two rounds of trying all members. */
const AGAIN = 400;

export class Feed extends EventTarget {
  constructor(home) {
    super();
    this.bases = [home];
    this.at = 0;
    this.tried = 0;
    this.hears = false;
    this.open();
  }

  /** Where requests go now. */
  get base() {
    return this.bases[this.at];
  }

  open() {
    const source = new EventSource(`${this.base}/ui/events`);
    this.source = source;
    for (const kind of ["hello", "members", "journal"]) {
      source.addEventListener(kind, (event) => {
        if (source !== this.source) return;
        this.tried = 0;
        this.wait();
        if (!this.hears) {
          this.hears = true;
          this.tell("through", this.base);
        }
        this.tell(kind, JSON.parse(event.data));
      });
    }
    source.addEventListener("error", () => source === this.source && this.next());
    this.wait();
  }

  wait() {
    clearTimeout(this.watchdog);
    this.watchdog = setTimeout(() => this.next(), SILENCE);
  }

  /** Goes to the next member. */
  next() {
    clearTimeout(this.watchdog);
    this.source.close();
    this.source = null;
    if (this.hears) {
      this.hears = false;
      this.tell("lost", this.base);
    }
    this.at = (this.at + 1) % this.bases.length;
    this.tried += 1;
    clearTimeout(this.retry);
    this.retry = setTimeout(() => this.open(), this.tried < this.bases.length ? 0 : AGAIN);
  }

  /** Looks through the member at `url` from now on. */
  choose(url) {
    this.learn([url]);
    const at = this.bases.indexOf(trimmed(url));
    if (at < 0 || at === this.at) return;
    // As if the one before it were gone.
    this.at = (at + this.bases.length - 1) % this.bases.length;
    this.tried = 0;
    this.next();
  }

  /** Members may be at these addresses: the one in use stays in use. */
  learn(urls) {
    const usable = urls.filter((url) => {
      const { protocol, hostname } = new URL(url);
      return protocol === location.protocol && hostname !== "0.0.0.0" && hostname !== "[::]";
    });
    const current = this.base;
    const bases = [...new Set([current, ...this.bases, ...usable.map(trimmed)])];
    if (bases.length !== this.bases.length) {
      this.bases = bases;
      this.at = bases.indexOf(current);
    }
  }

  tell(kind, detail) {
    this.dispatchEvent(new CustomEvent(kind, { detail }));
  }
}

const trimmed = (url) => url.replace(/\/$/, "");

/** Calls of the JSON gateway, at the member in use. */
export class Calls {
  constructor(feed) {
    this.feed = feed;
    this.token = null;
  }

  async fetch(path, body, signal) {
    const headers = { "content-type": "application/json" };
    if (this.token) headers.authorization = this.token;
    return fetch(this.feed.base + path, { method: "POST", headers, body: JSON.stringify(body), signal });
  }

  /** The answer; a refusal is thrown. */
  async call(path, body, signal) {
    const response = await this.fetch(path, body, signal);
    const answer = await response.json().catch(() => ({}));
    if (!response.ok) throw new Error(answer.message || answer.error || response.statusText);
    return answer;
  }
}
