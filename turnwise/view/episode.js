"use strict";
// One trajectory: its turns, with tokens coloured by what the model was sure of, or what it was taught.

const COLOURINGS = [["entropy", "Entropy", "1"], ["logprob", "Log-prob", "2"], ["advantage", "Advantage", "3"], ["mask", "Mask", "4"]];
const COLOURS_MEAN = {
  entropy: "how unsure the model was before a token",
  logprob: "how likely it thought the token",
  advantage: "how much better or worse training took the token to be",
  mask: "what the loss sees",
};
const UNTRAINED = {
  "left out": "Left out of training: its recipe dropped the group (equal returns, or too few) or the episode failed.",
  "looked at": "Only looked at: its entropies divided the budget of the group; it was not trained on.",
};
const MOST = { entropy: 2, logprob: 5 };  // nats of the strongest colour; shades go with the square root

// `row` is the one asked for; `detail` and `trained` are of the one on the page, which unpacking may still delay.
const shown = { row: null, detail: null, trained: true, turn: 0, colouring: "entropy", context: false, tree: true, scale: 1 };

/** Fill the right side with a row of the present run. */
async function showEpisode(browser, row) {
  const { table, index } = browser;
  const group = browser.groupOf(row);
  const details = new Map(await Promise.all(group.map(async (member) => [member, await browser.detail(member)])));
  if (shown.row !== row) return;  // another one was opened meanwhile
  const detail = details.get(row);
  shown.turn = 0;
  shown.detail = detail;
  shown.trained = !["left out", "looked at"].includes(table.stream[row]);
  shown.scale = advantageScale(browser.run, table.update[row]);
  const page = $("episode");
  page.replaceChildren(
    heading(browser, row),
    el("div", { class: "siblings", role: "group", "aria-label": "Attempts at this task" },
      group.length > 1 && el("span", { class: "note", text: `${group.length} attempts` }),
      group.length > 1 && group.map((member) => sibling(table, member, row))),
    treeCard(table, group, details, row, index.tree) ?? "",
    toolbar(browser, row),
    el("ol", { class: "turns" }, detail.turns.map((turn, place) => turnCard(browser, row, turn, place))),
    el("p", { class: "note ending", text: ending(table, row) }),
    detail.grades ? el("ul", { class: "notes grades" }, detail.grades.map((line) => el("li", { text: line }))) : "",
  );
  recolour();
  page.scrollTop = 0;
}

/** Two standard deviations of what the update logged, so that colours mean the same within an update. */
function advantageScale(run, update) {
  const place = (run.metrics.update ?? []).indexOf(update);
  const found = run.metrics.advantage_std?.[place];
  return found > 0 ? 2 * found : 1;
}

/** How far behind the update's own policy the one was that played; empty where it is the same. */
function behind(table, row) {
  const updates = table.update[row] - table.version[row];
  return updates > 0 ? `, ${updates} behind` : "";
}

function heading(browser, row) {
  const { table, index } = browser;
  const task = index.tasks[table.task[row]];
  const facts = [
    [`update ${table.update[row]}`, "played for this update, counted from 0"],
    [`policy after ${plural(table.version[row], "update")}${behind(table, row)}`, "how much the policy had been trained when it played"],
    table.player[row] && [`player ${table.player[row]}`],
    [`task ${task.split} ${task.index} (${task.key.slice(0, 12)})`, "split, place in it, and the hash of its content"],
    [attemptName(table, row), "which attempt at this task"],
    [plural(table.turns[row], "turn")], [plural(table.tokens[row], "token"), "that the model said"],
    [`reward ${number(table.reward[row])}`, "sum of its rewards: the world's, and what graders paid"],
    known(table.shaped[row]) && [`shaped return ${number(table.shaped[row])}`, "what training made of the rewards: scaled, with penalties"],
    known(table.score[row]) && [`score ${number(table.score[row])}`, "how well the world says the task was done, from 0 to 1"],
    table.adapter[row] && [`weights ${table.adapter[row].slice(0, 8)}`, "hash of the adapter that played"],
  ];
  return el("header", { class: "heading" },
    el("div", { class: "stepper narrow-only" },
      el("button", { id: "open-list", click: () => { listing(true); renderList(); } }, "List"),
      el("button", { click: () => step(-1), "aria-label": "Previous trajectory" }, "‹ Previous"),
      el("button", { click: () => step(1), "aria-label": "Next trajectory" }, "Next ›")),
    el("p", { class: "note", text: words(task.type || task.env) }),
    el("h2", {}, el("span", { class: `pill ${outcomeOf(table, row)}`, text: outcomeOf(table, row) }), " ", task.label || table.episode[row]),
    el("p", { class: "facts-line" }, facts.filter(Boolean).map(([text, title]) => el("span", { text, title })), el("code", { text: table.episode[row], title: "name of the episode" })),
    trainingLine(browser, row),
  );
}

