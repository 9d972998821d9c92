"use strict";
// The page of `txl report --html`: draws the curves of #data with the library in #plotly, and switches the theme.

const DATA = JSON.parse(document.getElementById("data").textContent);
const COLORS = ["#2f7ed8", "#e8710a", "#199d59", "#c2185b", "#8657d6", "#00a3b4", "#b58900", "#d64545", "#6b8e23", "#8d6e63"];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];
const LOST = "#d92d20";  // a loss that is not finite
const X_TITLES = { step: "step", tokens: "tokens", hours: "hours of training" };
const root = document.documentElement;

// Plotly reads names and hover texts as a kind of HTML: what is typed by users must stay text.
const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const style = (name) => getComputedStyle(root).getPropertyValue(name).trim();
const chosen = (id) => document.getElementById(id).value;
const checked = (id) => document.getElementById(id).checked;

async function unpack(id) {
  const packed = Uint8Array.from(atob(document.getElementById(id).textContent.trim()), (c) => c.charCodeAt(0));
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

// A loss in nats per token as the chosen value; null where it is not finite.
function shown(loss, run, unit) {
  if (loss === null || unit === "loss") return loss;
  return run.metric === "bpc" ? loss / Math.LN2 : Math.exp(loss);
}

function colors() {
  const settings = [...new Set(DATA.runs.map((run) => run.setting))];
  return (run) => COLORS[settings.indexOf(run.setting) % COLORS.length];
}

function dashes() {
  const seen = {};
  return (run) => DASHES[(seen[run.setting] = (seen[run.setting] ?? -1) + 1) % DASHES.length];
}

function runTraces(x, what, unit) {
  const color = colors(), dash = dashes(), traces = [];
  for (const run of DATA.runs) {
    const name = plain(run.label) + (run.state === "finished" ? "" : ` (${run.state})`);
    const base = { x: null, mode: "lines", name, legendgroup: run.label, meta: run.label };
    const line = { color: color(run), dash: dash(run), width: 2 };
    const hover = (split) => `${plain(run.label)}<br>${X_TITLES[x]} %{x}<br>${split} ${unitName(unit)} %{y:.4f}<extra></extra>`;
    const add = (points, more) => points.step.length && traces.push(
      { ...base, x: points[x], y: points.loss.map((loss) => shown(loss, run, unit)), ...more });
    const both = what === "both";
    if (what !== "valid")
      add(run.train, { line: { ...line, width: 1.3 }, opacity: both ? 0.55 : 0.9, showlegend: !both || !run.valid.step.length,
        hovertemplate: hover("train") });
    if (what !== "train")
      add(run.valid, { line, mode: run.valid.step.length < 60 ? "lines+markers" : "lines", marker: { size: 5 },
        hovertemplate: hover("valid") });
    const height = run.lost.loss.map((loss, i) => (what === "valid" ? run.lost.valid[i] ?? loss : loss ?? run.lost.valid[i]));
    add({ ...run.lost, loss: height.map((loss) => loss ?? Infinity) }, { mode: "markers", meta: `${run.label} lost`,
      marker: { symbol: "x", size: 11, color: LOST, line: { width: 1, color: style("--back") } },
      showlegend: !traces.some((trace) => trace.legendgroup === run.label),
      hovertemplate: `${plain(run.label)}<br>${X_TITLES[x]} %{x}<br>loss not finite<extra></extra>` });
    if (what !== "valid")
      add(run.spikes, { mode: "markers", marker: { symbol: "triangle-up", size: 10, color: "#f5a623" }, showlegend: false,
        hovertemplate: `${plain(run.label)}<br>${X_TITLES[x]} %{x}<br>loss spike<extra></extra>` });
  }
  // A run that never had a finite loss has its crosses along the top.
  const heights = traces.flatMap((trace) => trace.y).filter(Number.isFinite);
  const top = heights.length ? heights.reduce((a, b) => Math.max(a, b)) : 1;
  for (const trace of traces) trace.y = trace.y.map((y) => (y === Infinity ? top : y));
  return traces;
}

// Mean ± sd over the complete runs of each setting, at the validations that all of them have.
function bandTraces(x, unit) {
  const color = colors(), traces = [];
  for (const setting of new Set(DATA.runs.map((run) => run.setting))) {
    const runs = DATA.runs.filter((run) => run.setting === setting && run.complete && run.valid.step.length);
    if (!runs.length) continue;
    const points = [];
    runs[0].valid.step.forEach((step, i) => {
      const places = runs.map((run) => run.valid.step.indexOf(step));
      if (places.includes(-1)) return;
      const values = runs.map((run, k) => shown(run.valid.loss[places[k]], run, unit));
      if (values.includes(null)) return;
      const mean = values.reduce((a, b) => a + b) / values.length;
      const sd = Math.sqrt(values.reduce((sum, v) => sum + (v - mean) ** 2, 0) / Math.max(1, values.length - 1));
      points.push([runs[0].valid[x][i], mean, sd]);
    });
    for (const run of runs)
      traces.push({ x: run.valid[x], y: run.valid.loss.map((loss) => shown(loss, run, unit)), legendgroup: setting, mode: "lines",
        line: { color: color(run), width: 0.8 }, opacity: 0.6, hoverinfo: "skip", showlegend: false });
    const of = (f) => points.map(f), common = { x: of((p) => p[0]), legendgroup: setting, mode: "lines" };
    const edge = { ...common, line: { width: 0 }, hoverinfo: "skip", showlegend: false };
    traces.push({ ...edge, y: of((p) => p[1] - p[2]) });
    traces.push({ ...edge, y: of((p) => p[1] + p[2]), fill: "tonexty", fillcolor: color(runs[0]) + "44" });
    traces.push({ ...common, y: of((p) => p[1]), customdata: of((p) => p[2]), name: `${plain(setting)}, ${runs.length} seeds`,
      meta: setting, line: { color: color(runs[0]), width: 2.5 },
      hovertemplate: `${plain(setting)}<br>${X_TITLES[x]} %{x}<br>valid ${unitName(unit)} %{y:.4f} ± %{customdata:.4f}<extra></extra>` });
  }
  if (x === "step" && unit !== "loss")
    for (const [name, rows] of Object.entries(DATA.published))
      traces.push({ x: rows.map((row) => row.step), y: rows.map((row) => row.mean), mode: "markers", name: plain(name),
        error_y: { array: rows.map((row) => 3 * row.sd), color: style("--soft") }, marker: { color: style("--text"), symbol: "diamond" } });
  return traces;
}

function unitName(unit) {
  return unit === "loss" ? "loss" : DATA.metric;
}

const isNarrow = () => document.getElementById("curves").clientWidth < 640;

function layout(x, yTitle, logX, logY) {
  const axis = { gridcolor: style("--line"), zeroline: false, linecolor: style("--line"), automargin: true };
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: style("--text"), size: 13 },
    margin: { l: 64, r: 16, t: 34, b: 64 }, hovermode: "closest", hoverlabel: { namelength: -1 },
    xaxis: { ...axis, title: { text: X_TITLES[x], standoff: 8 }, type: logX ? "log" : "linear" },
    yaxis: { ...axis, title: { text: yTitle, standoff: 12 }, type: logY ? "log" : "linear" },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: style("--soft"), activecolor: style("--link") },
    legend: { groupclick: "togglegroup", tracegroupgap: 0, ...(isNarrow() ? { orientation: "h", y: -0.16 } : {}) }, uirevision: `${x} ${yTitle} ${logX} ${logY}`,
  };
}

