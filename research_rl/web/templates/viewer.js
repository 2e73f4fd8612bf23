// What trajectories say is set as text only: nothing that a model or a passage wrote becomes markup.
"use strict";
const $ = id => document.getElementById(id);
const FACETS = [["source", "stage or evaluation"], ["step", "step"], ["validate", "training or validation"], ["split", "split"], ["stop_reason", "stop reason"], ["em", "verdict"],
  ["rule", "rule broken"], ["data_source", "data source"], ["type", "type of question"]];
const ORDERS = [["first", "first step first"], ["last", "last step first"], ["best", "highest reward first"], ["worst", "lowest reward first"]];
const FILTERS = [...FACETS.map(([name]) => name), "min", "max", "question", "order"];
const DEFAULT_METRICS = [/search\/score$/, /search\/em$/, /search\/searches$/, /^actor\/grad_norm$/, /^critic\/score\/mean$/, /^response_length\/mean$/, /^train\/loss$/];
const CURVES = 8, POLL_MS = 2000;
let state = {}, runs = [], rows = [], total = 0, shown = -1, asked = 0, shaded = true, listKey = null, plotKey = null, opened = null;

// Characters that move, hide or reorder what stands around them are named (research_rl.web.page.HIDDEN).
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;
const visible = text => String(text).replace(HIDDEN, one => `\u27e8U+${one.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}\u27e9`);
function make(parent, tag, kind, text) { const node = document.createElement(tag); if (kind) node.className = kind; if (text !== undefined) node.textContent = visible(text); parent.append(node); return node; }
function draw(parent, tag, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = visible(text);
  parent.append(node); return node;
}
const query = values => new URLSearchParams(Object.entries(values).filter(([, value]) => value !== undefined && value !== null)).toString();
async function get(path, values = {}) {
  const answer = await fetch(`${path}?${query(values)}`), told = await answer.json();
  if (!answer.ok) throw new Error(told.detail || answer.statusText);
  return told;
}
function tell(text) { $("told").textContent = visible(text || ""); $("told").hidden = !text; }
async function guarded(work) { try { await work(); } catch (error) { tell(error instanceof TypeError ? "The viewer does not answer; is it still running?" : error.message); } }

// The address holds the whole state, so that every view can be linked.
function link(changes) { return "#" + query({...state, ...changes}); }
function go(changes, replace) { const to = link(changes); if (replace) { history.replaceState(null, "", to); render(); } else location.hash = to; }
const run = () => Number(state.run || 0);
function filters() { const found = {run: run(), q: state.q}; for (const name of FILTERS) found[name] = state[name]; return found; }
const number = value => value === null || value === undefined ? "–" : Number.isInteger(value) ? String(value) : Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5 ? value.toExponential(2) : String(+value.toFixed(4));
const verdict = row => row.em === null ? "" : row.em ? "right" : "wrong";
const place = row => [row.source, row.step === null ? "" : `step ${row.step}`, row.validate && row.step !== null ? "validation" : ""].filter(Boolean).join(" · ");

async function render() {
  state = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  const curves = state.view === "curves";
  $("browse").hidden = curves; $("curves").hidden = !curves;
  for (const [id, view] of [["to-list", undefined], ["to-curves", "curves"]]) { $(id).href = link({view}); $(id).toggleAttribute("aria-current", curves === Boolean(view)); }
  $("run").value = String(run());
  if (curves) return guarded(renderCurves);
  if (document.activeElement !== $("q")) $("q").value = state.q || "";
  const key = query(filters());
  if (key !== listKey) { listKey = key; await guarded(async () => { await renderFacets(); await load(0); }); }
  await guarded(renderDetail);
}

