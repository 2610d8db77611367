"use strict";
// The overview: who the runs are, their curves, and what the watchdog said. Plotly is unpacked when first needed.

const AXES = [["update", "Updates"], ["tokens", "Tokens"], ["time", "Time"]];
const AXIS_TITLES = { update: "updates", tokens: "sampled tokens", time: "wall minutes, without evaluations" };

let axis = "update";
let stale = false;
const plotted = [];

const loadPlotly = (() => {
  let loading = null;
  return () => {
    loading ??= unpackText("plotly").then((text) => {
      document.head.append(el("script", { text }));
      return window.Plotly;
    });
    return loading;
  };
})();

function showOverview(content) {
  const page = $("overview");
  const charts = el("div", { class: "charts" });
  const choice = segmented("Horizontal axis", AXES, axis, (value) => {
    axis = value;
    press(choice, value);
    redraw();
  });
  put(page,
    el("div", { class: "runs" }, content.runs.map(runCard)),
    notes(content.runs),
    watchdog(content.runs),
    el("div", { class: "bar" }, el("h2", { text: "Course of training" }), el("span", { class: "grow" }), choice),
    charts,
  );
  for (const chart of chartsOf(content.runs)) {
    const plot = el("div", { class: "plot" });
    const extra = chart.control ? chart.control(() => draw(plot, chart)) : null;
    charts.append(card(chart.title, chart.note, extra, plot));
    plotted.push([plot, chart]);
  }
  redraw();
}

function runCard(run, place) {
  const done = (run.metrics.update ?? []).length;
  const facts = [
    ["world", run.env],
    ["algorithm", run.algorithm],
    ["model", run.model],
    ["seed", run.seed],
    ["updates", `${number(done)} of ${number(run.num_updates)}`],
    ["trajectories", number(run.episodes.num)],
    ["commit", run.commit ? run.commit.slice(0, 10) : "unknown"],
    ["command", run.command && el("code", { text: run.command })],
  ].filter(([, value]) => value !== "");
  return el("article", { class: `card run ${runColour(place)}` },
    el("h3", {}, el("span", { class: "swatch" }), run.name),
    headline(run),
    el("dl", { class: "facts" }, facts.map(([name, value]) => el("div", { class: name }, el("dt", { text: name }), el("dd", {}, String(value) === value ? value : [value])))),
    el("details", {}, el("summary", { text: "All settings" }), el("pre", { class: "settings", text: run.settings })),
  );
}

/** "32.8 → 66.4 %" on the test panel, then both intervals and the gain's; null of a run that was not measured. */
function headline(run) {
  const found = reached(run);
  if (!found) return null;
  return el("div", { class: "headline" },
    el("p", {}, el("strong", { text: found.short }), ` ${found.what}`),
    el("p", { class: "note", text: found.intervals }));
}

/** Success (mean return where that is unknown) before and after training, in words. */
function reached(run) {
  const [before, after] = ["before", "after"].map((when) => run.evaluation?.[when]?.sampled);
  const gain = run.evaluation?.gain;
  if (!before || !after) return null;
  const isRate = before.success && after.success;
  const [told, unit] = isRate ? [points, " points"] : [signed, ""];
  const change = gain ? `${told(gain.value)}${unit} [${told(gain.low)}, ${told(gain.high)}]` : "";
  const tasks = plural(after.num_tasks, "unseen task");
  return {
    short: isRate ? `${(100 * before.success.value).toFixed(1)} → ${percent(after.success.value)}` : `${number(before.mean_return)} → ${number(after.mean_return)}`,
    brief: `${change || (isRate ? "success" : "mean return")} on ${tasks}`,
    what: `${isRate ? "success" : "mean return"} on ${tasks}, before and after training`,
    intervals: [isRate && `before ${rate(before.success)}`, isRate && `after ${rate(after.success)}`, change && `gain ${change}`, "95 % intervals"].filter(Boolean).join("; "),
  };
}

function notes(runs) {
  const lines = runs.flatMap((run) => run.notes.map((note) => (runs.length > 1 ? `${run.name}: ${note}` : note)));
  return lines.length ? el("ul", { class: "notes" }, lines.map((text) => el("li", { text }))) : null;
}