function draw() {
  const x = chosen("x-axis"), what = chosen("split"), unit = chosen("unit"), band = checked("band");
  document.getElementById("split").disabled = band;
  const split = band || what === "valid" ? "valid " : what === "train" ? "train " : "";
  const title = split + (unit === "loss" ? "loss (nats per token)" : DATA.metric);
  const traces = band ? bandTraces(x, unit) : runTraces(x, what, unit);
  Plotly.react("curves", traces, layout(x, title, checked("log-x"), checked("log-y")),
    { responsive: true, displaylogo: false, scrollZoom: true, modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]] });
}

// --------------------------------------------------------------------------- the trials of a search

const short = (value) => {
  const size = Math.abs(value);
  return size && (size < 1e-3 || size >= 1e5) ? value.toExponential(1).replace(".0e", "e") : String(Number(value.toPrecision(3)));
};

// An axis: `place` gives the height (0 to 1) of a value, `ticks` are [height, text].
function rangeAxis(name, low, high, log, more = "", whole = false) {
  const scale = log ? Math.log10 : (value) => value;
  const span = scale(high) - scale(low) || 1;
  const place = (value) => Math.min(1, Math.max(0, (scale(value) - scale(low)) / span));
  const step = Math.ceil((high - low) / 8);
  const inside = whole ? Array.from({ length: 8 }, (_, i) => low + (i + 1) * step) : log ? Array.from({ length: 40 }, (_, i) => 10 ** (i - 20)) : [low + span / 4, low + span / 2, low + (3 * span) / 4];
  const between = inside.filter((value) => value > low && value < high && place(value) > 0.07 && place(value) < 0.93);
  return { name, place, ticks: [[0, short(low)], ...between.map((value) => [place(value), short(value)]), [1, more + short(high)]] };
}