async function load(offset) {
  const turn = ++asked, found = await get("api/list", {...filters(), order: state.order || "first", offset});
  if (turn !== asked) return;  // a newer list was asked for
  rows = offset ? [...rows, ...found.rows] : found.rows; total = found.total; tell("");
  if (!offset) { $("list").replaceChildren(); $("side").scrollTop = 0; $("fresh").hidden = true; }
  $("count").textContent = `${total.toLocaleString("en")} ${total === 1 ? "trajectory" : "trajectories"}`;
  for (const row of found.rows) {
    const entry = make(make($("list"), "li"), "a"); entry.href = link({t: row.key, w: undefined}); entry.dataset.key = row.key;
    make(entry, "b", "", row.question || "(no question)");
    const about = make(entry, "small");
    make(about, "span", "", place(row)); if (row.score !== null) make(about, "span", "", `reward ${number(row.score)}`);
    make(about, "span", `answer ${verdict(row)}`, row.answer || row.stop_reason || "no answer");
  }
  if (!rows.length) make($("list"), "li", "empty", runs[run()]?.filled === false ? "The run is being read …" : "Nothing passes these filters.");
  $("more").hidden = rows.length >= total;
  mark();
}
function mark() {
  shown = rows.findIndex(row => row.key === state.t);
  for (const entry of $("list").querySelectorAll("a")) { const here = entry.dataset.key === state.t; entry.toggleAttribute("aria-current", here); if (here) entry.scrollIntoView({block: "nearest"}); }
}

async function renderFacets() {
  const counts = await get("api/facets", {run: run()}), box = $("facets"); box.replaceChildren();
  let active = 0;
  const field = (name, label, tag, wide) => { const around = make(box, "label", wide ? "wide" : "", label), node = make(around, tag); node.name = name; active += state[name] !== undefined && name !== "order"; node.addEventListener("change", () => go({[name]: node.value === "*" || node.value === "" && tag === "input" ? undefined : node.value, t: undefined, w: undefined})); return node; };
  for (const [name, label] of FACETS) {
    const found = name === "em" ? [[1, null], [0, null]] : counts[name];
    if (found.length < 2 && name !== "rule" || !found.length) { if (state[name] === undefined) continue; }
    const node = field(name, label, "select", name === "rule");
    make(node, "option", "", "all").value = "*";
    for (const [value, count] of found) {
      const text = name === "em" ? (value ? "right" : "wrong") : name === "validate" ? (value ? "validation" : "training") : value === null ? "none" : value === "" ? "(none)" : String(value);
      make(node, "option", "", count === null ? text : `${text} (${count.toLocaleString("en")})`).value = value === null ? "" : String(value);
    }
    node.value = state[name] ?? "*";
  }
  for (const [name, label] of [["min", "reward at least"], ["max", "reward at most"]]) { const node = field(name, label, "input"); node.type = "number"; node.step = "any"; node.value = state[name] ?? ""; }
  const order = field("order", "order", "select", true); for (const [value, label] of ORDERS) make(order, "option", "", label).value = value; order.value = state.order || "first";
  if (state.question !== undefined) make(box, "p", "wide muted", `question: ${state.question}`), active++;
  if (active || state.q) { const clear = make(box, "button", "wide", "Clear all"); clear.type = "button"; clear.addEventListener("click", () => { $("q").value = ""; const none = {q: undefined, t: undefined, w: undefined}; for (const name of FILTERS) none[name] = undefined; go(none); }); }
  $("active").textContent = active ? `(${active})` : "";
}

