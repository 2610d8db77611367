"use strict";
// A group's attempts as a tree: a lane for each, along its turns; a fork leaves its parent's lane where they part.

const [LANE, LEFT, TOP] = [34, 64, 26];  // pixels
let TURN = 30;  // pixels from turn to turn: fewer where a tree would not fit the page

/** Rows of the group in the order in which their lanes do not cross: a path, then what branched off it, latest first. */
function lanes(rows, parent, fork) {
  const children = new Map();
  for (const row of rows) {
    const above = known(parent[row]) && parent[row] >= 0 ? parent[row] : null;
    children.set(above, [...(children.get(above) ?? []), row]);
  }
  const walk = (row) => [row, ...(children.get(row) ?? []).sort((a, b) => fork[b] - fork[a]).flatMap(walk)];
  return (children.get(null) ?? []).flatMap(walk);
}

/** Card with the tree and the numbers of its branchings; `details` are the unpacked trajectories by row. */
function treeCard(table, rows, details, current, settings) {
  const { parent, fork } = table;
  if (!rows.some((row) => known(fork[row]))) return null;
  const order = lanes(rows, parent, fork);
  const longest = Math.max(...order.map((row) => table.turns[row]), 1);
  TURN = Math.min(30, Math.max(13, Math.floor(($("episode").clientWidth - LEFT - 130) / (longest + 1))));
  const most = Math.max(...order.flatMap((row) => entropiesOf(details.get(row))), 1e-9);
  const place = new Map(order.map((row, i) => [row, TOP + i * LANE]));
  const drawing = svg("svg", { class: "tree", width: LEFT + (longest + 1) * TURN + 30, height: TOP + order.length * LANE, role: "group", "aria-label": "Branch tree" });
  for (let turn = 0; turn < longest; turn += longest > 20 || TURN < 22 ? 5 : 1) {
    drawing.append(svg("text", { class: "scale", x: LEFT + turn * TURN, y: 10, "text-anchor": "middle" }, String(turn + 1)));
  }
  for (const row of order) drawing.append(lane(table, row, details.get(row), place, most, row === current));
  for (const row of order) drawing.append(...branchRings(table, row, details.get(row), place));
  return el("details", { class: "card", open: shown.tree, toggle: (event) => { shown.tree = event.target.open; } },
    el("summary", { text: "Branch tree" }),
    el("p", { class: "note", text: treeNote(table, rows, details, settings) }),
    el("div", { class: "scroll" }, drawing),
    branchTable(table, order, details, settings),
  );
}

/** The planner's segment entropies; of runs without one, means of the turns' entropies. */
function entropiesOf(detail) {
  return detail.segments ?? detail.turns.map((turn) => mean(turn.entropies.filter(known)) ?? 0);
}

const mean = (values) => (values.length ? values.reduce((a, b) => a + b, 0) / values.length : null);

function lane(table, row, detail, place, most, isCurrent) {
  const start = table.fork[row] ?? 0;
  const y = place.get(row);
  const x = (turn) => LEFT + turn * TURN;
  const last = Math.max(table.turns[row] - 1, start);
  const entropies = entropiesOf(detail);
  const name = table.sample[row] < 0 ? "look" : `#${table.sample[row]}`;
  const above = place.get(table.parent[row]);
  const marks = ["success", "won"].includes(outcomeOf(table, row)) ? "✓" : outcomeOf(table, row) === "failure" ? "✗" : "·";
  return svg("g", { class: `lane${isCurrent ? " current" : ""}${table.sample[row] < 0 ? " look" : ""}`, tabindex: 0, role: "button",
      "aria-label": `Open attempt ${table.sample[row]}`, click: () => openRow(row),
      keydown: (event) => { if (event.key === "Enter") openRow(row); } },
    svg("rect", { class: "hit", x: 0, y: y - LANE / 2, width: x(last) + 40, height: LANE }),
    above !== undefined && svg("path", { class: "fork", d: `M ${x(start - 1)} ${above} C ${x(start - 1)} ${y}, ${x(start - 1)} ${y}, ${x(start)} ${y}` }),
    svg("line", { class: "path", x1: x(start), x2: x(last), y1: y, y2: y }),
    svg("text", { class: "name", x: 6, y: y + 4 }, name),
    entropies.map((entropy, turn) => turn >= start && node(x(turn), y, turn, entropy, most)),
    svg("text", { class: `end ${outcomeOf(table, row)}`, x: x(last) + 14, y: y + 4 }, marks),
  );
}

function node(x, y, turn, entropy, most) {
  const circle = svg("circle", { class: "turn", cx: x, cy: y, r: Math.min(6, TURN / 2 - 1) }, svg("title", {}, `turn ${turn + 1}: e = ${number(entropy)}`));
  circle.style.setProperty("--v", (100 * Math.sqrt(entropy / most)).toFixed(0));
  return circle;
}

function branchRings(table, row, detail, place) {
  const above = place.get(table.parent[row]);
  if (above === undefined) return [];
  const found = detail.branching;
  const turn = found ? found.turn : table.fork[row] - 1;  // what made it branch: drawn anew by the branch, or shared
  const ring = svg("circle", { class: "ring", cx: LEFT + turn * TURN, cy: above, r: 10 });
  if (found) ring.append(svg("title", {}, `turn ${found.turn + 1}: rise ${signed(found.rise)}, P = ${number(found.readiness)}`));
  return [ring];
}

function treeNote(table, rows, details, settings) {
  if (!settings) return "A circle is a turn, darker where its mean entropy is higher. This run's planner is not one of ours: why it branched is not known here.";
  const looked = rows.find((row) => known(details.get(row).initial));
  const roots = rows.filter((row) => !known(table.fork[row]) && table.sample[row] >= 0).length;
  const divided = looked === undefined ? "" : ` Attempt ${table.sample[looked] < 0 ? "“look”" : `#${table.sample[looked]}`} came first; its entropies gave ${details.get(looked).initial} attempts to the root.`;
  return `A circle is a turn, stronger where e is higher (summed entropy of the first ${settings.entropy_tokens} tokens over ${settings.log_vocabulary}). ${roots} from the root, the others branched.${divided}`;
}

function branchTable(table, order, details, settings) {
  const forked = order.filter((row) => known(table.fork[row]));
  if (!settings) {
    const rows = forked.map((row) => [`#${table.sample[row]}`, parentName(table, row), String(table.fork[row]),
      number(entropiesOf(details.get(row))[table.fork[row] - 1])]);
    return plainTable(["attempt", "left", "after turn", "mean entropy of that turn"], rows);
  }
  const rows = forked.map((row) => {
    const found = details.get(row).branching;
    if (!found) return [`#${table.sample[row]}`, parentName(table, row), String(table.fork[row]), "–", "–", "–", "–", "–", ""];
    return [`#${table.sample[row]}`, parentName(table, row), String(table.fork[row]), number(found.first), number(found.entropy),
      signed(found.rise), number(found.streak), number(found.readiness, 4), verdict(found)];
  });
  const sure = settings.form === "paper" ? `P > ${settings.threshold}` : "rule";
  return plainTable(["attempt", "left", "after turn", "e first", "e", "rise", "branchings before", "P", sure], rows);
}

const parentName = (table, row) => (table.parent[row] >= 0 ? (table.sample[table.parent[row]] < 0 ? "look" : `#${table.sample[table.parent[row]]}`) : "not stored");
const verdict = (found) => (found.agrees === null ? "not known: a draw or an order that is not stored" : found.agrees ? "yes" : "no: another rule was at work");
