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

function plainTable(header, rows) {
  return scrolling(el("table", {},
    el("thead", {}, el("tr", {}, header.map((text) => el("th", { text })))),
    el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell) => (cell instanceof Node ? el("td", {}, cell) : el("td", { text: cell })))))),
  ));
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

function summaryTable(found, decodings) {
  const reports = decodings.flatMap((decoding) =>
    ["before", "after"].filter((when) => found[when][decoding]).map((when) => [decoding, when, found[when][decoding]]));
  const powers = [...new Set(reports.flatMap(([, , report]) => Object.keys(report.pass_at)))].filter((k) => k !== "1");
  const header = ["decoding", "", "success", ...powers.map((k) => `pass@${k}`), "score", "mean return", "turns", "tokens", "invalid", "entropy", "full context", "faults"];
  const rows = reports.map(([decoding, when, report]) => [
    `${decoding} (T = ${report.temperature})`, when, span(report.success, when),
    ...powers.map((k) => percent(report.pass_at[k])),
    report.score ? span(report.score, when) : "–",
    number(report.mean_return), number(report.mean_turns, 1), number(report.mean_action_tokens, 1),
    percent(report.invalid_share), number(report.entropy), percent(report.context_share), number(report.errors),
  ]);
  const isScored = reports.some(([, , report]) => report.score && report.score.value !== report.success?.value);
  const kept = header.map((_, i) => i).filter((i) => header[i] !== "score" || isScored);
  return plainTable(kept.map((i) => header[i]), rows.map((row) => kept.map((i) => row[i])));
}

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
  const text = `${percent(estimate.value)} [${(100 * estimate.low).toFixed(1)}, ${(100 * estimate.high).toFixed(1)}]`;
  return el("span", { class: "estimate" }, drawing, el("span", { text }));
}