function choiceAxis(name, choices) {
  const place = (value) => (choices.length > 1 ? choices.indexOf(String(value)) / (choices.length - 1) : 0.5);
  return { name, place, ticks: choices.map((choice) => [place(choice), choice.length > 18 ? choice.slice(0, 17) + "…" : choice]) };
}

// Losses far above the others would press these together: they stand at the top.
function lossAxis(trials) {
  const losses = trials.filter((trial) => trial.loss !== null).map((trial) => trial.loss).sort((a, b) => a - b);
  if (!losses.length) return rangeAxis("valid loss", 0, 1, false);
  const low = losses[0], most = losses[losses.length - 1], usual = low + 4 * (losses[Math.floor(losses.length / 2)] - low);
  return usual > low && usual < most ? rangeAxis("valid loss", low, usual, false, "≥ ") : rangeAxis("valid loss", low, most, false);
}

function trialTraces(study, axes) {
  const losses = study.trials.filter((trial) => trial.state === "complete").map((trial) => trial.loss);
  const low = Math.min(...losses), span = Math.max(...losses) - low || 1;
  const looks = {
    "not ended": { color: style("--soft"), dash: "dash", width: 1.2 }, failed: { color: LOST, dash: "dash", width: 1.2 },
    pruned: { color: style("--soft"), dash: "dot", width: 1.4 }, complete: { color: style("--link"), width: 1.8 },
    best: { color: style("--best"), width: 4 },
  };
  const kind = (trial) => (trial.best ? "best" : trial.state), order = Object.keys(looks), named = new Set();
  const sorted = [...study.trials].sort((a, b) => order.indexOf(kind(a)) - order.indexOf(kind(b)) || (b.loss ?? 0) - (a.loss ?? 0));
  return sorted.map((trial) => {
    const points = trial.values.map((value, i) => (value === null || value === undefined ? null : axes[i].place(value)));
    if (trial.loss !== null && trial.loss !== undefined) points.push(axes[axes.length - 1].place(trial.loss));
    const values = study.axes.map((axis, i) => `${axis.key}=${typeof trial.values[i] === "number" ? short(trial.values[i]) : trial.values[i]}`);
    const loss = trial.loss === null || trial.loss === undefined ? "no validation" : `valid loss ${trial.loss.toFixed(4)}`;
    const end = trial.state === "complete" ? loss : `${trial.state}${trial.step ? ` at step ${trial.step}` : ""}, ${loss}`;
    const group = kind(trial), name = group === "best" ? `best: trial ${trial.number}` : group;
    const first = !named.has(group);
    named.add(group);
    const fade = group === "complete" ? 1 - 0.65 * ((trial.loss - low) / span) : 1;
    return { x: points.map((_, i) => i), y: points, mode: "lines+markers", name, legendgroup: group, showlegend: first, opacity: fade,
      line: looks[group], marker: { size: group === "best" ? 8 : 5, color: looks[group].color }, meta: trial.number,
      hovertemplate: plain([`trial ${trial.number}`, ...values, end].join("\n")).replace(/\n/g, "<br>") + "<extra></extra>" };
  });
}