async function renderDetail() {
  const key = [run(), state.t, state.w].join();
  $("browse").classList.toggle("open", Boolean(state.t)); mark();
  if (key === opened) return;
  opened = key;
  const page = $("detail");
  if (!state.t) { page.replaceChildren(); make(page, "p", "empty", "Choose a trajectory: j and k go through the list."); return; }
  const [otherRun, otherKey] = (state.w || "").split(".");
  const [found, same, other] = await Promise.all([get("api/trajectory", {run: run(), key: state.t}), get("api/same", {run: run(), key: state.t}), otherKey ? get("api/trajectory", {run: otherRun, key: otherKey}) : null]);
  if (key !== opened) return;
  page.replaceChildren(); page.scrollTop = 0;
  make(page, "h2", "", found.question || "(no question)");
  const golden = make(page, "p", "facts"); make(golden, "b", "", "golden answers"); make(golden, "span", "", found.golden_answers || "–");
  tools(page, found, same);
  const legend = make(page, "p", "legend"); make(legend, "i", "policy", "written by the policy"); legend.append(" "); make(legend, "i", "observation", "observation (loss mask 0)");
  const around = other ? make(page, "div", "sides") : page;
  side(other ? make(around, "section") : page, found, run());
  if (other) side(make(around, "section"), other, Number(otherRun));
}
function tools(page, found, same) {
  const bar = make(page, "div", "tools");
  const back = make(bar, "a", "back", "← List"); back.href = link({t: undefined, w: undefined});
  for (const [text, by] of [["Previous", -1], ["Next", 1]]) { const node = make(bar, "button", "", text); node.type = "button"; node.addEventListener("click", () => move(by)); }
  const others = same.filter(row => row.run !== run() || row.key !== found.key);
  const choose = make(bar, "select"); choose.id = "compare"; choose.setAttribute("aria-label", "the same question elsewhere");
  make(choose, "option", "", others.length ? `Compare (${others.length} more of this question)` : "No other rollout of this question").value = "";
  for (const row of others) make(choose, "option", "", [runs.length > 1 ? runs[row.run].name : "", place(row), `reward ${number(row.score)}`, verdict(row), row.answer.slice(0, 40)].filter(Boolean).join(" · ")).value = `${row.run}.${row.key}`;
  choose.value = state.w || ""; choose.disabled = !others.length;
  choose.addEventListener("change", () => go({w: choose.value || undefined}));
  const all = make(bar, "a", "", "All of this question"); all.href = "#" + query({run: state.run, question: found.question, t: found.key});
  const out = make(bar, "a", "", "Export"); out.href = `export?${query({run: run(), key: found.key})}`; out.setAttribute("download", "");
  if ((found.record.turns || []).some(turn => turn.tokens)) { const node = make(bar, "button", "", "Log-probabilities"); node.type = "button"; node.setAttribute("aria-pressed", shaded); node.addEventListener("click", () => { shaded = !shaded; opened = null; guarded(renderDetail); }); }
}
function side(parent, found, of) {
  const record = found.record, facts = make(parent, "p", "facts");
  const fact = (name, value, kind) => { if (value !== "" && value !== null && value !== undefined) { const one = make(facts, "span", kind || ""); make(one, "b", "", `${name} `); one.append(visible(value)); } };
  if (runs.length > 1) fact("run", runs[of].name);
  fact("stage", found.source); fact("step", found.step); fact("set", [found.validate === null ? "" : found.validate ? "validation" : "training", found.split].filter(Boolean).join(", ")); fact("from", found.data_source); fact("type", found.type);
  fact("ended", found.stop_reason); fact("answer", typeof record.response === "string" ? "" : found.answer || "none", verdict(found));
  if (found.superseded) fact("superseded", "a later attempt ran this step again");
  if (found.rules.length) make(parent, "p", "rules", found.rules.join(" · "));
  const metrics = make(parent, "div", "metrics"); for (const [name, value] of Object.entries(record.metrics || {})) make(metrics, "span", "", `${name} ${number(value)}`);
  if (typeof record.prompt === "string") make(parent, "div", "turn prompt", record.prompt);
  for (const turn of record.turns || []) {
    const text = make(parent, "div", "turn policy"); text.dataset.author = "policy";
    if (turn.tokens && shaded) for (const token of turn.tokens) {
      const node = make(text, "span", "", token.text);
      if (token.logprob !== null) { node.style.backgroundColor = `rgb(var(--token) / ${Math.min(0.75, -token.logprob / 5).toFixed(3)})`; node.title = `log-probability ${token.logprob.toFixed(3)}, probability ${Math.exp(token.logprob).toFixed(3)}`; }
    } else text.textContent = visible(turn.text);
    const action = turn.action || {}, line = make(parent, "p", "action"); make(line, "b", "", `${action.kind || "no action"} `); line.append(visible(action.query ?? action.text ?? action.reason ?? (action.calls || []).map(call => `${call.name} ${JSON.stringify(call.arguments)}${call.error && ` (${call.error})`}`).join("; ")));
    if (turn.observation) { const seen = make(parent, "div", "turn observation", turn.observation); seen.dataset.author = "observation"; }
    if ((turn.passages || []).length) make(parent, "p", "action", "passages: " + turn.passages.map(one => one.score === null ? one.id : `${one.id} (${number(one.score)})`).join(", "));
  }
  if (typeof record.response === "string") { make(parent, "p", "action", "response: what the policy wrote and what it was shown, which the file does not tell apart"); make(parent, "div", "turn", record.response).dataset.author = "unknown"; }
  else if (!(record.turns || []).length) make(parent, "div", "turn policy", found.answer || "no answer").dataset.author = "policy";
}
async function move(by) {
  const to = shown < 0 ? 0 : shown + by;
  if (to >= rows.length && rows.length < total) await guarded(() => load(rows.length));
  if (rows[to]) { shown = to; go({t: rows[to].key, w: undefined}); }  // set at once: a key that is held down comes before the page is drawn
}

