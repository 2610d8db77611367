"use strict";
// What the other scripts share: elements, packed data, numbers, colours. Text becomes a node only through `el`,
// which never parses it: whatever a model wrote is shown, not executed.

const $ = (id) => document.getElementById(id);

/** An element: attributes (functions are listeners, `class` and `text` as they say), then children or strings. */
function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for drawings. */
function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name, value);
    else if (name === "text") node.textContent = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  return put(node, children);
}

/** Append children; nested lists are flattened, null and false left out. */
function put(node, ...children) {
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** The text of a packed block: base64 of gzip. */
async function unpackText(id) {
  const binary = atob($(id).textContent);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

/** Keeps the last few results of an asynchronous function of one argument. */
function remembering(make, size) {
  const held = new Map();
  return (key) => {
    const found = held.get(key) ?? make(key);
    held.delete(key);
    held.set(key, found);
    if (held.size > size) held.delete(held.keys().next().value);
    return found;
  };
}

const unpackBlock = remembering(async (id) => JSON.parse(await unpackText(id)), 12);

const known = (value) => value !== null && value !== undefined;

function number(value, digits = 3) {
  if (!known(value)) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en-US");
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en-US");
  return size > 0 && size < 0.001 ? value.toExponential(1) : value.toFixed(size >= 100 ? 1 : digits);
}

const signed = (value, digits = 3) => (known(value) && value > 0 ? "+" : "") + number(value, digits).replace("-", "−");
const percent = (value) => (known(value) ? `${(100 * value).toFixed(1)} %` : "–");
/** "66.4 %" and "[60.4, 71.9]" of an estimate of a rate. */
const rateParts = (found) => [percent(found.value), known(found.low) ? `[${(100 * found.low).toFixed(1)}, ${(100 * found.high).toFixed(1)}]` : ""];
const rate = (found) => rateParts(found).join(" ");
const points = (value) => (value > 0 ? "+" : "") + (100 * value).toFixed(1).replace("-", "−");
const words = (text) => text.replaceAll("_", " ");
const plural = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;

/** A colour of the style sheet as the present theme resolves it. */
function colour(name) {
  const probe = $("theme");
  const before = probe.style.color;
  probe.style.color = `var(--${name})`;
  const found = getComputedStyle(probe).color;
  probe.style.color = before;
  return found;
}

const RUN_COLOURS = 8;
const runColour = (place) => `run-${place % RUN_COLOURS}`;

/** A card with a heading, a line under it, and content. */
function card(title, note, ...content) {
  return el("article", { class: "card" }, el("h3", { text: title }), note && el("p", { class: "note", text: note }), content);
}

/** Buttons of which one is pressed; `choose` hears its value. */
function segmented(label, options, chosen, choose) {
  const buttons = options.map(([value, text, key]) =>
    el("button", {
      "aria-pressed": String(value === chosen),
      "data-value": value,
      click: () => choose(value),
    }, text, key ? el("kbd", { text: key }) : null),
  );
  return el("div", { class: "segmented", role: "group", "aria-label": label }, buttons);
}

function press(group, value) {
  for (const button of group.children) button.setAttribute("aria-pressed", String(button.dataset.value === value));
}
