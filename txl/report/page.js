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
    traces.push({ ...edge, y: of((p) => p[1] + p[2]), fill: "tonexty", fillcolor: color(runs[0]) + "33" });
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

function layout(x, yTitle, logX, logY) {
  const axis = { gridcolor: style("--line"), zeroline: false, linecolor: style("--line"), automargin: true };
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: style("--text"), size: 13 },
    margin: { l: 64, r: 16, t: 34, b: 64 }, hovermode: "closest", hoverlabel: { namelength: -1 },
    xaxis: { ...axis, title: { text: X_TITLES[x], standoff: 8 }, type: logX ? "log" : "linear" },
    yaxis: { ...axis, title: { text: yTitle }, type: logY ? "log" : "linear" },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: style("--soft"), activecolor: style("--link") },
    legend: { groupclick: "togglegroup", tracegroupgap: 0 }, uirevision: `${x} ${yTitle} ${logX} ${logY}`,
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

function setTheme(dark) {
  root.classList.toggle("dark", dark);
  if (window.Plotly && document.getElementById("curves")) draw();
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
  const place = document.getElementById("curves");
  if (!place) return;
  try {
    const script = document.createElement("script");
    script.textContent = await unpack("plotly");
    document.head.append(script);
    for (const id of ["x-axis", "split", "unit", "log-x", "log-y", "band"])
      document.getElementById(id).addEventListener("change", draw);
    draw();
    root.dataset.ready = "yes";
  } catch (error) {
    place.className = "failed";
    place.textContent = `The curves cannot be drawn in this browser: ${error.message}`;
  }
}

start();
