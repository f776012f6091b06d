// Draws the charts of a page, keeps them in step with the filter in the address, and turns marked ranges into filters.
// The proxy's prefix, with a slash at its end: this file lies in PREFIX/static/VERSION/.
export const root = new URL("../..", import.meta.url).pathname;
// Nothing that is drawn may leave this host.
const REMOVED = ["sendChartToCloud", "sendDataToCloud", "lasso2d", "autoScale2d"];
const MOST_TABLE_ROWS = 200;
const explored = () => document.getElementById("explored");
const form = () => document.getElementById("explore-form");

// A chart's address with the filter and the parameters that this page's address has.
function addressOf(element) {
  const own = new URL(element.dataset.chart, location.href);
  const asked = new URLSearchParams(location.search);
  // A filter that cannot be read is applied nowhere.
  if (document.querySelector("[name=where][aria-invalid]")) asked.delete("where");
  for (const name of element === explored() ? ["where", "x", "y", "predictor"] : ["where"])
    if (asked.get(name) && own.pathname.includes("/studies/")) own.searchParams.set(name, asked.get(name));
  return own;
}

async function drawChart(element) {
  if (!element.dataset.chart || typeof Plotly === "undefined") return;
  const address = addressOf(element);
  // Answers may come in another order than they were asked for.
  const ticket = (element.asked ?? 0) + 1;
  element.asked = ticket;
  const answer = await fetch(address).catch(() => null);
  if (element.asked !== ticket) return;
  if (!answer?.ok) {
    // A live page asks again at its next turn, and keeps what it shows until then.
    if (element.kind && element.kind.startsWith(element.dataset.chart)) return;
    Plotly.purge(element);
    element.kind = element.drawn = "";
    element.textContent = "This chart cannot be drawn now.";
    return;
  }
  const text = await answer.text();
  if (element.asked !== ticket) return;
  // What has not changed is not drawn again: hover and focus stay.
  if (element.drawn === `${address}${text}`) return;
  const figure = JSON.parse(text);
  figure.layout.font.color = getComputedStyle(document.body).color;
  const marks = figure.layout.meta !== undefined;
  const config = { responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: "",
    modeBarButtonsToRemove: marks ? REMOVED : [...REMOVED, "select2d"] };
  // Another kind of chart has other axes, which Plotly would keep.
  const kind = element.dataset.chart + (figure.data[0]?.type ?? "");
  if (element.kind !== kind) { Plotly.purge(element); element.textContent = ""; }
  element.kind = kind;
  await Plotly.react(element, figure.data, figure.layout, config);
  for (const name of ["plotly_click", "plotly_selected"]) element.removeAllListeners?.(name);
  element.on?.("plotly_click", openTrial);
  element.on?.("plotly_selected", (event) => filterBy(rangesOf(figure.layout, event)));
  element.drawn = `${address}${text}`;
  element.figure = figure;
  if (element === explored()) fillTable(false);
}

export async function drawCharts() {
  for (const element of document.querySelectorAll("[data-chart]")) await drawChart(element);
}

// The colours of the text are another theme's.
export async function redrawCharts() {
  for (const element of document.querySelectorAll("[data-chart]")) element.drawn = "";
  await drawCharts();
}

function openTrial(event) {
  const number = event.points[0].customdata;
  const study = document.getElementById("study")?.dataset.study;
  if (study && Number.isInteger(number)) location.assign(`${root}studies/${study}/trials/${number}`);
}

// A bound in six digits, never inside the range: the best trial lies at its end.
function bound(value, up) {
  if (!value) return "0";
  const unit = 10 ** (Math.floor(Math.log10(Math.abs(value))) - 5);
  return String(Number(((up ? Math.ceil(value / unit) : Math.floor(value / unit)) * unit).toPrecision(7)));
}
const named = (name) => (/^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$/.test(name) ? name : JSON.stringify(name));

function between(name, [first, second]) {
  return `${bound(Math.min(first, second), false)} <= ${named(name)} <= ${bound(Math.max(first, second), true)}`;
}

// The filters that a marked rectangle means; axes of words or times have none.
function rangesOf(layout, event) {
  if (!event?.range) return [];
  if (layout.meta?.dimensions) return markedOf(layout.meta.dimensions, event.range);
  const parts = [];
  for (const axis of ["x", "y"]) {
    const name = layout.meta?.[axis];
    const range = event.range[axis];
    if (name && range?.every((v) => typeof v === "number")) parts.push(between(name, range));
  }
  return parts;
}