function drawStudy(place) {
  const study = DATA.studies[Number(place.dataset.study)];
  const axes = study.axes.map((axis) => (axis.choices.length ? choiceAxis(axis.name, axis.choices) : rangeAxis(axis.name, axis.low, axis.high, axis.log, "", axis.whole)));
  axes.push(lossAxis(study.trials));
  place.style.minWidth = `${120 * axes.length}px`;
  const traces = trialTraces(study, axes), opacity = traces.map((trace) => trace.opacity);
  const label = (x, y, text, more) => ({ x, y, text: plain(text), showarrow: false, ...more });
  const line = { color: style("--soft"), width: 1 };
  const hidden = { visible: false, fixedrange: true };
  Plotly.react(place, traces, {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: style("--text"), size: 13 }, hovermode: "closest",
    margin: { l: 24, r: 24, t: 40, b: 40 }, dragmode: "select", hoverlabel: { namelength: -1, align: "left" },
    xaxis: { ...hidden, range: [-0.15, axes.length - 1 + 0.45] }, yaxis: { ...hidden, range: [-0.05, 1.05] },
    legend: { orientation: "h", y: -0.04, groupclick: "togglegroup" },
    shapes: axes.map((_, i) => ({ type: "line", x0: i, x1: i, y0: 0, y1: 1, line, layer: "below" })),
    annotations: axes.flatMap((axis, i) => [
      label(i, 1.05, axis.name, { yanchor: "bottom", font: { weight: 600 } }),
      ...axis.ticks.map(([y, text]) => label(i, y, text, { xanchor: "left", xshift: 5, font: { size: 11, color: style("--soft") }, bgcolor: style("--back"), opacity: 0.85 })),
    ]),
  }, { responsive: true, displayModeBar: false });
  const show = (chosen) => Plotly.restyle(place, { opacity: opacity.map((usual, i) => (!chosen || chosen.has(i) ? usual : 0.07)) });
  place.removeAllListeners("plotly_selected");
  place.removeAllListeners("plotly_deselect");
  place.on("plotly_selected", (event) => show(event && event.points.length ? new Set(event.points.map((point) => point.curveNumber)) : null));
  place.on("plotly_deselect", () => show(null));
}

function drawAll() {
  if (document.getElementById("curves")) draw();
  document.querySelectorAll("[data-study]").forEach(drawStudy);
}

function setTheme(dark) {
  root.classList.toggle("dark", dark);
  if (window.Plotly) drawAll();
}

function startTables() {
  for (const box of document.querySelectorAll("input[data-filters]")) {
    const table = document.getElementById(box.dataset.filters);
    const filter = () => table.classList.toggle("only-differing", box.checked);
    box.addEventListener("change", filter);
    filter();
  }
}

async function start() {
  const preference = window.matchMedia("(prefers-color-scheme: dark)");
  setTheme(preference.matches);
  preference.addEventListener("change", (event) => setTheme(event.matches));
  document.getElementById("theme").addEventListener("click", () => setTheme(!root.classList.contains("dark")));
  startTables();
  const places = document.querySelectorAll(".plot");
  if (!places.length) return;
  try {
    const script = document.createElement("script");
    script.textContent = await unpack("plotly");
    document.head.append(script);
    for (const id of ["x-axis", "split", "unit", "log-x", "log-y", "band"])
      document.getElementById(id)?.addEventListener("change", draw);
    drawAll();
    root.dataset.ready = "yes";
  } catch (error) {
    for (const place of places) {
      place.className = "failed";
      place.textContent = `The curves cannot be drawn in this browser: ${error.message}`;
    }
  }
}

start();
