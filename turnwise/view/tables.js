"use strict";
// Evaluation: what every run reached on its panel, before and after, and the runs against each other.

function showEvaluation(content) {
  const page = $("evaluation");
  put(page, content.comparison && comparisonCard(content.comparison), content.runs.map(evaluationOf));
}

function comparisonCard(found) {
  if (found.why_not) return card("These runs cannot be compared", null, el("p", { text: found.why_not }));
  return el("article", { class: "card" },
    el("h3", { text: "The runs against each other" }),
    found.tables.map((sheet) => [el("h4", { text: sheet.title }), plainTable(sheet.header, sheet.rows)]),
    el("ul", { class: "notes" }, found.notes.map((text) => el("li", { text }))),
  );
}

// What a column's heading does not say by itself; also shown under the table, for those who cannot point.
const MEANINGS = {
  "seeds": "the random seeds whose runs are taken together",
  "detectable": "the smallest true difference that this many episodes would find with 80 % power",
  "more episodes": "how many more episodes of each method would resolve a difference of this size",
  "wall s": "wall-clock seconds, without evaluations",
  "entropy start / middle / end": "how unsure the policy was while sampling: nats per token",
  "acted in updates": "share of the updates in which this part of the algorithm changed something",
  "mechanisms: mean (in updates)": "what the parts of the algorithm counted, and in which share of the updates",
  "left": "the attempt that it branched off from",
  "after turn": "how many turns it shares with that attempt",
  "e first": "entropy of the path's first reply, over ln of the model's vocabulary",
  "e": "entropy of the reply in question, in the same unit",
  "rise": "e less e first",
  "branchings before": "how many turns in a row before this one had branched",
  "P": "the planner's tendency to branch here, from the rise and the branchings before",
  "rule": "whether the run's rule, asked again, branches here",
  "mean entropy of that turn": "nats per token",
};
const meaning = (heading) => MEANINGS[heading] ?? (heading.startsWith("P > ") ? MEANINGS.rule : undefined);

function plainTable(header, rows) {
  const explained = header.filter((heading) => meaning(heading));
  return [
    scrolling(el("table", {},
      el("thead", {}, el("tr", {}, header.map((text) => el("th", { text, title: meaning(text), class: meaning(text) && "explained" })))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell) => (cell instanceof Node ? el("td", {}, cell) : el("td", { text: cell })))))),
    )),
    explained.length > 0 && el("details", { class: "meanings" }, el("summary", { text: "What the columns mean" }),
      el("dl", {}, explained.map((heading) => [el("dt", { text: heading }), el("dd", { text: meaning(heading) })]))),
  ];
}

const scrolling = (table) => el("div", { class: "scroll" }, table);

function evaluationOf(run, place) {
  const found = run.evaluation;
  const title = el("h2", { class: runColour(place) }, el("span", { class: "swatch" }), run.name);
  if (!found || !(Object.keys(found.after).length + Object.keys(found.before).length)) {
    return [title, el("p", { class: "note", text: "This run has not been measured on a test panel." })];
  }
  const decodings = [...new Set([...Object.keys(found.before), ...Object.keys(found.after)])];
  const first = Object.values(found.after)[0] ?? Object.values(found.before)[0];
  const panel = `${first.env} ${first.split}: ${plural(first.num_tasks, "task")}, panel hash ${first.panel_hash}. Intervals: 95 %.`;
  return [
    title,
    card("Before and after training", panel, summaryTable(found, decodings)),
    ...decodings.map((decoding) => kinds(found, decoding, "per_type", "task type")),
    ...decodings.map((decoding) => kinds(found, decoding, "per_player", "player")),
  ].filter(Boolean);
}

/** A row for each measure, said in words; a column for each decoding, before and after. */
function summaryTable(found, decodings) {
  const reports = decodings.flatMap((decoding) =>
    ["before", "after"].filter((when) => found[when][decoding]).map((when) => [decoding, when, found[when][decoding]]));
  const powers = [...new Set(reports.flatMap(([, , report]) => Object.keys(report.pass_at)))].filter((k) => k !== "1");
  const isScored = reports.some(([, , report]) => report.score && report.score.value !== report.success?.value);
  const measures = [
    ["success", "share of the tasks that were solved", (report, when) => span(report.success, when)],
    ...powers.map((k) => [`pass@${k}`, `solved in at least one of ${k} attempts`, (report) => percent(report.pass_at[k])]),
    isScored && ["score", "how well the world says a task was done, from 0 to 1", (report) => scored(report.score)],
    ["return", "mean sum of an episode's rewards", (report) => number(report.mean_return)],
    ["turns", "mean turns of an episode", (report) => number(report.mean_turns, 1)],
    ["tokens", "mean tokens that the model said in an episode", (report) => number(report.mean_action_tokens, 1)],
    ["invalid actions", "share of turns whose reply held no valid action", (report) => percent(report.invalid_share)],
    ["entropy", "how unsure the model was, nats per token", (report) => number(report.entropy)],
    ["full context", "share of episodes that ended because the context was full", (report) => percent(report.context_share)],
    ["faults", "episodes that failed in their environment; they are left out", (report) => number(report.errors)],
    ["temperature", "of the draws; 0 is the likeliest token every time", (report) => number(report.temperature)],
  ].filter(Boolean);
  const header = ["", ...reports.map(([decoding, when]) => `${decoding}, ${when}`)];
  const rows = measures.map(([name, what, value]) => [
    el("div", {}, name, el("div", { class: "note", text: what })), ...reports.map(([, when, report]) => value(report, when)),
  ]);
  return plainTable(header, rows);
}

const scored = (found) => (found ? `${number(found.value)} [${number(found.low)}, ${number(found.high)}]` : "–");

function kinds(found, decoding, key, title) {
  const [before, after] = [found.before[decoding]?.[key] ?? {}, found.after[decoding]?.[key] ?? {}];
  const names = [...new Set([...Object.keys(before), ...Object.keys(after)])];
  if (!names.length) return null;
  const rows = names.map((name) => [
    words(name), number((after[name] ?? before[name]).num), span(before[name], "before"), span(after[name], "after"),
  ]);
  return card(`By ${title}, ${decoding}`, null, plainTable([title, "tasks", "before", "after"], rows));
}

/** A value on a scale from 0 to 1 with its interval, drawn and written. */
function span(estimate, when) {
  if (!estimate) return "–";
  const width = 150;
  const across = (value) => 4 + Math.min(Math.max(value, 0), 1) * (width - 8);
  const drawing = svg("svg", { class: `span ${when}`, width, height: 16, role: "img", "aria-label": percent(estimate.value) },
    svg("line", { class: "scale", x1: 4, x2: width - 4, y1: 8, y2: 8 }),
    svg("line", { class: "reach", x1: across(estimate.low), x2: across(estimate.high), y1: 8, y2: 8 }),
    svg("circle", { cx: across(estimate.value), cy: 8, r: 4.5 }));
  return el("span", { class: "estimate" }, drawing, el("span", {}, rateParts(estimate).flatMap((part) => [el("span", { text: part }), " "])));
}