/** What became of the trajectory in training. */
function trainingLine(browser, row) {
  const stream = browser.table.stream[row];
  const uses = browser.index.replays[row] ?? [];
  const said = { ...UNTRAINED, unknown: "Whether it was trained on cannot be recomputed for this algorithm." };
  const lines = [said[stream] && el("p", { class: "note", text: said[stream] })];
  if (uses.length) {
    const each = uses.map(([update, age, advantage]) => `update ${update} (age ${age}, advantage ${signed(advantage)})`);
    lines.push(el("p", { class: "replays" }, el("span", { class: "pill replay", text: `replayed ${uses.length}×` }), ` in ${each.join(", ")}`));
  }
  return el("div", {}, lines.filter(Boolean));
}

function sibling(table, member, row) {
  return el("button", {
    class: `sibling ${outcomeOf(table, member)}`, "aria-current": member === row ? "true" : null, click: () => openRow(member),
    title: `attempt ${table.sample[member]}: ${outcomeOf(table, member)}, reward ${number(table.reward[member])}${table.player[member] ? `, ${table.player[member]}` : ""}`,
  }, table.sample[member] < 0 ? "look" : `#${table.sample[member]}`);
}

function toolbar(browser, row) {
  const choice = segmented("Colour tokens by", COLOURINGS, shown.colouring, setColouring);
  choice.id = "colouring";
  return el("div", { class: "toolbar" }, choice,
    el("label", { class: "check", title: "show the tokens that the model was given instead of the observation" }, el("input", { type: "checkbox", id: "context", checked: shown.context, change: toggleContext }), "model input", el("kbd", { text: "c" })),
    el("div", { id: "legend", class: "legend" }),
    el("output", { id: "token", class: "mono", text: "Point at a token" }),
  );
}

function setColouring(value) {
  shown.colouring = value;
  if ($("colouring")) press($("colouring"), value);
  recolour();
}

function toggleContext() {
  shown.context = !shown.context;
  if ($("context")) $("context").checked = shown.context;
  recolour();
}

function turnCard(browser, row, turn, place) {
  const fork = browser.table.fork[row];
  const trunk = known(fork) && place < fork;
  const facts = [
    known(turn.reward) && turn.reward !== 0 && el("span", { class: "good", text: `reward ${signed(turn.reward)}` }),
    !turn.valid && el("span", { class: "bad", text: turn.unsent ? `invalid: ${turn.unsent}` : "invalid action" }),
    !turn.continues && place > 0 && el("span", { text: "new context" }),
    trunk && el("span", { text: "shared with its parent" }),
    turn.action !== turn.reply && el("span", {}, "action ", el("code", { text: turn.action })),
    el("span", { text: `entropy ${number(mean(turn.entropies.filter(known)))}`, title: "mean over the reply's tokens, nats" }),
    known(advantageOf(turn)) && el("span", { text: `advantage ${signed(advantageOf(turn))}`, title: "mean over the reply's tokens" }),
  ];
  return el("li", { class: `turn-card${trunk ? " trunk" : ""}`, id: `turn-${place}`, click: () => selectTurn(place, false) },
    el("span", { class: "place", text: String(place + 1) }),
    el("div", { class: "observation" }),
    el("div", { class: "reply mono" }),
    el("p", { class: "facts-line" }, facts.filter(Boolean)),
  );
}

/** Of a turn: what its tokens share, or their mean. */
function advantageOf(turn) {
  return Array.isArray(turn.advantages) ? mean(turn.advantages.filter(known)) : turn.advantages;
}

