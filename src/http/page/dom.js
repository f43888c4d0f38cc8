// Making and changing elements. What comes from a cluster is only ever set as text, never as markup.

/** An element by its id. */
export const $ = (id) => document.getElementById(id);

/** A new element: attributes (functions are listeners), then children, which are elements or text. */
export function el(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(key, value);
    else if (value !== undefined && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== undefined && child !== null));
  return element;
}

/** The same in SVG. */
export function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** Sets a text, if it is another one: what is selected or read aloud stays as it is. */
export function say(element, text) {
  text = String(text);
  if (element.textContent !== text) element.textContent = text;
}

/** Makes the children of `parent` those of `items`, keeping elements by key, so that focus is not lost. */
export function sync(parent, items, key, make, update) {
  const old = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let at = null;
  for (const item of items) {
    const name = String(key(item));
    let child = old.get(name);
    old.delete(name);
    if (!child) {
      child = make(item);
      child.dataset.key = name;
    }
    update?.(child, item);
    const place = at ? at.nextSibling : parent.firstChild;
    if (place !== child) parent.insertBefore(child, place);
    at = child;
  }
  for (const child of old.values()) child.remove();
}

/** Hues that differ clearly from their neighbours, and from the red of trouble. */
const HUES = [320, 212, 28, 150, 275, 48, 188, 95];

/** The hue of a term. */
export const hue = (term) => HUES[term % HUES.length];

/** Colours an element by a term. */
export const paint = (element, term) => element.style.setProperty("--hue", hue(term));

/** A time of day, to milliseconds. */
export function clock(ms) {
  const date = new Date(ms);
  const two = (n, width = 2) => String(n).padStart(width, "0");
  return `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}.${two(date.getMilliseconds(), 3)}`;
}

/** A duration as one would say it. */
export function span(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`;
  return `${Math.floor(ms / 60_000)} min ${Math.round((ms % 60_000) / 1000)} s`;
}

/** A number with gaps between thousands. */
export const number = (n) => Math.round(n).toLocaleString("en").replaceAll(",", "\u202f");

/** Bytes as base64, and back: how the JSON gateway has them. */
export function encode(text) {
  return btoa(String.fromCharCode(...new TextEncoder().encode(text)));
}

/** See [encode]; bytes that are no text are written as \xff. */
export function decode(base64 = "") {
  const bytes = Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    return [...bytes].map((byte) => (byte > 31 && byte < 127 ? String.fromCharCode(byte) : `\\x${byte.toString(16).padStart(2, "0")}`)).join("");
  }
}