// The same for parallel axes: each axis that the rectangle crosses.
function markedOf(dimensions, range) {
  const [left, right] = range.x.toSorted((a, b) => a - b);
  const [low, high] = range.y.toSorted((a, b) => a - b).map((v) => Math.min(1, Math.max(0, v)));
  const parts = [];
  dimensions.forEach((d, k) => {
    if (k < left || k > right) return;
    if (d.words) {
      const last = Math.max(1, d.words.length - 1);
      const chosen = d.words.filter((_, at) => at / last >= low - 1e-9 && at / last <= high + 1e-9);
      if (chosen.length) parts.push(`${named(d.name)} in (${chosen.map((word) => JSON.stringify(word)).join(", ")})`);
      return;
    }
    const value = (place) => (d.log ? 10 ** (d.low + place * (d.high - d.low)) : d.low + place * (d.high - d.low));
    parts.push(between(d.name, [value(low), value(high)]));
  });
  return parts;
}

function filterBy(parts) {
  if (!parts.length) return;
  const address = new URL(`${root}studies/${document.getElementById("study").dataset.study}${location.search}`, location.origin);
  const old = address.searchParams.get("where")?.trim();
  address.searchParams.set("where", [...(old ? [`(${old})`] : []), ...parts].join(" and "));
  address.searchParams.delete("page");
  location.assign(address);
}

// The chart as rows of its points, for readers who cannot see it.
async function fillTable(toggle) {
  const place = document.getElementById("explored-table");
  if (toggle) place.hidden = !place.hidden;
  document.querySelector("[data-table]").setAttribute("aria-expanded", String(!place.hidden));
  if (place.hidden) return;
  const rows = parseCsv(await (await fetch(pointsAddress())).text());
  const table = document.createElement("table");
  rows.slice(0, MOST_TABLE_ROWS + 1).forEach((cells, k) => {
    const row = (k ? table.tBodies[0] ?? table.createTBody() : table.createTHead()).insertRow();
    for (const cell of cells) {
      const made = document.createElement(k ? "td" : "th");
      if (!k) made.scope = "col";
      made.textContent = cell;
      row.append(made);
    }
  });
  const note = document.createElement("p");
  note.className = "note";
  note.textContent = rows.length > MOST_TABLE_ROWS + 1 ? `The first ${MOST_TABLE_ROWS} of ${rows.length - 1}; CSV has all.` : "";
  place.replaceChildren(table, note);
}

function parseCsv(text) {
  const rows = [[]];
  for (const [, quoted, plain, end] of text.matchAll(/(?:"((?:[^"]|"")*)"|([^,\r\n]*))(,|\r?\n|$)/g)) {
    if (quoted === undefined && plain === "" && end === "") break;
    rows.at(-1).push(quoted?.replaceAll('""', '"') ?? plain);
    if (end !== ",") rows.push([]);
  }
  return rows.filter((row) => row.length);
}

function pointsAddress() {
  const address = addressOf(explored());
  address.searchParams.set("format", "csv");
  return address;
}

const isFor = (label, kind) => label.dataset.for.split(" ").includes(kind);

function choose() {
  const fields = form().elements;
  const kind = fields.chart.value;
  for (const part of form().querySelectorAll("[data-for]")) {
    part.hidden = !isFor(part, kind);
    if (part.tagName === "OPTION") part.disabled = part.hidden;
  }
  explored().dataset.chart = explored().dataset.charts + kind;
  document.getElementById("explored-said").textContent = fields.chart.selectedOptions[0].textContent;
}

// One chart of many, chosen by the reader and kept in the address: a link shows a colleague the same.
export function exploreCharts() {
  if (!form()) return;
  choose();
  form().addEventListener("change", async () => {
    const address = new URL(location.href);
    const kind = form().elements.chart.value;
    for (const name of ["chart", "x", "y", "predictor"]) {
      const field = form().elements[name];
      const label = field.closest("[data-for]");
      if (field.value && (!label || isFor(label, kind))) address.searchParams.set(name, field.value);
      else address.searchParams.delete(name);
    }
    history.replaceState(null, "", address);
    choose();
    await drawChart(explored());
  });
  form().addEventListener("submit", (event) => event.preventDefault());
  keepChart();
  document.querySelector("[data-table]").addEventListener("click", () => fillTable(true));
  document.querySelector("[data-points]").addEventListener("click", (event) => {
    event.preventDefault();
    location.assign(pointsAddress());
  });
  for (const button of document.querySelectorAll("[data-picture]"))
    button.addEventListener("click", () =>
      Plotly.downloadImage(explored(), { format: button.dataset.picture, filename: form().elements.chart.value, scale: 2 }));
}

// Filtering, sorting and paging keep the chosen chart.
function keepChart() {
  const chosen = () => [...new URLSearchParams(location.search)].filter(([name]) => ["chart", "x", "y", "predictor"].includes(name));
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href*='#trials-title']");
    if (!link) return;
    const address = new URL(link.href);
    for (const [name, value] of chosen()) address.searchParams.set(name, value);
    link.href = address;
  });
  document.addEventListener("submit", (event) => {
    if (!event.target.matches("form.filters")) return;
    for (const [name, value] of chosen()) {
      const field = document.createElement("input");
      Object.assign(field, { type: "hidden", name, value });
      event.target.append(field);
    }
  });
}
