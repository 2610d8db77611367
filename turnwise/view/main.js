"use strict";
// Tabs, keys, theme, start.

let content = null;
const built = new Set();
const BUILD = { overview: showOverview, evaluation: showEvaluation, trajectories: showTrajectories };

function openTab(name) {
  for (const button of document.querySelectorAll("[role=tab]")) {
    button.setAttribute("aria-selected", String(button.dataset.tab === name));
    $(button.dataset.tab).hidden = button.dataset.tab !== name;
  }
  document.body.dataset.tab = name;
  if (!built.has(name)) {
    built.add(name);
    BUILD[name](content);
  }
  if (name === "overview" && stale) redraw();
  if (name !== "trajectories") history.replaceState(null, "", `#${name}`);
  else renderList();
}

const THEMES = ["auto", "light", "dark"];

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  $("theme").textContent = `Theme: ${name}`;
  try {
    localStorage.setItem("turnwise-theme", name);
  } catch {
    // some browsers keep nothing for files
  }
  if (built.has("overview")) redraw();
}

function storedTheme() {
  try {
    return localStorage.getItem("turnwise-theme") ?? "auto";
  } catch {
    return "auto";
  }
}

function nextTheme() {
  setTheme(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length]);
}

const inTrajectories = (action) => () => document.body.dataset.tab === "trajectories" && browser.index.num && action();
const KEYS = {
  o: () => openTab("overview"),
  e: () => openTab("evaluation"),
  b: () => openTab("trajectories"),
  t: nextTheme,
  "?": () => $("help").showModal(),
  "/": () => { openTab("trajectories"); $("search").select(); },
  j: inTrajectories(() => step(1)),
  k: inTrajectories(() => step(-1)),
  ArrowDown: inTrajectories(() => step(1)),
  ArrowUp: inTrajectories(() => step(-1)),
  ArrowRight: inTrajectories(() => selectTurn(shown.turn + Number(Boolean(document.querySelector(".turn-card.selected"))))),
  ArrowLeft: inTrajectories(() => selectTurn(shown.turn - 1)),
  "]": inTrajectories(() => stepInGroup(1)),
  "[": inTrajectories(() => stepInGroup(-1)),
  c: inTrajectories(toggleContext),
  ...Object.fromEntries(COLOURINGS.map(([value, , key]) => [key, inTrajectories(() => setColouring(value))])),
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
  const isField = event.target.matches("input:not([type=checkbox]), select");
  if (isField) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (!(event.key in KEYS)) return;
  event.preventDefault();
  KEYS[event.key]();
}

async function start() {
  setTheme(storedTheme());
  for (const button of document.querySelectorAll("[role=tab]")) button.addEventListener("click", () => openTab(button.dataset.tab));
  $("theme").addEventListener("click", nextTheme);
  $("help-open").addEventListener("click", () => $("help").showModal());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => built.has("overview") && redraw());
  document.addEventListener("keydown", onKey);
  content = JSON.parse(await unpackText("content"));
  $("wait").remove();
  showReached(content.runs);
  const [tab, place, row] = location.hash.slice(1).split("/");
  const isNamed = tab === "trajectories" && Number(place) < content.runs.length && Number(row) < content.runs[place].episodes.num;
  if (isNamed) wanted = [Number(place), Number(row)];
  openTab(tab in BUILD ? tab : content.runs[0].episodes.num ? "trajectories" : "overview");
}

/** What training reached, beside the tabs; of several runs each one's card says it. */
function showReached(runs) {
  const found = runs.length === 1 ? reached(runs[0]) : null;
  if (found) $("reached").replaceChildren(el("strong", { text: found.short }), el("span", { text: found.brief }));
  if (found) $("reached").title = `${found.what}: ${found.intervals}`;
}

start();