function watchdog(runs) {
  const found = runs.flatMap((run, place) => run.events.map((event) => ({ ...event, run, place })));
  if (!found.length) return null;
  const rows = found.map((event) => {
    const grave = event.level !== "warning" && event.level !== "warn";
    return el("li", { class: grave ? "event grave" : "event" },
      el("span", { class: "pill", text: event.level ?? "event" }),
      el("span", { class: "when", text: `update ${event.update}${runs.length > 1 ? ` · ${event.run.name}` : ""}` }),
      el("strong", { text: words(event.name ?? "") }),
      el("span", { text: event.diagnosis ?? "" }),
      el("span", { class: "advice", text: event.advice ?? "" }),
      known(event.value) && el("span", { class: "mono", text: `${checked(event.name, event.value)} (threshold ${checked(event.name, event.threshold)})` }),
    );
  });
  return card(`Watchdog: ${plural(found.length, "event")}`, null, el("ul", { class: "events" }, rows));
}

const SHARE_CHECKS = ["uniform_groups", "repeated_actions", "invalid_actions", "invalid_rise", "clip_share", "skipped_steps", "cut_replies", "full_contexts"];
const checked = (check, value) => (SHARE_CHECKS.includes(check) ? percent(value) : number(value));

// --- curves ---

/** Positions of a run's updates on the chosen axis. */
function positions(run, updates) {
  const metrics = run.metrics;
  if (axis === "update" || !metrics.update) return updates;
  const spent = new Map();
  let sum = 0;
  metrics.update.forEach((update, i) => {
    const seconds = (metrics["seconds/collect"]?.[i] ?? 0) + (metrics["seconds/update"]?.[i] ?? 0);
    sum += axis === "tokens" ? metrics.sampled_tokens?.[i] ?? 0 : seconds / 60;
    spent.set(update, sum);
  });
  return updates.map((update) => spent.get(update) ?? null);
}

/** Plotly reads a few tags in names: run names are not markup. */
const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

function line(run, place, values, options = {}) {
  const updates = run.metrics.update ?? [];
  return {
    type: "scatter", mode: "lines", name: plain(options.name ?? run.name), x: positions(run, updates), y: values ?? [],
    customdata: updates, line: { color: colour(runColour(place)), width: 2, ...options.line },
    hovertemplate: `%{y:${options.format ?? ".4~g"}}<extra>${plain(options.name ?? run.name)} · update %{customdata}</extra>`, ...options.more,
  };
}

/** A line with its interval as a band behind it. */
function banded(run, place, found, name, isRate) {
  const x = positions(run, found.map((point) => point.update));
  const tint = colour(runColour(place));
  const edge = { type: "scatter", mode: "lines", x, line: { width: 0 }, hoverinfo: "skip", showlegend: false };
  const told = (point) => (isRate ? rate(point) : `${number(point.value)} [${number(point.low)}, ${number(point.high)}]`);
  const spans = found.map((point) => `${told(point)} · update ${point.update}`);
  return [
    { ...edge, y: found.map((point) => point.low) },
    { ...edge, y: found.map((point) => point.high), fill: "tonexty", fillcolor: faded(tint, 0.16) },
    {
      type: "scatter", mode: "lines", name: plain(name), x, y: found.map((point) => point.value), customdata: spans,
      line: { color: tint, width: 2 }, hovertemplate: `%{customdata}<extra>${plain(name)}</extra>`,
    },
  ];
}

/** A resolved colour with less of it. */
function faded(tint, share) {
  const [red, green, blue] = tint.match(/[\d.]+/g);
  return `rgba(${red}, ${green}, ${blue}, ${share})`;
}

function measured(run, place, isRate) {
  const found = run.validation;
  return {
    type: "scatter", mode: "markers", name: plain(`${run.name}: validation`), x: positions(run, found.map((p) => p.update)),
    y: found.map((p) => p.value), showlegend: false,
    error_y: {
      type: "data", symmetric: false, thickness: 1.2, width: 3, color: colour(runColour(place)),
      array: found.map((p) => (known(p.high) ? p.high - p.value : 0)),
      arrayminus: found.map((p) => (known(p.low) ? p.value - p.low : 0)),
    },
    marker: { color: colour("card"), size: 7, line: { color: colour(runColour(place)), width: 2 } },
    hovertemplate: `validation %{y:${isRate ? ".1%" : ".3f"}}<extra></extra>`,
  };
}

