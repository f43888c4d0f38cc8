// Opening a saved incident: by the button, or a file that is dropped on the page. It is read here and sent nowhere.

import { $, say } from "./dom.js";
import { MOST_BYTES, Replay } from "./replay.js";

export class Incident {
  /** `show` is given the replay that is looked at; none: what happens now. */
  constructor(show) {
    this.show = show;
    const input = $("open");
    input.addEventListener("change", () => {
      this.open(input.files[0]);
      // The same file can be chosen again.
      input.value = "";
    });
    $("replay-end").addEventListener("click", () => this.close());
    addEventListener("dragover", (event) => {
      if (event.dataTransfer.types.includes("Files")) event.preventDefault();
    });
    addEventListener("drop", (event) => {
      if (event.dataTransfer.files.length === 0) return;
      event.preventDefault();
      this.open(event.dataTransfer.files[0]);
    });
  }

  async open(file) {
    if (!file) return;
    try {
      if (file.size > MOST_BYTES) throw new Error(`it is larger than ${MOST_BYTES / 2 ** 20} MB, and no saved incident is`);
      const replay = new Replay(file.name, await file.text());
      this.say(`Replaying ${file.name}${replay.savedAt ? `, saved at ${moment(replay.savedAt)}` : ""}: ${about(replay)}`, false);
      this.show(replay);
    } catch (error) {
      this.show(null);
      this.say(`Cannot open ${file.name}: ${error.message}.`, true);
    }
  }

  /** Back to what happens now. */
  close() {
    $("replay").hidden = true;
    this.show(null);
    $("open").focus();
  }

  say(text, isWrong) {
    $("replay").hidden = false;
    $("replay").classList.toggle("bad", isWrong);
    say($("replay-says"), text);
    say($("replay-end"), isWrong ? "Close" : "Back to live");
  }
}

const moment = (ms) => new Date(ms).toLocaleString([], { dateStyle: "medium", timeStyle: "medium" });

function about({ records, everybody }) {
  const names = everybody.map((one) => one.name || one.id).join(", ");
  return `${records.length} event${records.length === 1 ? "" : "s"} of ${names}, from ${moment(records[0].at)} on.`;
}