function recolour() {
  if (!shown.detail) return;
  const context = shown.context || shown.colouring === "mask";
  const texts = browser.index.texts;
  shown.detail.turns.forEach((turn, place) => {
    const cardOf = $(`turn-${place}`);
    const given = cardOf.querySelector(".observation");
    given.classList.toggle("mono", context);
    if (context) given.replaceChildren(...turn.prompt.map((id) => el("span", { class: "token given", "data-id": id }, visible(texts[id]))));
    else if (turn.asked) given.replaceChildren(...turn.asked.map(([role, text]) => el("p", { class: "said" }, el("b", { text: role }), ` ${text}`)));
    else given.textContent = turn.observation;
    cardOf.querySelector(".reply").replaceChildren(...turn.tokens.map((id, i) => token(turn, i, id, texts[id])));
  });
  legend();
}

/** White space and control characters of a token, so that each can be seen and pointed at. */
function visible(text) {
  return (text ?? "?").replaceAll("\n", "⏎\n").replaceAll("\t", "⇥\t").replace(/[\u0000-\u0008\u000b-\u001f\u007f]/g, (c) => `\\x${c.charCodeAt(0).toString(16).padStart(2, "0")}`);
}

function token(turn, i, id, text) {
  const advantage = Array.isArray(turn.advantages) ? turn.advantages[i] : turn.advantages;
  const span = el("span", { class: `token by-${shown.colouring}` }, visible(text));
  const strength = {
    entropy: Math.sqrt(Math.min((turn.entropies[i] ?? 0) / MOST.entropy, 1)),
    logprob: Math.sqrt(Math.min(-(turn.logprobs[i] ?? 0) / MOST.logprob, 1)),
    advantage: Math.min(Math.abs(advantage ?? 0) / shown.scale, 1),
    mask: shown.trained ? 1 : 0.25,
  }[shown.colouring];
  if (shown.colouring === "advantage" && (advantage ?? 0) < 0) span.classList.add("negative");
  span.style.setProperty("--v", (100 * Math.max(strength, 0)).toFixed(0));
  span.dataset.id = id;
  span.addEventListener("pointerenter", () => {
    const odds = known(turn.logprobs[i]) ? `probability ${percent(Math.exp(turn.logprobs[i]))}  log-prob ${number(turn.logprobs[i])}` : "";
    $("token").textContent = `${JSON.stringify(text)} (${id})  ${odds}  entropy ${number(turn.entropies[i])}  advantage ${known(advantage) ? signed(advantage) : "not available"}`;
  });
  return span;
}

function legend() {
  const available = shown.detail.turns.some((turn) => known(turn.advantages));
  const steps = {
    entropy: [["0", 0], ["0.1", 0.1], ["0.5", 0.5], ["1", 1], ["2 nats", 2]].map(([text, x]) => [text, Math.sqrt(x / MOST.entropy)]),
    logprob: [["100 %", 1], ["90 %", 0.9], ["50 %", 0.5], ["10 %", 0.1], ["1 %", 0.01]].map(([text, p]) => [text, Math.sqrt(Math.min(-Math.log(p) / MOST.logprob, 1))]),
    advantage: [[-1, "negative"], [-0.5, "negative"], [0, ""], [0.5, ""], [1, ""]].map(([x, sign]) => [signed(x * shown.scale, 2), Math.abs(x), sign]),
    mask: [["model input: no loss", 0, "given"], ["sampled: trained on", 1, ""]],
  }[shown.colouring];
  const isMissing = shown.colouring === "advantage" && !available;
  $("legend").replaceChildren(el("span", { class: "what", text: COLOURS_MEAN[shown.colouring] }), ...(isMissing
    ? [el("span", { text: browser.table.stream[shown.row] === "unknown" ? "Advantages are not available for this algorithm" : "Not trained on: it has no advantages" })]
    : steps.map(([text, value, kind]) => {
      const step = el("span", { class: `token by-${shown.colouring} ${kind ?? ""}`, text });
      step.style.setProperty("--v", (100 * value).toFixed(0));
      return step;
    })));
}

function ending(table, row) {
  return { terminated: "The episode ended here.", truncated: "The episode was cut off here." }[table.end[row]] ?? `Ended: ${table.end[row]}`;
}

function selectTurn(place, scroll = true) {
  const card = $(`turn-${place}`);
  if (!card) return;
  document.querySelector(".turn-card.selected")?.classList.remove("selected");
  shown.turn = place;
  card.classList.add("selected");
  if (scroll) card.scrollIntoView({ block: "nearest" });
}
