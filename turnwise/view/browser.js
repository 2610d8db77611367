"use strict";
// The trajectories of a run: a filter, and a list that holds nodes for what is visible alone.

const ROW = 58;  // pixels; also in view.css
const SPARE = 6;  // rows above and below the visible ones

let browser = null;
let wanted = null;  // [run, row] that the address names

/** A run's index with its columns decoded; `rows` are those that pass the filter, in the chosen order. */
class Browser {
  constructor(run, place) {
    [this.run, this.place, this.index] = [run, place, run.episodes];
    this.table = Object.fromEntries(Object.entries(this.index.columns).map(([name, column]) => [name, decoded(column)]));
    this.rows = [];
    this.prefix = sharedPrefix(this.index.tasks.map((task) => task.label));
    this.search = this.index.tasks.map((task) => `${task.label} ${task.type} ${task.key} ${task.env}`.toLowerCase());
  }

  /** All rows of a trajectory's group, in order. */
  groupOf(row) {
    const { update, group } = this.table;
    const same = (other) => update[other] === update[row] && group[other] === group[row];
    let [first, last] = [row, row];
    while (first > 0 && same(first - 1)) first--;
    while (last + 1 < this.index.num && same(last + 1)) last++;
    return Array.from({ length: last - first + 1 }, (_, i) => first + i);
  }

  /** Turns and numbers of one trajectory, from its block. */
  async detail(row) {
    const { starts } = this.index;
    let block = starts.length - 1;
    while (starts[block] > row) block--;
    return (await unpackBlock(`block-${this.place}-${block}`))[row - starts[block]];
  }

  matches(row, wanted) {
    const table = this.table;
    return (
      table.update[row] >= wanted.from && table.update[row] <= wanted.to &&
      (!wanted.type || this.index.tasks[table.task[row]].type === wanted.type) &&
      (!wanted.outcome || outcomeOf(table, row) === wanted.outcome) &&
      (!wanted.stream || (wanted.stream === "replayed" ? Boolean(this.index.replays[row]) : wanted.stream === "branched" ? known(table.fork[row]) : table.stream[row] === wanted.stream)) &&
      wanted.words.every((word) => this.search[table.task[row]].includes(word) || table.episode[row].toLowerCase().includes(word) || table.end[row].toLowerCase().includes(word))
    );
  }

  filter(wanted) {
    this.rows = [];
    for (let row = 0; row < this.index.num; row++) if (this.matches(row, wanted)) this.rows.push(row);
    const [key, sign] = { latest: ["update", -1], reward: ["reward", -1], entropy: ["entropy", -1], turns: ["turns", -1], tokens: ["tokens", -1] }[wanted.order] ?? [null, 1];
    if (key) this.rows.sort((a, b) => sign * ((this.table[key][a] ?? -Infinity) - (this.table[key][b] ?? -Infinity)) || a - b);
  }
}

/** What all labels begin with, up to a colon ("Your task is to: "): the list leaves it out. */
function sharedPrefix(labels) {
  const first = (labels[0] ?? "").match(/^.*?: /)?.[0] ?? "";
  return labels.every((label) => label.startsWith(first)) ? first.length : 0;
}

function decoded(column) {
  return Array.isArray(column) ? column : column.codes.map((code) => column.words[code]);
}

function outcomeOf(table, row) {
  if (table.error[row]) return "fault";
  return table.success[row] === null ? "unknown" : table.success[row] ? "success" : "failure";
}

function showTrajectories(content) {
  const page = $("trajectories");
  // On a narrow page the list and the trajectory take turns: `listing` says which one is shown.
  const list = el("div", { class: "list", id: "list", role: "listbox", tabindex: 0, "aria-label": "Trajectories", scroll: renderList }, el("div", { id: "rows" }));
  page.append(
    el("aside", {}, el("form", { id: "filter", submit: (event) => event.preventDefault() }), el("p", { id: "count", class: "note" }), list),
    el("div", { id: "episode", tabindex: -1 }),
  );
  chooseRun(content, ...(wanted ?? [0, content.runs[0].episodes.telling]));
  new ResizeObserver(renderList).observe(list);
}

/** Show a run's list, and one of its trajectories. */
function chooseRun(content, place, row) {
  browser = new Browser(content.runs[place], place);
  shown.row = shown.detail = null;
  $("filter").replaceChildren(...filterFields(content, place));
  applyFilter();
  if (known(row)) openRow(row);
  else $("episode").replaceChildren(el("p", { class: "note page", text: "This run has no trajectories yet." }));
}

const listing = (isListed) => $("trajectories").classList.toggle("listing", isListed);