/** Dotted lines where the watchdog spoke. */
function marks(runs) {
  return runs.flatMap((run) => {
    const places = positions(run, run.events.map((event) => event.update));
    return run.events.map((event, i) => ({
      type: "line", xref: "x", yref: "paper", x0: places[i], x1: places[i], y0: 0, y1: 1,
      line: { color: colour(event.level === "warning" || event.level === "warn" ? "warn" : "bad"), width: 1, dash: "dot" },
    }));
  });
}

const column = (run, name) => run.metrics[name] ?? [];
const ratio = (run, above, below) => column(run, above).map((x, i) => (column(run, below)[i] ? x / column(run, below)[i] : null));
const each = (runs, make) => runs.flatMap((run, place) => make(run, place));

function chartsOf(runs) {
  const bySuccess = runs.every((run) => column(run, "success").some(known));
  const made = [
    {
      title: bySuccess ? "Success while training" : "Return while training",
      note: "Line: mean over the update's tasks; band: 95 % over tasks. Rings: validation panel, sampled, 95 %.",
      traces: () => each(runs, (run, place) => [...banded(run, place, run.outcomes, run.name, bySuccess), measured(run, place, bySuccess)]),
      layout: bySuccess ? { yaxis: { range: [0, 1], tickformat: ".0%" } } : {},
    },
    {
      title: "Entropy",
      note: "Nats per sampled token: of the sampling policy; dotted: of the policy in training, where it was measured.",
      traces: () => each(runs, (run, place) => [
        line(run, place, column(run, "entropy")),
        ...(run.metrics.policy_entropy ? [line(run, place, column(run, "policy_entropy"),
          { name: `${run.name}: in training`, line: { dash: "dot", width: 1.4 }, more: { showlegend: false } })] : []),
      ]),
      layout: { yaxis: { rangemode: "tozero" } },
    },
    {
      title: "Throughput",
      note: "Tokens sampled per second of collecting.",
      traces: () => each(runs, (run, place) => [line(run, place, ratio(run, "sampled_tokens", "seconds/collect"))]),
      layout: { yaxis: { rangemode: "tozero" } },
    },
    runs.length === 1 ? timeOfOne(runs[0]) : timeOfMany(runs),
    {
      title: "Turns per episode", note: "Mean over the update's episodes.",
      traces: () => each(runs, (run, place) => [line(run, place, column(run, "turns"))]),
      layout: { yaxis: { rangemode: "tozero" } },
    },
    {
      title: "Invalid actions", note: "Share of turns whose reply held no valid action.",
      traces: () => each(runs, (run, place) => [line(run, place, column(run, "invalid_share"), { format: ".1%" })]),
      layout: { yaxis: { rangemode: "tozero", tickformat: ".0%" } },
    },
  ];
  return [...made, ...(runs.some((run) => run.episodes.replay) ? [replayChart(runs)] : []), anyMetric(runs)];
}

const STAGES = [["collect", "collect", "run-0"], ["update", "learn", "run-1"], ["evaluate", "measure", "run-2"]];

function timeOfOne(run) {
  return {
    title: "Where the time goes", note: "Share of each update's wall seconds.",
    traces: () => STAGES.map(([key, name, tint]) => ({
      ...line(run, 0, column(run, `seconds/${key}`), { name }), stackgroup: "time", groupnorm: "fraction",
      line: { color: colour(tint), width: 0.5, shape: "hvh" }, fillcolor: faded(colour(tint), 0.55),
      hovertemplate: `%{y:.0%}<extra>${name}</extra>`,
    })),
    layout: { yaxis: { range: [0, 1], tickformat: ".0%" }, showlegend: true },
  };
}