async function renderCurves() {
  const key = JSON.stringify([state.m, runs.map(one => one.version)]);
  if (key === plotKey) return;
  const {names, alarms} = await get("api/metrics");
  const chosen = state.m !== undefined ? state.m.split(",").filter(Boolean) : DEFAULT_METRICS.flatMap(form => names.filter(name => form.test(name))).slice(0, CURVES);
  const found = await Promise.all(chosen.map(name => get("api/curve", {name})));
  plotKey = key; tell("");
  $("chosen").textContent = `(${chosen.length} of ${names.length})`;
  const boxes = $("names"), part = $("metric-filter").value.toLowerCase(); boxes.replaceChildren();
  for (const name of names.filter(name => name.toLowerCase().includes(part))) {
    const around = make(boxes, "label"), box = make(around, "input"); box.type = "checkbox"; box.checked = chosen.includes(name); around.append(` ${name}`);
    box.addEventListener("change", () => go({m: (box.checked ? [...chosen, name] : chosen.filter(one => one !== name)).join(",")}, true));
  }
  $("plots").replaceChildren(); chosen.forEach((name, i) => plot(name, found[i], alarms));
  if (!names.length) make($("plots"), "p", "empty", "No metrics: verl's file logger writes them (trainer.logger=[console,file]) to RUN/[STAGE/]metrics-TIME.jsonl.");
  const list = $("alarms"); list.replaceChildren();
  if (alarms.length) {
    make(list, "h2", "", `Alarms (${alarms.length})`); const items = make(list, "ol");
    for (const alarm of alarms) { const item = make(items, "li"); make(item, "b", "wrong", [runs.length > 1 ? runs[alarm.run].name : "", alarm.source, `step ${alarm.step}`, alarm.rule].filter(Boolean).join(" · ")); item.append(visible(` ${alarm.message || ""} ${alarm.metric ? `(${alarm.metric} ${number(alarm.value)}, threshold ${number(alarm.threshold)}; ${alarm.action || ""})` : ""}`)); }
  }
}
function plot(name, series, alarms) {
  const W = 420, H = 200, L = 52, R = 10, T = 10, B = 24, box = make($("plots"), "figure"); make(box, "figcaption", "", name);
  const points = series.flatMap(one => one.points); if (!points.length) { make(box, "p", "muted", "no values"); return; }
  const steps = points.map(point => point[0]), values = points.map(point => point[1]);
  let x0 = Math.min(...steps), x1 = Math.max(...steps), y0 = Math.min(...values), y1 = Math.max(...values);
  if (x0 === x1) { x0 -= 1; x1 += 1; } if (y0 === y1) { const pad = Math.abs(y0) * 0.1 || 1; y0 -= pad; y1 += pad; }
  const x = step => L + (step - x0) / (x1 - x0) * (W - L - R), y = value => H - B - (value - y0) / (y1 - y0) * (H - T - B);
  const svg = draw(box, "svg", {viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${name} by step`});
  for (const part of [0, 0.5, 1]) { const value = y0 + part * (y1 - y0); draw(svg, "line", {class: "grid", x1: L, x2: W - R, y1: y(value), y2: y(value)}); draw(svg, "text", {x: L - 6, y: y(value) + 4, "text-anchor": "end"}, number(+value.toPrecision(3))); }
  for (const part of [0, 0.5, 1]) { const step = Math.round(x0 + part * (x1 - x0)); draw(svg, "text", {x: x(step), y: H - 8, "text-anchor": part === 0 ? "start" : part === 1 ? "end" : "middle"}, step); }
  for (const alarm of alarms.filter(one => one.step !== null && one.step >= x0 && one.step <= x1 && series.some(other => other.run === one.run && other.source === one.source))) draw(draw(svg, "line", {class: "alarm", x1: x(alarm.step), x2: x(alarm.step), y1: T, y2: H - B}), "title", {}, `step ${alarm.step}: ${alarm.rule} ${alarm.message || ""}`);
  const keys = make(box, "p", "keys");
  series.forEach((one, i) => {
    const colour = `c${i % 6}`; draw(svg, "polyline", {class: `curve ${colour}`, points: one.points.map(point => `${x(point[0]).toFixed(1)},${y(point[1]).toFixed(1)}`).join(" ")});
    if (one.points.length < 60) for (const point of one.points) draw(draw(svg, "circle", {class: colour, cx: x(point[0]), cy: y(point[1]), r: 2}), "title", {}, `step ${point[0]}: ${number(point[1])}`);
    const label = [runs.length > 1 ? runs[one.run].name : "", one.source].filter(Boolean).join(" · "), last = one.points[one.points.length - 1];
    const entry = make(keys, "span"); draw(draw(entry, "svg", {viewBox: "0 0 12 12"}), "circle", {class: colour, cx: 6, cy: 6, r: 4}); entry.append(` ${label} ${number(last[1])} at step ${last[0]}`);
  });
}

async function poll() {
  const before = runs.map(one => one.version);
  await guarded(async () => {
    const found = await get("api/runs");
    runs = found.map(one => ({...one, name: one.path.split("/").filter(Boolean).slice(-1)[0] || one.path}));
    const names = new Map(); for (const one of runs) names.set(one.name, (names.get(one.name) || 0) + 1);
    for (const one of runs) if (names.get(one.name) > 1) one.name = one.path.split("/").filter(Boolean).slice(-2).join("/");
    if ($("run").options.length !== runs.length) { $("run").replaceChildren(); runs.forEach((one, i) => { const node = make($("run"), "option", "", one.name); node.value = String(i); node.title = one.path; }); $("run").value = String(run()); }
    const one = runs[run()]; if (!one) { tell(`There is no run ${run()}.`); return; }
    const parts = [`${one.trajectories.toLocaleString("en")} trajectories`];
    if (!one.filled) parts.push(`read ${one.total_bytes ? Math.floor(100 * one.read_bytes / one.total_bytes) : 0} %`);
    if (one.superseded) parts.push(`${one.superseded.toLocaleString("en")} of earlier attempts hidden`);
    if (one.damaged) parts.push(`${one.damaged.toLocaleString("en")} damaged ${one.damaged === 1 ? "line" : "lines"} left out`);
    $("status").textContent = parts.join(" · "); tell([one.told, ...one.left_out].filter(Boolean).join(" · "));
    if (before.length && before[run()] !== one.version) {
      if (state.view === "curves") await renderCurves();
      else if (rows.length < 50 || $("side").scrollTop === 0 && rows.length === 50) { if (!$("facets").contains(document.activeElement)) await renderFacets(); await load(0); }
      else $("fresh").hidden = false;
    }
  });
  setTimeout(poll, POLL_MS);
}

let typing;
$("q").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(() => go({q: $("q").value || undefined, t: undefined, w: undefined}, true), 200); });
$("filters").addEventListener("submit", event => { event.preventDefault(); $("q").blur(); });
$("run").addEventListener("change", () => { location.hash = query({run: $("run").value, view: state.view, m: state.m}); });
$("more").addEventListener("click", () => guarded(() => load(rows.length)));
$("fresh").addEventListener("click", () => guarded(async () => { await renderFacets(); await load(0); }));
$("metric-filter").addEventListener("input", () => { plotKey = null; guarded(renderCurves); });
$("help").addEventListener("click", () => $("keys").showModal());
addEventListener("hashchange", render);
addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
  if (event.key === "Escape") { document.activeElement.blur(); if (state.w) go({w: undefined}); else if (state.t) go({t: undefined}); return; }
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) return;
  const list = state.view !== "curves", act = {"?": () => $("keys").showModal(), v: () => go({view: list ? "curves" : undefined})};
  if (list) Object.assign(act, {j: () => move(1), k: () => move(-1), ArrowDown: () => move(1), ArrowUp: () => move(-1), "/": () => { if (state.t && matchMedia("(max-width: 46rem)").matches) go({t: undefined}); $("q").focus(); $("q").select(); }, f: () => { $("more-filters").open = !$("more-filters").open; }, c: () => $("compare")?.focus()});
  if (act[event.key]) { event.preventDefault(); act[event.key](); }
});
poll().then(render);