function filterFields(content, place) {
  const { table, index } = browser;
  const present = (values) => [...new Set(values)].sort();
  const field = (name, label, options, title) =>
    el("label", { title }, label, el("select", { name, change: applyFilter }, options.map(([value, text]) => el("option", { value, text }))));
  const types = present(index.tasks.map((task) => task.type)).filter(Boolean);
  const streams = present(table.stream ?? []);
  const numbers = table.update?.length ? [table.update[0], table.update[table.update.length - 1]] : [0, 0];
  const bound = (name, label, value) =>
    el("label", {}, label, el("input", { type: "number", name, min: numbers[0], max: numbers[1], placeholder: String(value), input: applyFilter }));
  return [
    content.runs.length > 1 && el("label", { class: "wide" }, "run", el("select", { id: "run", change: (event) => chooseRun(content, Number(event.target.value), content.runs[event.target.value].episodes.telling) },
      content.runs.map((run, i) => el("option", { value: i, selected: i === place, text: run.name })))),
    el("label", { class: "wide" }, "search", el("input", { type: "search", name: "words", id: "search", placeholder: "task, type, episode, how it ended   /", autocomplete: "off", input: applyFilter })),
    types.length > 1 && field("type", "task type", [["", "all"], ...types.map((type) => [type, words(type)])]),
    field("outcome", "outcome", [["", "all"], ...present((table.update ?? []).map((_, row) => outcomeOf(table, row))).map((x) => [x, x])]),
    bound("from", "from update", numbers[0]), bound("to", "to update", numbers[1]),
    field("stream", "training", [["", "all"], ...streams.map((x) => [x, x]), ...(Object.keys(index.replays ?? {}).length ? [["replayed", "replayed later"]] : []), ...((table.fork ?? []).some(known) ? [["branched", "branched"]] : [])], "what became of it in training"),
    field("order", "order", [["first", "as played"], ["latest", "latest first"], ["reward", "highest reward"], ["entropy", "highest entropy"], ["turns", "most turns"], ["tokens", "most tokens"]]),
    el("button", { type: "button", class: "wide narrow-only", click: () => listing(false) }, "Back to the trajectory"),
  ].filter(Boolean);
}

function applyFilter() {
  const given = Object.fromEntries(new FormData($("filter")));
  browser.filter({
    type: given.type ?? "", outcome: given.outcome, stream: given.stream, order: given.order,
    from: given.from === "" ? -Infinity : Number(given.from), to: given.to === "" ? Infinity : Number(given.to),
    words: (given.words ?? "").toLowerCase().split(/\s+/).filter(Boolean),
  });
  $("count").textContent = `${number(browser.rows.length)} of ${plural(browser.index.num, "trajector").replace(/trajectors?$/, browser.index.num === 1 ? "trajectory" : "trajectories")}`;
  $("list").scrollTop = 0;
  renderList();
}

/** Nodes for the visible rows and a few more. */
function renderList() {
  if (!browser) return;
  const list = $("list");
  const first = Math.max(Math.floor(list.scrollTop / ROW) - SPARE, 0);
  const last = Math.min(Math.ceil((list.scrollTop + list.clientHeight) / ROW) + SPARE, browser.rows.length);
  const holder = $("rows");
  holder.style.height = `${browser.rows.length * ROW}px`;
  holder.replaceChildren(...browser.rows.slice(first, last).map((row, i) => listRow(row, first + i)));
}

/** What a branch has of the attempt that it left. */
function sharedOf(table, row) {
  const begun = table.begun[row] ? ` and ${plural(table.begun[row], "token")} of the next reply` : "";
  return `its first ${plural(table.fork[row], "turn")}${begun} are another attempt's`;
}

function listRow(row, place) {
  const { table, index } = browser;
  const task = index.tasks[table.task[row]];
  const uses = index.replays[row]?.length;
  const node = el("div", { class: "row", role: "option", id: `row-${row}`, "aria-selected": String(row === shown.row), click: () => openRow(row) },
    el("span", { class: `dot ${outcomeOf(table, row)}`, title: outcomeOf(table, row) }),
    el("span", { class: "label", text: task.label.slice(browser.prefix) || table.episode[row] }),
    el("span", { class: "tags" },
      known(table.fork[row]) && el("span", { class: "tag", text: "branch", title: sharedOf(table, row) }),
      UNTRAINED[table.stream[row]] && el("span", { class: "tag", text: table.stream[row], title: UNTRAINED[table.stream[row]] }),
      uses && el("span", { class: "tag replay", text: `replayed ${uses}×`, title: "trained on again in later updates" }),
    ),
    el("span", { class: "meta" },
      el("span", { text: `update ${table.update[row]}`, title: "played for this update of the policy, counted from 0" }),
      el("span", { text: attemptName(table, row), title: "which attempt at its task" }),
      el("span", { text: plural(table.turns[row], "turn") }),
      el("span", { text: `reward ${number(table.reward[row], 2)}`, title: "sum of its rewards" }), table.player[row] && el("span", { text: table.player[row] }),
    ),
  );
  node.style.transform = `translateY(${place * ROW}px)`;
  return node;
}

const attemptName = (table, row) => (table.sample[row] < 0 ? "look" : `attempt ${table.sample[row]}`);

/** Open a trajectory; `move` brings it into the list's view. */
async function openRow(row, move = true) {
  shown.row = row;
  listing(false);
  history.replaceState(null, "", `#trajectories/${browser.place}/${row}`);
  const place = browser.rows.indexOf(row);
  const list = $("list");
  list.setAttribute("aria-activedescendant", `row-${row}`);
  if (move && place >= 0) {
    const [above, below] = [list.scrollTop - place * ROW, (place + 1) * ROW - list.scrollTop - list.clientHeight];
    if (Math.max(above, below) > 2 * ROW) list.scrollTop += below - ROW / 2 + list.clientHeight / 2;  // far away: to the middle
    else if (above > 0) list.scrollTop -= above;
    else if (below > 0) list.scrollTop += below;
  }
  renderList();
  await showEpisode(browser, row);
}

/** The next (+1) or previous (-1) trajectory of the list. */
function step(by) {
  if (!browser.rows.length) return;
  const place = browser.rows.indexOf(shown.row);
  const next = place < 0 ? 0 : Math.min(Math.max(place + by, 0), browser.rows.length - 1);
  openRow(browser.rows[next]);
}

/** The next or previous attempt at the same task. */
function stepInGroup(by) {
  if (shown.row === null) return;
  const group = browser.groupOf(shown.row);
  const next = group[group.indexOf(shown.row) + by];
  if (next !== undefined) openRow(next);
}