function timeOfMany(runs) {
  const sum = (run, key) => column(run, `seconds/${key}`).reduce((total, x) => total + (x ?? 0), 0) / 60;
  return {
    title: "Where the time goes", note: "Wall minutes of the whole run.",
    traces: () => STAGES.map(([key, name, tint]) => ({
      type: "bar", orientation: "h", name, y: runs.map((run) => plain(run.name)), x: runs.map((run) => sum(run, key)),
      marker: { color: faded(colour(tint), 0.7) }, hovertemplate: `%{x:.1f} min<extra>${name}</extra>`,
    })),
    layout: { barmode: "stack", xaxis: { title: { text: "minutes", font: { size: 12 } } }, yaxis: { automargin: true }, showlegend: true, hovermode: "closest" },
    ownAxis: true,
  };
}

function replayChart(runs) {
  const ages = (run, key) => ({ update: run.episodes.replay.update, values: run.episodes.replay[key] });
  const replaying = (make) => each(runs, (run, place) => (run.episodes.replay ? make(run, place) : []));
  return {
    title: "Replay", note: "Bars: trajectories trained on again in an update. Line: their mean age in updates; dotted: the oldest's.",
    traces: () => replaying((run, place) => [
      {
        type: "bar", name: plain(run.name), x: positions(run, ages(run, "num").update), y: ages(run, "num").values, yaxis: "y2",
        marker: { color: faded(colour(runColour(place)), 0.25) }, hovertemplate: "%{y} replayed<extra></extra>",
      },
      ...[["mean", "solid"], ["max", "dot"]].map(([key, dash]) => ({
        type: "scatter", mode: "lines", name: plain(run.name), showlegend: false, x: positions(run, ages(run, key).update),
        y: ages(run, key).values, line: { color: colour(runColour(place)), width: 2, dash },
        hovertemplate: `${key} age %{y}<extra></extra>`,
      })),
    ]),
    layout: {
      yaxis: { title: { text: "age", font: { size: 12 } }, rangemode: "tozero" },
      yaxis2: { title: { text: "replayed", font: { size: 12 } }, overlaying: "y", side: "right", rangemode: "tozero", showgrid: false, tickmode: "auto", nticks: 6 },
    },
  };
}

function anyMetric(runs) {
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.metrics)))].filter((name) => name !== "update").sort();
  let chosen = names.includes("grad_norm") ? "grad_norm" : names[0];
  const isRate = () => /(success|share)$/.test(chosen ?? "");
  return {
    title: "Any metric", note: null,
    control: (changed) => el("select", { "aria-label": "Metric", change: (event) => { chosen = event.target.value; changed(); } },
      names.map((name) => el("option", { value: name, selected: name === chosen, text: words(name) }))),
    traces: () => each(runs, (run, place) => [line(run, place, column(run, chosen), isRate() ? { format: ".1%" } : {})]),
    get layout() { return isRate() ? { yaxis: { tickformat: ".0%" } } : {}; },
  };
}

// --- drawing ---

/** Draw all charts; where they are hidden, once they are shown: they take their size from the page. */
function redraw() {
  stale = $("overview").hidden;
  if (stale) return;
  for (const [plot, chart] of plotted) draw(plot, chart);
}

async function draw(plot, chart) {
  const library = await loadPlotly();
  const grid = { gridcolor: colour("line"), zerolinecolor: colour("line"), linecolor: colour("line"), automargin: true };
  const traces = chart.traces();
  const layout = {
    height: 250, margin: { l: 44, r: 14, t: 8, b: 38 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 12, color: colour("soft") }, hovermode: "x unified",
    hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("ink") } },
    showlegend: traces.filter((trace) => trace.showlegend !== false).length > 1,
    legend: { orientation: "h", traceorder: "normal", y: 1.02, yanchor: "bottom", x: 0 }, shapes: chart.ownAxis ? [] : marks(content.runs),
    ...chart.layout,
    xaxis: { ...grid, title: { text: AXIS_TITLES[axis], standoff: 6, font: { size: 12 } }, ...chart.layout.xaxis },
    yaxis: { ...grid, ...chart.layout.yaxis },
  };
  if (layout.yaxis2) layout.yaxis2 = { ...grid, ...layout.yaxis2 };
  library.react(plot, traces, layout, { responsive: true, displayModeBar: false });
}
